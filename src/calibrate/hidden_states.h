// Hidden states of many sequences between two layers: what a layer reads, and what it leaves for
// the next.
//
// They live in memory, or in files of a folder, "<name>-<layer>.bin": then calibration takes memory
// for one batch at a time, and a later process can go on behind the last whole layer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "ops/tensor.h"

namespace quatrain {

// Not thread-safe.
class HiddenStates {
 public:
  // One entry, BF16 [num_tokens, hidden_size], for each element of `num_tokens`. Without a folder
  // they are kept in memory.
  HiddenStates(std::vector<int64_t> num_tokens, int64_t hidden_size,
               std::optional<std::filesystem::path> folder, std::string name = "hidden");

  // Goes on with the states that an earlier process left for `layer` in the folder. Error kData if
  // they are not there or of another size.
  void Resume(int64_t layer);

  // What the current layer reads.
  at::Tensor Read(size_t entry) const;
  // What the next layer will read; an entry that no layer will read may be left out.
  void Write(size_t entry, const at::Tensor& x_TD);
  // What Write stored last; it may be written again.
  at::Tensor ReadWritten(size_t entry) const;
  // The next layer becomes the current one. Before the first call there is none: Write then stores
  // embeddings. In files: what was written is on disk when this returns; the states of the layer
  // before stay until DropOlder.
  void Advance();
  void DropOlder();

  int64_t layer() const { return layer_; }
  uint64_t size_bytes() const { return offsets_.back(); }  // of one layer's states
  const std::optional<std::filesystem::path>& folder() const { return folder_; }

 private:
  std::filesystem::path FileOf(int64_t layer) const;
  at::Tensor ReadFrom(const FileReader& reader, size_t entry) const;

  std::vector<int64_t> num_tokens_;
  int64_t hidden_size_;
  std::vector<uint64_t> offsets_;  // of each entry in a file, and the size of the file
  std::optional<std::filesystem::path> folder_;
  std::string name_;
  int64_t layer_ = -1;
  std::vector<at::Tensor> current_, next_;  // in memory
  std::unique_ptr<FileReader> reader_;      // in files
  std::unique_ptr<FileWriter> writer_;
  std::unique_ptr<FileReader> written_;  // reads what writer_ writes
};

}  // namespace quatrain
