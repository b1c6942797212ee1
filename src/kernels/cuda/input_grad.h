// Gradients of inputs on the device: dX = dY W' over INT4 codes in kernel layout, by wgmma, for one
// matrix or one a expert. docs/numerics.md, "GPU order", rule 9: one chain over N in steps of 16.
// A row's bits depend on that row alone: neither on the other rows nor on the device's size.
//
// Nothing here needs a count on the host: a CUDA graph captured once serves any routing of the same
// number of rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/packed_layout.h"

namespace quatrain::cuda {

// Device memory, 16-byte aligned. Letters: E experts, R rows, sorted by expert.
struct InputGradArgs {
  const BFloat16* dy = nullptr;  // [R, N]
  const void* weight = nullptr;  // codes and finite scales, one expert after the other
  PackedShape shape = {};        // of one expert: INT4, N and K multiples of 8
  int64_t num_rows = 0;
  int64_t num_experts = 1;                // E
  const int32_t* expert_begin = nullptr;  // [E + 1]; null: one expert that has all rows
  BFloat16* dx = nullptr;                 // [R, K]
};
// Error(kShape) for shapes outside the contract.
void InputGrad(const InputGradArgs& args, cudaStream_t stream, LaunchOrder order);

}  // namespace quatrain::cuda
