// Sampling on the device: the contract of kernels/sample.h. Probabilities are 44-bit fixed-point
// numbers, so every sum over the vocabulary is exact and independent of its order; the token equals
// the CPU's unless a limit or the draw falls within the rounding of an exponential (about 1e-7 of
// the whole).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/sample.h"

namespace quatrain::cuda {

// A row as the device sees it.
struct DeviceSamplingRow {
  double uniform = 0.0;  // the draw, keyed by (seed, position)
  float inv_temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0: off
  int32_t is_greedy = 0;
};
DeviceSamplingRow DeviceRowOf(const SamplingRow& row);

struct SampleArgs {
  const float* logits = nullptr;                 // [R, V], rows `stride` elements apart
  int64_t rows = 0, stride = 0, vocab_size = 0;  // V at most 446464, else Error(kShape)
  const DeviceSamplingRow* sampling = nullptr;   // [R], device memory
  int32_t* tokens = nullptr;  // [R]; -1: a NaN, +inf or no finite logit in the row, or the largest
                              // one overflows when divided by the temperature
};
// Log-probabilities: LogprobBlocks and LogprobMerge with these tokens as targets.
void Sample(const SampleArgs& args, cudaStream_t stream, LaunchOrder order);

}  // namespace quatrain::cuda
