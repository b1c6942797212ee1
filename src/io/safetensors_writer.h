// Writes tensors as model.safetensors, or as shards with model.safetensors.index.json.
//
//   AtomicFolder folder(target);
//   SafetensorsWriter writer(folder.path(), plan);      // every name, dtype and shape, before the
//   first byte for (...) writer.Write(name, bytes); writer.Finish(); folder.Commit();
//
// The layout is a function of the plan alone: tensors go to shards in the order of the plan; in a
// shard they lie as the reference implementation puts them, widest dtype first and then by name, so
// that each is aligned and the file is byte for byte the one it would write.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "io/dtype.h"

namespace quatrain {

struct TensorPlan {
  std::string name = {};
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape = {};
};

enum class IndexRule {
  kIfSharded,  // one file is plain model.safetensors, as transformers writes it
  kAlways,     // one file too is model-00001-of-00001.safetensors with an index
};

enum class ShardFiles {
  kFresh,    // an older file of a shard's name is emptied
  kResumed,  // a file of a shard's name holds what an earlier writer of the same plan put there
};

struct SafetensorsWriterOptions {
  uint64_t max_shard_bytes =
      5'000'000'000;  // of tensor data; a larger tensor gets a shard of its own
  IndexRule index_rule = IndexRule::kIfSharded;
  ShardFiles shard_files = ShardFiles::kFresh;
};

// Not thread-safe.
class SafetensorsWriter {
 public:
  // Lays out all shards. Nothing is created if it throws: Error kData naming the tensor for a name
  // twice, an empty or reserved name or an impossible shape; kResource if the disk has not enough
  // room (says how much is missing).
  SafetensorsWriter(const std::filesystem::path& folder, const std::vector<TensorPlan>& plan,
                    const SafetensorsWriterOptions& options = {});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // All bytes of a planned tensor, little-endian, row-major. Any order, each tensor once; in the
  // order of the plan no more than one shard is open. Error kIo; a name or size that was not
  // planned is our bug (kInternal).
  void Write(std::string_view name, std::span<const std::byte> bytes);

  // A planned tensor that an earlier writer wrote, in a plan that is resumed: its bytes stay.
  void MarkWritten(std::string_view name);

  // Forces what was written to disk.
  void Sync();

  // Writes the index, if one is due. It is our bug if a planned tensor was not written.
  void Finish();

  // Bytes of all planned tensors: the index's total_size.
  uint64_t total_bytes() const { return total_bytes_; }
  // Names of the files, in order; without the index.
  std::vector<std::string> file_names() const;

 private:
  struct Shard;
  struct Place;

  Shard& TakePlace(std::string_view name, uint64_t* offset, uint64_t bytes);
  void CloseIfWhole(Shard& shard);
  void CutIntoShards(const std::vector<TensorPlan>& plan, uint64_t max_shard_bytes);
  void CheckDiskSpace() const;
  std::string IndexText() const;

  std::filesystem::path folder_;
  ExistingFile existing_file_;
  bool has_index_ = false;
  uint64_t total_bytes_ = 0;
  std::vector<Shard> shards_;
  std::unordered_map<std::string, Place> places_;
  size_t num_written_ = 0;
};

}  // namespace quatrain
