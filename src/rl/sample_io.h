// Samples on disk: what generation and reward gave, as JSON with binary values (CBOR writes them;
// JSON text does not). Partial rollouts in a checkpoint, and dumps of whole rollouts.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "rl/rollout.h"

namespace quatrain {

// Completion, reward and draw key, without the prompt.
Json SampleToJson(const Sample& sample);
// The same back into a sample that has its prompt. Throws nlohmann::json::exception on damage.
void SampleFromJson(const Json& json, const RolloutText& text, Sample& sample);

// Whole samples of one rollout, prompts included, atomically. Error kIo.
void SaveRolloutData(const std::filesystem::path& path, int64_t rollout,
                     std::span<const Sample> samples);
// Error kIo, or kData naming the file that is no such dump.
std::vector<Sample> LoadRolloutData(const std::filesystem::path& path, const RolloutText& text);

// A path in which "{rollout_id}" stands for the rollout's number, from 1 as in metrics.jsonl.
std::string WithRolloutId(std::string path, int64_t rollout);

}  // namespace quatrain
