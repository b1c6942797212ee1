// Training state on disk: masters, moments and step as safetensors, the rest as JSON; resume
// continues bit for bit.
//
//   <folder>/model.safetensors (or shards)   master.<name>, exp_avg.<name>, exp_avg_sq.<name>, F32
//   <folder>/state.json                      {"step", ...} and what the caller adds
#pragma once

#include <filesystem>

#include "base/json.h"
#include "train/parameter.h"

namespace quatrain {

// The state of one moment. Under kBorrow tensors are the optimizer's own, to be written before the
// next step; under kCopy they have memory of their own.
enum class SnapshotMode { kBorrow, kCopy };
struct TrainingSnapshot {
  struct Tensor {
    std::string name;
    at::Tensor values;  // FP32, or int32 and BF16 of train/dead_zone.h; contiguous
  };
  std::vector<Tensor> tensors;
  Json state;
};
TrainingSnapshot SnapshotTraining(Parameters& parameters, const Json& state, SnapshotMode mode);

// Writes into `folder` (created). Error kIo, kResource.
void SaveTrainingState(const TrainingSnapshot& snapshot, const std::filesystem::path& folder);

// Fills masters, moments and step, writes the weights, returns the JSON. Error kData naming file
// and tensor for a state of another model.
Json LoadTrainingState(const OpContext& ctx, const std::filesystem::path& folder,
                       Parameters& parameters);

}  // namespace quatrain
