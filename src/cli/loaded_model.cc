#include "cli/loaded_model.h"

#include <CLI/CLI.hpp>

#include "text/generation_config.h"

namespace quatrain {

LoadedModel::LoadedModel(const std::string& directory, const std::string& dtype)
    : checkpoint(directory),
      weights(LoadWeights(checkpoint, dtype == "float32" ? at::kFloat : at::kBFloat16)),
      decoder(checkpoint.config(), weights),
      tokenizer(Tokenizer::Load(directory)),
      stop_token_ids(LoadGenerationConfig(directory, tokenizer).stop_token_ids) {}

void AddDtypeOption(CLI::App& command, std::string* dtype) {
  command
      .add_option("--dtype", *dtype, "type of activations and of weights that are not quantised")
      ->check(CLI::IsMember({"bfloat16", "float32"}))
      ->capture_default_str();
}

void AddThreadsOption(CLI::App& command, int* threads) {
  command.add_option("--threads", *threads, "threads; 0: one for each CPU of this process")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

}  // namespace quatrain
