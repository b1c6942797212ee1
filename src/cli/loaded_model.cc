#include "cli/loaded_model.h"

#include <CLI/CLI.hpp>

#include "base/resources.h"
#include "text/generation_config.h"

namespace quatrain {

namespace {

// Codes and scales stay as they are in the file; the rest takes 2 or 4 bytes a value.
ModelWeights LoadIfItFits(const Checkpoint& checkpoint, const std::string& dtype) {
  const bool is_float32 = dtype == "float32";
  const uint64_t bytes = checkpoint.repo().tensors().total_bytes();
  RequireMemory("load " + checkpoint.name(), is_float32 && !checkpoint.scheme() ? 2 * bytes : bytes,
                "Convert it to INT4 with 'quatrain convert', or take a machine with more memory.");
  return LoadWeights(checkpoint, is_float32 ? at::kFloat : at::kBFloat16);
}

}  // namespace

LoadedModel::LoadedModel(const std::string& directory, const std::string& dtype)
    : checkpoint(directory),
      weights(LoadIfItFits(checkpoint, dtype)),
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
