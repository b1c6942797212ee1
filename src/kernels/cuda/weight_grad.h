// Gradients of weights on the device: dW += dy^T x per expert, FP32, by wgmma. docs/numerics.md,
// "GPU order", rule 9: one chain over the expert's rows in steps of 16, from +0, then one addition
// to the old value (of 1024 rows and more by the L2, for which numbers below 2^-126 are zero). The
// bits depend on neither the other experts nor the device's size.
//
// Nothing here needs a count on the host, and no two threads add to one element: a CUDA graph
// captured once serves any routing of the same number of rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/cuda/launch.h"

namespace quatrain::cuda {

// What becomes of the old value.
enum class OldGradient { kAdded, kReplaced };

// Device memory, 16-byte aligned; N and K are multiples of 8. Letters: E experts, R rows, sorted by
// expert.
struct WeightGradArgs {
  const BFloat16* dy = nullptr;  // [R, N]
  const BFloat16* x = nullptr;   // [R, K]
  int64_t num_rows = 0;
  int64_t out_features = 0;               // N
  int64_t in_features = 0;                // K
  int64_t num_experts = 1;                // E
  const int32_t* expert_begin = nullptr;  // [E + 1]; null: one expert that has all rows
  OldGradient old = OldGradient::kAdded;
  float* dweight = nullptr;  // [E, N, K]; an expert without rows gets + 0, or 0
};
// Error(kShape) for shapes outside the contract.
void WeightGrad(const WeightGradArgs& args, cudaStream_t stream, LaunchOrder order);

}  // namespace quatrain::cuda
