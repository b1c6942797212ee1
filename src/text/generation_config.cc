#include "text/generation_config.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"

namespace quatrain {
namespace {

// Null for a file that does not exist.
Json ReadObject(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return nullptr;
  Json json = ParseJson(ReadFile(path), path.string());
  if (!json.is_object()) {
    throw Error(ErrorCode::kData, {.where = path.string(),
                                   .what = "not a JSON object",
                                   .found = json.type_name(),
                                   .todo = "Fetch the file again."});
  }
  return json;
}

int32_t CheckedTokenId(const Json& id, const std::filesystem::path& path) {
  if (id.is_number_integer() && id >= 0 && id <= std::numeric_limits<int32_t>::max()) {
    return id.get<int32_t>();
  }
  throw Error(ErrorCode::kData, {.where = path.string(),
                                 .what = "eos_token_id is not a token id",
                                 .expected = "a number or a list of numbers",
                                 .found = DumpJson(id),
                                 .todo = "Correct the file."});
}

std::vector<int32_t> StopIdsOf(const std::filesystem::path& path) {
  const Json config = ReadObject(path);
  std::vector<int32_t> ids;
  if (config.is_null() || !config.contains("eos_token_id")) return ids;
  const Json& eos = config["eos_token_id"];
  if (eos.is_null()) return ids;
  if (!eos.is_array()) return {CheckedTokenId(eos, path)};
  for (const Json& id : eos) ids.push_back(CheckedTokenId(id, path));
  return ids;
}

std::vector<int32_t> EosTokenOf(const std::filesystem::path& path, const Tokenizer& tokenizer) {
  const Json config = ReadObject(path);
  if (config.is_null() || !config.contains("eos_token")) return {};
  const Json& token = config["eos_token"];
  const Json& text = token.is_object() && token.contains("content") ? token["content"] : token;
  if (text.is_null()) return {};
  if (text.is_string()) {
    if (const auto id = tokenizer.TokenId(text.get<std::string>())) return {*id};
  }
  throw Error(ErrorCode::kData, {.where = path.string(),
                                 .what = "eos_token is not a token of tokenizer.json",
                                 .found = DumpJson(token),
                                 .todo = "Correct the file."});
}

}  // namespace

GenerationConfig LoadGenerationConfig(const std::filesystem::path& model_dir,
                                      const Tokenizer& tokenizer) {
  std::vector<int32_t> ids = StopIdsOf(model_dir / "generation_config.json");
  if (ids.empty()) ids = StopIdsOf(model_dir / "config.json");
  if (ids.empty()) ids = EosTokenOf(model_dir / "tokenizer_config.json", tokenizer);
  if (ids.empty()) {
    Log().warn("{}: no file names a stop token; texts end at the length limit", model_dir.string());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return {std::move(ids)};
}

}  // namespace quatrain
