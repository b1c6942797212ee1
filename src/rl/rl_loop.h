// The RL loop: rollout, reward, train, update, evaluate, save. Start reading here.
#pragma once

#include "base/json.h"
#include "rl/rl_config.h"

namespace quatrain {

// Runs a whole training. `flags` is what the user set, saved as <save>/config.json. Writes
// metrics.jsonl, samples.jsonl, train.log and iter_<N>/{bf16,int4,state} under --save. Ctrl-C
// finishes the rollout in hand or drops it, saves, and throws kInterrupted with the way to resume.
void RunTraining(const RlConfig& config, const Json& flags);

}  // namespace quatrain
