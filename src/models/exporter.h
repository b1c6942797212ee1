// Writes a model as a Hugging Face directory, all at once or a weight at a time.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/safetensors_writer.h"
#include "models/loader.h"

namespace quatrain {

struct ExportOptions {
  std::optional<QuantScheme> scheme;  // of the quantised weights; must be set if there are any
  Json quatrain_json;                 // content of quatrain.json; null: none is written
};

// How a weight is stored: BF16, or codes of these bits and this group size.
struct WeightFormat {
  int num_bits = 0;  // 0: BF16
  int64_t group_size = 0;
};

// The files of one model, laid out before any weight exists: the table's weights in its order, then
// the unknown tensors of the source. Not thread-safe.
class ModelWriter {
 public:
  // `formats` has an entry for each row of `table`. `folder` exists. Errors of SafetensorsWriter.
  ModelWriter(const Checkpoint& source, const std::vector<WeightSpec>& table,
              const std::vector<WeightFormat>& formats, const std::filesystem::path& folder,
              const SafetensorsWriterOptions& options = {});

  // Stores a weight in the format that was planned; a dense one must be BF16. Returns a fingerprint
  // of its bytes. Each weight once, best in the order of the table: then one shard is open at most.
  uint64_t Write(const Weight& weight);
  // A weight that an earlier writer stored (options.shard_files kResumed).
  void MarkWritten(const WeightSpec& spec);
  // Copies the unknown tensors.
  void WriteUnknown();
  void MarkUnknownWritten();
  // Forces what was written to disk.
  void Sync() { writer_->Sync(); }
  // Completes the directory: index, config.json (the source's, with the new quantization_config and
  // dtype), quatrain.json, auxiliary files. Error kIo.
  void Finish(const ExportOptions& options);

  uint64_t total_bytes() const { return writer_->total_bytes(); }

 private:
  const Checkpoint& source_;
  std::filesystem::path folder_;
  std::vector<std::string> unknown_;
  std::unordered_map<std::string, WeightFormat> formats_;  // by name of the weight
  std::optional<SafetensorsWriter> writer_;
};

// The fingerprint that ModelWriter::Write gives.
uint64_t WeightHash(const Weight& weight);

// Writes a Hugging Face directory into `folder` (existing, empty): tensors, config.json (the
// source's, with the new quantization_config and dtype), the auxiliary files and unknown tensors of
// `source`. Dense weights must be BF16. Error kIo, kResource (disk).
void ExportModel(const Checkpoint& source, const ModelWeights& weights,
                 const ExportOptions& options, const std::filesystem::path& folder);

}  // namespace quatrain
