// What a model's weights and keys and values take in rollout, and its state in training.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/advice.h"

namespace quatrain {

struct MemoryNeed {
  double parameters = 0;
  double quantised_parameters = 0;
  double bf16_bytes = 0;  // of all weights
  double int4_bytes = 0;  // with the scope's weights as codes and BF16 scales
  double kv_bytes_per_token = 0;
  // Trainer state: FP32 master 4 and gradient 4, moments 8, and the weight as it is read.
  double bf16_train_bytes = 0;  // 18 a parameter
  double qat_train_bytes = 0;
};

MemoryNeed MemoryNeedOf(const AdviceInput& input, int64_t group_size);

// How weights of this many bytes sit on a machine.
struct RolloutFit {
  int64_t tp = 0;        // smallest power of two at which they fit; 0: at none
  double kv_tokens = 0;  // that find room beside them on the tp devices, in all
  double engines = 0;    // of tp devices that the machine holds
};

// Fits: weights and one sequence of context_tokens in kUsableShare of the devices' memory.
constexpr double kUsableShare = 0.85;
RolloutFit FitRollout(const AdviceInput& input, double weight_bytes);

}  // namespace quatrain
