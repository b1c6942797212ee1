// A local Hugging Face model directory: its configuration, its tensors, and the files that travel
// with them.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "io/tensor_set.h"

namespace quatrain {

class HfRepo {
 public:
  // Error kData naming the path: not a directory (says how to download one), a Megatron checkpoint,
  // no config.json or one that is not a JSON object; and what TensorSet throws.
  explicit HfRepo(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const { return directory_; }
  const Json& config() const { return config_; }
  // generation_config.json, if the directory has one.
  const std::optional<Json>& generation_config() const { return generation_config_; }
  const TensorSet& tensors() const { return tensors_; }

  // Names of the files that a converted copy needs beside tensors and config.json, sorted:
  // tokenizer, vocabulary and merges, chat templates, generation and preprocessor configuration,
  // remote code (*.py).
  std::vector<std::string> AuxiliaryFiles() const;
  // Copies them into an existing folder, links followed. Error kIo.
  void CopyAuxiliaryFiles(const std::filesystem::path& to) const;

 private:
  std::filesystem::path directory_;
  Json config_;
  std::optional<Json> generation_config_;
  TensorSet tensors_;
};

}  // namespace quatrain
