// All tensors of a Hugging Face model directory: one model.safetensors, or shards listed by an
// index.
#pragma once

#include <filesystem>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/safetensors.h"

namespace quatrain {

class TensorSet {
 public:
  // Opens <path>/model.safetensors, else the shards of <path>/model.safetensors.index.json; `path`
  // may also be one .safetensors file. Error as SafetensorsFile, and kData for: an index that is
  // not JSON, has no weight_map or names a file outside the directory; shards that are not there
  // (names the first and counts them); a tensor that its shard does not hold; a directory without
  // safetensors (PyTorch pickles, GGUF and Megatron checkpoints are recognised and it is said what
  // to do). Tensors that no index entry names are left out with a logged warning.
  explicit TensorSet(const std::filesystem::path& path);

  // Shard by shard in the order of their names, inside a shard in the order of the data.
  const std::vector<TensorView>& tensors() const { return tensors_; }
  // The tensor of that name, or nullptr.
  const TensorView* Find(std::string_view name) const;
  // The same; Error kData naming the directory if there is none.
  const TensorView& Get(std::string_view name) const;
  // Bytes of all tensors.
  uint64_t total_bytes() const { return total_bytes_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  void OpenSingle(const std::filesystem::path& file);
  void OpenShards(const std::filesystem::path& index_path);
  void Add(const TensorView& tensor);

  std::filesystem::path path_;
  std::vector<SafetensorsFile> files_;
  std::vector<TensorView> tensors_;
  std::unordered_map<std::string, size_t> index_;
  uint64_t total_bytes_ = 0;
};

// Throws Error kData if `directory` holds a checkpoint of Megatron (torch_dist or its older form):
// says what to convert. Only looks at names.
void CheckNotMegatron(const std::filesystem::path& directory);

}  // namespace quatrain
