#include "io/hf_repo.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 5> kAuxiliaryPrefixes = {
    "tokenizer", "chat_template", "vocab", "merges", "preprocessor_config"};
constexpr std::array<std::string_view, 5> kAuxiliaryNames = {
    "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "processor_config.json", "video_preprocessor_config.json"};
constexpr std::array<std::string_view, 4> kAuxiliaryExtensions = {".py", ".model", ".tiktoken",
                                                                  ".jinja"};

bool IsAuxiliary(const std::string& name) {
  const std::string extension = fs::path(name).extension().string();
  return std::any_of(kAuxiliaryPrefixes.begin(), kAuxiliaryPrefixes.end(),
                     [&](std::string_view prefix) { return name.starts_with(prefix); }) ||
         std::find(kAuxiliaryNames.begin(), kAuxiliaryNames.end(), name) != kAuxiliaryNames.end() ||
         std::find(kAuxiliaryExtensions.begin(), kAuxiliaryExtensions.end(), extension) !=
             kAuxiliaryExtensions.end();
}

// Returns the directory, or says why it cannot be a model.
const fs::path& CheckIsModel(const fs::path& directory) {
  const bool exists = fs::exists(directory);
  if (!exists || !fs::is_directory(directory)) {
    throw Error(ErrorCode::kData,
                {.where = directory.string(),
                 .expected = "a local Hugging Face model directory",
                 .found = exists ? "a file" : "nothing of that name",
                 .todo = "Models are not fetched from the hub; download one first, e.g. "
                         "huggingface-cli download "
                         "Qwen/Qwen3-30B-A3B --local-dir Qwen3-30B-A3B, and pass its directory."});
  }
  if (fs::exists(directory / "config.json")) return directory;
  CheckNotMegatron(directory);
  throw Error(ErrorCode::kData, {.where = directory.string(),
                                 .what = "no config.json",
                                 .expected = "a Hugging Face model directory",
                                 .todo = "Check the path, and that the download is complete."});
}

Json ReadObject(const fs::path& path) {
  const std::string text = ReadFile(path);
  CheckNotLfsPointer(std::as_bytes(std::span(text)), path);
  Json json = ParseJson(text, path.string());
  if (json.is_object()) return json;
  throw Error(ErrorCode::kData,
              {.where = path.string(), .expected = "a JSON object", .found = json.type_name()});
}

}  // namespace

HfRepo::HfRepo(const fs::path& directory)
    : directory_(CheckIsModel(directory)),
      config_(ReadObject(directory / "config.json")),
      tensors_(directory) {
  const fs::path generation_path = directory / "generation_config.json";
  if (fs::exists(generation_path)) generation_config_ = ReadObject(generation_path);
}

std::vector<std::string> HfRepo::AuxiliaryFiles() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && IsAuxiliary(name)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void HfRepo::CopyAuxiliaryFiles(const fs::path& to) const {
  for (const std::string& name : AuxiliaryFiles()) {
    const MappedFile source(directory_ / name);
    FileWriter target(to / name);
    target.Write(source.bytes());
    target.Close();
  }
}

}  // namespace quatrain
