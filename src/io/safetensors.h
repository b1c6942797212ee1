// Reads one safetensors file: a mapped header of names, and views of mapped bytes.
//
//   | 8 bytes: header length n, little-endian | n bytes: JSON, may end in spaces | tensor data, no
//   gaps |
//
// The header is {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} and may hold
// "__metadata__", a map of strings. Offsets count from the end of the header. Nothing is trusted:
// what the reference implementation refuses is refused, with the file and the tensor named.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "io/dtype.h"

namespace quatrain {

// A tensor in a mapped file. Valid as long as the SafetensorsFile or TensorSet that gave it.
struct TensorView {
  std::string name = {};
  DType dtype = DType::kU8;
  std::vector<int64_t> shape = {};  // row-major; empty for a scalar
  std::span<const std::byte> bytes =
      {};  // little-endian; the format does not promise alignment: use memcpy
  const std::filesystem::path* file = nullptr;

  // "<file>: tensor '<name>'", for the `where` of an Error.
  std::string where() const;
};

// What the header of a file says, checked against the file's size.
struct SafetensorsContent {
  std::vector<TensorView> tensors = {};              // in the order of their data
  std::map<std::string, std::string> metadata = {};  // "__metadata__", e.g. {"format": "pt"}
};

// Reads a whole file that lies in `bytes`; `path` must live as long as the views, which point at
// it. Error kData naming file and tensor: a Git LFS pointer, a header that is cut, longer than 100
// MB or not JSON, a name twice, an unknown dtype, a negative or overflowing shape, a size that
// disagrees with shape and dtype, ranges that overlap, leave a gap or end beyond the file, bytes
// behind the last tensor.
SafetensorsContent ParseSafetensors(std::span<const std::byte> bytes,
                                    const std::filesystem::path& path);

class SafetensorsFile {
 public:
  // Maps the file and parses it. Error kIo if it cannot be opened, kData as above.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::vector<TensorView>& tensors() const { return content_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return content_.metadata; }
  // The tensor of that name, or nullptr.
  const TensorView* Find(std::string_view name) const;
  const std::filesystem::path& path() const { return file_->path(); }

 private:
  std::unique_ptr<MappedFile> file_;  // on the heap: the views point at its path
  SafetensorsContent content_;
  std::unordered_map<std::string_view, size_t> index_;  // keys are the names in content_
};

// Throws Error kData if `bytes` is the text that Git LFS leaves in the place of a file it did not
// fetch.
void CheckNotLfsPointer(std::span<const std::byte> bytes, const std::filesystem::path& path);

}  // namespace quatrain
