// Training state on disk: masters, moments and step as safetensors, the rest as JSON; resume
// continues bit for bit.
//
//   <folder>/model.safetensors (or shards)   master.<name>, exp_avg.<name>, exp_avg_sq.<name>, all
//   F32 <folder>/state.json                       {"step", ...} and what the caller adds
#pragma once

#include <filesystem>

#include "base/json.h"
#include "train/parameter.h"

namespace quatrain {

// Writes into `folder` (created). Error kIo, kResource.
void SaveTrainingState(Parameters& parameters, const Json& state,
                       const std::filesystem::path& folder);

// Fills masters, moments and step, writes the weights, returns the JSON. Error kData naming file
// and tensor for a state of another model.
Json LoadTrainingState(const OpContext& ctx, const std::filesystem::path& folder,
                       Parameters& parameters);

}  // namespace quatrain
