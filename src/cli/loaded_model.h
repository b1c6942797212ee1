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

// The token ids of a JSON list. Error kData naming `where`: no list, something in it that is no
// integer, or an id outside the vocabulary.
std::vector<int32_t> TokenIdsOf(const Json& list, int64_t vocab_size, const std::string& where);
// The ids of a text; Error kData if the tokenizer knows a token that the model does not.
std::vector<int32_t> EncodeFor(const LoadedModel& model, const std::string& text);

// --dtype, checked by CLI11.
void AddDtypeOption(CLI::App& command, std::string* dtype);
// --threads; 0: all CPUs of this process.
void AddThreadsOption(CLI::App& command, int* threads);

}  // namespace quatrain
