// A model directory ready to run: what score, generate and eval share.
#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"
#include "models/loader.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace CLI {
class App;
}

namespace quatrain {

struct LoadedModel {
  // dtype: "bfloat16" or "float32" (activations and dense weights; INT4 weights stay codes). Errors
  // of Checkpoint and LoadWeights; kResource if the weights do not fit into memory.
  LoadedModel(const std::string& directory, const std::string& dtype);

  Checkpoint checkpoint;
  ModelWeights weights;
  Decoder decoder;
  Tokenizer tokenizer;
  std::vector<int32_t> stop_token_ids;
};

// --dtype, checked by CLI11.
void AddDtypeOption(CLI::App& command, std::string* dtype);
// --threads; 0: all CPUs of this process.
void AddThreadsOption(CLI::App& command, int* threads);

}  // namespace quatrain
