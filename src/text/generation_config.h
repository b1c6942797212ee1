// What a model's files say about ending a text: generation_config.json and those it falls back to.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "text/tokenizer.h"

namespace quatrain {

struct GenerationConfig {
  // Sampling ends behind any of these. Sorted, each once; empty if no file names one (a warning is
  // logged).
  std::vector<int32_t> stop_token_ids;
};

// Takes eos_token_id, a number or a list, from generation_config.json; else from config.json; else
// the token eos_token of tokenizer_config.json. bos_token_id is not read: files carry wrong ones,
// and nothing is prepended. Error kData naming the file: broken JSON, an id that is not a number
// from 0 up to 2^31 - 1, an eos_token that the tokenizer does not know. Files that do not exist are
// passed over.
GenerationConfig LoadGenerationConfig(const std::filesystem::path& model_dir,
                                      const Tokenizer& tokenizer);

}  // namespace quatrain
