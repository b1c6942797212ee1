// The RL loop: rollout, reward, train, update, evaluate, save. Start reading here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/json.h"
#include "rl/rl_config.h"

namespace quatrain {

// Who looks on while a training runs; each may be empty. Called on the training thread.
struct TrainingWatchers {
  // Everything is loaded and the run directory is there.
  std::function<void(int64_t start_rollout, int64_t num_rollouts)> on_start;
  // What it does now, e.g. "sampled 120/256", within the rollout of this index.
  std::function<void(int64_t rollout, const std::string& what)> on_note;
  std::function<void(const Json& row)> on_row;  // a row of metrics.jsonl, just written
};

// Runs a whole training. `flags` is what the user set, saved as <save>/config.json. Writes
// metrics.jsonl, samples.jsonl, train.log and iter_<N>/{bf16,int4,state} under --save. Ctrl-C
// finishes the rollout in hand or drops it, saves, and throws kInterrupted with the way to resume.
void RunTraining(const RlConfig& config, const Json& flags, const TrainingWatchers& watchers = {});

}  // namespace quatrain
