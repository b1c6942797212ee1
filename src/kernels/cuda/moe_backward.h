// What a mixture of experts' backward needs beside its products: the gradients of combine, SwiGLU
// and gather. Gradients between kernels are BF16, as the tensor cores read them; the arithmetic is
// FP32. docs/numerics.md, "GPU order", rule 9.
//
// Letters as in moe.h: T tokens, S slots, R = T * S rows sorted by expert, D hidden, I inner size.
// All pointers are device memory, 16-byte aligned; D and I are multiples of 8. No sum is made with
// atomics. Error(kShape) for shapes outside the contract.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/cuda/launch.h"

namespace quatrain::cuda {

// dy[row] = round(w * dout[token]); dweights = sum over D of dout[token] * y[row].
struct MoeCombineGradArgs {
  const BFloat16* dout = nullptr;     // [T, D]
  const BFloat16* y = nullptr;        // [R, D], the forward's
  const float* weights = nullptr;     // [T, S]
  const int32_t* slot_row = nullptr;  // [T, S]
  int64_t num_tokens = 0, num_slots = 0, hidden = 0;
  BFloat16* dy = nullptr;     // [R, D]
  float* dweights = nullptr;  // [T, S]
};
void MoeCombineGrad(const MoeCombineGradArgs& args, cudaStream_t stream, LaunchOrder order);

// h = silu(gate) * up: both gradients, side by side as gate and up are.
struct SwiGluGradArgs {
  const BFloat16* gate_up = nullptr;  // [R, 2 I]
  const BFloat16* dh = nullptr;       // [R, I]
  int64_t rows = 0, inner = 0;
  BFloat16* dgate_up = nullptr;  // [R, 2 I]
};
void SwiGluGrad(const SwiGluGradArgs& args, cudaStream_t stream, LaunchOrder order);

// dx[token] = round(other + sum over slots ascending of drows[row]); other: FP32 or null, then +0.
struct MoeGatherGradArgs {
  const BFloat16* drows = nullptr;    // [R, D]
  const int32_t* slot_row = nullptr;  // [T, S]
  const float* other = nullptr;       // [T, D]
  int64_t num_tokens = 0, num_slots = 0, hidden = 0;
  BFloat16* dx = nullptr;  // [T, D]
};
void MoeGatherGrad(const MoeGatherGradArgs& args, cudaStream_t stream, LaunchOrder order);

}  // namespace quatrain::cuda
