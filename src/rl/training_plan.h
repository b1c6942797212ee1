// What a training run will take of memory and disk, known from config.json and the flags alone.
#pragma once

#include <cstdint>
#include <string>

#include "models/loader.h"
#include "rl/rl_config.h"

namespace quatrain {

struct TrainingPlan {
  uint64_t weight_bytes = 0;      // the start, what trains and what rolls out
  uint64_t optimizer_bytes = 0;   // FP32 masters, two moments, gradients: 16 a parameter
  uint64_t activation_bytes = 0;  // inputs of all layers for one micro-batch, which the backward
                                  // starts from
  uint64_t trace_bytes = 0;       // at most, of layers that the backward does not run again
  uint64_t checkpoint_bytes = 0;  // on disk, of one: bf16/, int4/ and the state

  uint64_t memory_bytes() const {
    return weight_bytes + optimizer_bytes + activation_bytes + trace_bytes;
  }
};

// `hf` gives the format of the quantised weights, `mode` says which tables exist. The KV cache is
// checked by the engine.
TrainingPlan PlanTraining(const RlConfig& config, const Checkpoint& hf, QatMode mode);

// Error kResource if memory, or the disk of --save, has no room for it.
void CheckTrainingPlan(const RlConfig& config, const TrainingPlan& plan);

}  // namespace quatrain
