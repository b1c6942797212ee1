#include "io/safetensors_writer.h"

#include <sys/stat.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/json.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

constexpr size_t kHeaderAlignment = 8;
constexpr uint64_t kAnyBytes = std::numeric_limits<uint64_t>::max();

// What a file takes on disk, 0 if there is none; holes take nothing.
uint64_t AllocatedBytes(const fs::path& path) {
  struct stat status = {};
  return stat(path.c_str(), &status) == 0 ? static_cast<uint64_t>(status.st_blocks) * 512 : 0;
}

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// Bytes of a planned tensor. Error kData if its name or shape cannot be written.
uint64_t CheckedBytes(const TensorPlan& tensor, const fs::path& folder) {
  const auto bytes = BytesOf(tensor.dtype, tensor.shape);
  const bool is_reserved = tensor.name.empty() || tensor.name == "__metadata__";
  if (bytes && !is_reserved) return *bytes;
  throw Error(
      ErrorCode::kData,
      {.where = fmt::format("{}: tensor '{}'", folder.string(), tensor.name),
       .what =
           is_reserved ? "the name cannot be written to a safetensors file" : "impossible shape",
       .found = fmt::format("{} {}", DTypeName(tensor.dtype), DumpJson(Json(tensor.shape)))});
}

}  // namespace

// A file of the output.
struct SafetensorsWriter::Shard {
  std::string file_name = {};
  std::vector<const TensorPlan*> tensors = {};  // only during construction
  std::string header = {};                      // length, JSON and padding
  uint64_t data_bytes = 0;
  size_t num_unwritten = 0;
  std::unique_ptr<FileWriter> writer = nullptr;

  void LayOut(std::unordered_map<std::string, Place>& places, size_t shard_index);
  uint64_t file_bytes() const { return header.size() + data_bytes; }
};

// Where the bytes of a tensor go.
struct SafetensorsWriter::Place {
  size_t shard = 0;
  uint64_t offset = 0;  // in the file
  uint64_t bytes = 0;
  bool is_written = false;
};

// Orders the tensors, fixes their places and makes the header.
void SafetensorsWriter::Shard::LayOut(std::unordered_map<std::string, Place>& places,
                                      size_t shard_index) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorPlan* a, const TensorPlan* b) {
    return a->dtype != b->dtype ? a->dtype > b->dtype : a->name < b->name;
  });
  header = R"({"__metadata__":{"format":"pt"})";
  for (const TensorPlan* tensor : tensors) {
    Place& place = places.at(tensor->name);
    place.shard = shard_index;
    place.offset = data_bytes;
    data_bytes += place.bytes;
    header += fmt::format(R"(,{}:{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})",
                          DumpJson(Json(tensor->name)), DTypeName(tensor->dtype),
                          DumpJson(Json(tensor->shape)), place.offset, data_bytes);
  }
  header += '}';
  header.resize((header.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  std::string length;
  for (size_t i = 0; i < sizeof(uint64_t); ++i)
    length += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  header.insert(0, length);
  for (const TensorPlan* tensor : tensors) places.at(tensor->name).offset += header.size();
  num_unwritten = tensors.size();
  tensors.clear();
}

SafetensorsWriter::SafetensorsWriter(const fs::path& folder, const std::vector<TensorPlan>& plan,
                                     const SafetensorsWriterOptions& options)
    : folder_(folder),
      existing_file_(options.shard_files == ShardFiles::kFresh ? ExistingFile::kTruncate
                                                               : ExistingFile::kKeep) {
  QT_CHECK(!plan.empty());
  CutIntoShards(plan, options.max_shard_bytes);
  has_index_ = shards_.size() > 1 || options.index_rule == IndexRule::kAlways;
  for (size_t i = 0; i < shards_.size(); ++i) {
    shards_[i].LayOut(places_, i);
    shards_[i].file_name =
        has_index_ ? fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size())
                   : "model.safetensors";
  }
  CheckDiskSpace();
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::CutIntoShards(const std::vector<TensorPlan>& plan,
                                      uint64_t max_shard_bytes) {
  uint64_t shard_bytes = 0;
  shards_.emplace_back();
  for (const TensorPlan& tensor : plan) {
    const uint64_t bytes = CheckedBytes(tensor, folder_);
    if (!places_.emplace(tensor.name, Place{.bytes = bytes}).second) {
      throw Error(ErrorCode::kData,
                  {.where = fmt::format("{}: tensor '{}'", folder_.string(), tensor.name),
                   .what = "two tensors of one name cannot be written"});
    }
    if (!shards_.back().tensors.empty() && shard_bytes + bytes > max_shard_bytes) {
      shards_.emplace_back();
      shard_bytes = 0;
    }
    shards_.back().tensors.push_back(&tensor);
    shard_bytes += bytes;
    total_bytes_ += bytes;
  }
}

void SafetensorsWriter::CheckDiskSpace() const {
  uint64_t needed = has_index_ ? IndexText().size() : 0;
  for (const Shard& shard : shards_) {
    const uint64_t held =
        existing_file_ == ExistingFile::kKeep ? AllocatedBytes(folder_ / shard.file_name) : 0;
    needed += shard.file_bytes() - std::min(held, shard.file_bytes());
  }
  const uint64_t free = FreeDiskBytes(folder_);
  if (needed <= free) return;
  throw Error(ErrorCode::kResource,
              {.where = folder_.string(),
               .what = fmt::format("the disk lacks {} bytes for the tensors", needed - free),
               .expected = fmt::format("{} bytes free", needed),
               .found = fmt::format("{}", free),
               .todo = existing_file_ == ExistingFile::kTruncate
                           ? "Free some space, or choose another place. Nothing was written."
                           : "Free some space; what was written before is kept."});
}

// Counts a tensor as written; its shard, and where in it the bytes go.
SafetensorsWriter::Shard& SafetensorsWriter::TakePlace(std::string_view name, uint64_t* offset,
                                                       uint64_t bytes) {
  const auto found = places_.find(std::string(name));
  QT_CHECK(found != places_.end(), "tensor '{}' was not planned", name);
  Place& place = found->second;
  QT_CHECK(!place.is_written, "tensor '{}' is written twice", name);
  QT_CHECK(bytes == kAnyBytes || bytes == place.bytes, "tensor '{}' has {} bytes, planned were {}",
           name, bytes, place.bytes);
  place.is_written = true;
  *offset = place.offset;
  ++num_written_;
  return shards_[place.shard];
}

void SafetensorsWriter::CloseIfWhole(Shard& shard) {
  if (--shard.num_unwritten != 0 || shard.writer == nullptr) return;
  shard.writer->Close();
  shard.writer.reset();
}

void SafetensorsWriter::Write(std::string_view name, std::span<const std::byte> bytes) {
  uint64_t offset = 0;
  Shard& shard = TakePlace(name, &offset, bytes.size());
  if (shard.writer == nullptr) {
    shard.writer = std::make_unique<FileWriter>(folder_ / shard.file_name, existing_file_);
    shard.writer->WriteAt(0, AsBytes(shard.header));
  }
  shard.writer->WriteAt(offset, bytes);
  CloseIfWhole(shard);
}

void SafetensorsWriter::MarkWritten(std::string_view name) {
  QT_CHECK(existing_file_ == ExistingFile::kKeep, "nothing is resumed");
  uint64_t offset = 0;
  CloseIfWhole(TakePlace(name, &offset, kAnyBytes));
}

void SafetensorsWriter::Sync() {
  for (Shard& shard : shards_) {
    if (shard.writer != nullptr) shard.writer->Sync();
  }
}

void SafetensorsWriter::Finish() {
  QT_CHECK(num_written_ == places_.size(), "{} of {} planned tensors were written", num_written_,
           places_.size());
  if (!has_index_) return;
  FileWriter writer(folder_ / "model.safetensors.index.json");
  writer.Write(AsBytes(IndexText()));
  writer.Close();
}

std::vector<std::string> SafetensorsWriter::file_names() const {
  std::vector<std::string> names;
  for (const Shard& shard : shards_) names.push_back(shard.file_name);
  return names;
}

std::string SafetensorsWriter::IndexText() const {
  std::vector<std::pair<std::string, size_t>> shard_of;
  for (const auto& [name, place] : places_) shard_of.emplace_back(name, place.shard);
  std::sort(shard_of.begin(), shard_of.end());
  // Lines as json.dumps(indent=2) breaks them. Not through a Json object, whose insertion is
  // linear.
  std::string text = fmt::format(
      "{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{", total_bytes_);
  for (const auto& [name, shard] : shard_of) {
    text += fmt::format("{}\n    {}: \"{}\"", text.back() == '{' ? "" : ",", DumpJson(Json(name)),
                        shards_[shard].file_name);
  }
  return text + "\n  }\n}\n";
}

}  // namespace quatrain
