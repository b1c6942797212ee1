// Scalars of a run as a TensorBoard event file, beside metrics.jsonl.
//
// A file is a sequence of records: length (uint64), masked CRC32C of the length, the bytes of one
// Event, masked CRC32C of the bytes; integers little-endian. An Event is a protocol buffer
// (tensorflow/core/util/event.proto), of which four fields are needed: written here directly
// (docs/decisions/0004-tensorboard-by-hand.md). Source of the record format:
// tensorflow/tensorflow:tensorflow/core/lib/io/record_writer.cc.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace quatrain {

// Castagnoli's CRC, polynomial 0x1EDC6F41, reflected; "123456789" gives 0xE3069283.
uint32_t Crc32c(std::string_view bytes);

// One Event and its record. `wall_time`: seconds since 1970.
struct ScalarEvent {
  double wall_time = 0.0;
  int64_t step = 0;
  std::vector<std::pair<std::string, float>> scalars;
};
std::string EncodeScalarEvent(const ScalarEvent& event);
std::string FrameRecord(std::string_view event);

// Not thread-safe.
class TensorBoardWriter {
 public:
  // Makes `folder` and a new file events.out.tfevents.<seconds>.<host>.<process> in it. With
  // `first_step` TensorBoard forgets what older files of the folder say of it and later steps: a
  // resumed run writes them again. Error kIo.
  TensorBoardWriter(const std::filesystem::path& folder, std::optional<int64_t> first_step);

  // Every number of a metrics row under its name, at the step row["rollout"]. Error kIo when the
  // disk is full.
  void Append(const Json& row);

  const std::filesystem::path& path() const { return path_; }

 private:
  void Write(std::string_view event);

  std::filesystem::path path_;
  std::optional<FileWriter> file_;
};

}  // namespace quatrain
