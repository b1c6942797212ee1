#include "cli/loaded_model.h"

#include <CLI/CLI.hpp>

#include "base/resources.h"
#include "cli/option_checks.h"
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

std::vector<int32_t> TokenIdsOf(const Json& list, int64_t vocab_size, const std::string& where) {
  if (!list.is_array()) {
    throw Error(ErrorCode::kData, {.where = where,
                                   .what = "cannot be read",
                                   .expected = "a list of token ids",
                                   .found = list.type_name()});
  }
  std::vector<int32_t> ids;
  for (const Json& id : list) {
    const bool is_id =
        id.is_number_unsigned()
            ? id.get<uint64_t>() < static_cast<uint64_t>(vocab_size)
            : id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() < vocab_size;
    if (!is_id) {
      throw Error(ErrorCode::kData,
                  {.where = where,
                   .what = "not a token id",
                   .expected = fmt::format("integers from 0 to {}", vocab_size - 1),
                   .found = DumpJson(id).substr(0, 80)});
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::vector<int32_t> EncodeFor(const LoadedModel& model, const std::string& text) {
  std::vector<int32_t> ids = model.tokenizer.Encode(text);
  const int64_t vocab_size = model.checkpoint.config().vocab_size;
  for (const int32_t id : ids) {
    if (id < vocab_size) continue;
    throw Error(ErrorCode::kData,
                {.where = model.checkpoint.name(),
                 .what = "the tokenizer has a token that the model does not know",
                 .expected = fmt::format("ids from 0 to {}", vocab_size - 1),
                 .found = fmt::format(
                     "{} for '{}'", id,
                     model.tokenizer.Decode(std::vector<int32_t>{id}, SpecialTokens::kShow)),
                 .todo = "Fetch tokenizer.json and config.json of one model"});
  }
  return ids;
}

void AddDtypeOption(CLI::App& command, std::string* dtype) {
  command
      .add_option("--dtype", *dtype, "type of activations and of weights that are not quantised")
      ->check(CLI::IsMember({"bfloat16", "float32"}))
      ->capture_default_str();
}

void AddThreadsOption(CLI::App& command, int* threads) {
  command.add_option("--threads", *threads, "threads; 0: one for each CPU of this process")
      ->check(Between(0, 1024))
      ->capture_default_str();
}

}  // namespace quatrain
