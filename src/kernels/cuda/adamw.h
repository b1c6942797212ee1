// AdamW and the next weight in one pass on the device: the contract of kernels/adamw.h, bit for bit
// (no fused steps), with two differences: tasks are launched one by one, and a master that left the
// range of BF16 weights is reported after the fact, through counters.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <optional>

#include "kernels/adamw.h"

namespace quatrain::cuda {

// In device memory; zero it (cudaMemsetAsync) before the first task of a step.
struct AdamWCounters {
  unsigned long long num_flipped_codes = 0;
  unsigned long long num_changed_scales = 0;
  unsigned long long bad = 0;  // ~(flat index) of the task's first bad master, 0 if none
};

// First element, counted row by row, without a BF16 weight (NaN, Inf or beyond); of several tasks
// that share counters, the smallest index.
inline std::optional<int64_t> FirstBadElement(const AdamWCounters& counters) {
  if (counters.bad == 0) return std::nullopt;
  return static_cast<int64_t>(~counters.bad);
}

// Pointers of the task are device memory, 16-byte aligned; out_features * in_features is a multiple
// of 8, and so is the group size. Error(kShape) otherwise. Flips and changed scales are counted for
// groups of 32, 64, 128 and 256 only, against the codes of the old master, which are those that
// stand there (AdamWTask): they are made again in registers and not read.
void AdamWUpdate(const AdamWStep& step, const AdamWTask& task, AdamWCounters* counters,
                 cudaStream_t stream);

}  // namespace quatrain::cuda
