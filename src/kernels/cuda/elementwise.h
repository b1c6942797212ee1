// Row-wise steps of the decoder on the device, in the canonical order (docs/numerics.md, "GPU
// order", rules 3 to 6). The contracts are those of kernels/elementwise.h; the order of the sums is
// the GPU's, so RMSNorm and SwiGLU equal the CPU's by tolerance, RoPE, residual and embedding by
// bits.
//
// All pointers are device memory, 16-byte aligned; row lengths and strides are multiples of 8.
// Every launch reads activations only after griddepcontrol.wait. Error(kShape) for shapes outside
// the contract.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/cuda/launch.h"

namespace quatrain::cuda {

// out = table_VD[token_ids]. Ids lie in [0, V).
struct EmbeddingArgs {
  const BFloat16* table = nullptr;     // [V, D]
  const int32_t* token_ids = nullptr;  // [rows]
  int64_t rows = 0, dim = 0;
  BFloat16* out = nullptr;  // [rows, D]
};
void Embedding(const EmbeddingArgs& args, cudaStream_t stream, LaunchOrder order);

// With `branch`: x = round(x + branch), stored, then y = round(w * round(x * inv)). D <= 16384.
struct RmsNormArgs {
  BFloat16* x = nullptr;             // [rows, D], the residual stream; written only with branch
  const BFloat16* branch = nullptr;  // [rows, D] or null
  const BFloat16* weight = nullptr;  // [D]
  int64_t rows = 0, dim = 0;
  float eps = 0.0f;
  BFloat16* y = nullptr;  // [rows, D]
};
void RmsNorm(const RmsNormArgs& args, cudaStream_t stream, LaunchOrder order);

// In place on the q and k heads at the start of each row: per-head RMSNorm (where a weight is
// given), then RoPE by the FP32 table, each rounded to BF16. head_dim 64, 128 or 256, rotated
// whole.
struct HeadNormRopeArgs {
  BFloat16* qk = nullptr;              // [tokens, row_stride]: q heads, then k heads
  int64_t tokens = 0, row_stride = 0;  // elements
  int num_q_heads = 0, num_k_heads = 0, head_dim = 0;
  const BFloat16* q_weight = nullptr;  // [H] or null
  const BFloat16* k_weight = nullptr;  // [H] or null
  float eps = 0.0f;
  const float* cos = nullptr;          // [positions, H / 2]
  const float* sin = nullptr;          // [positions, H / 2]
  const int32_t* positions = nullptr;  // [tokens]
};
void HeadNormRope(const HeadNormRopeArgs& args, cudaStream_t stream, LaunchOrder order);

// out = round(silu(gate) * up); rows of gate and up are stride elements apart.
struct SwiGluArgs {
  const BFloat16* gate = nullptr;
  const BFloat16* up = nullptr;
  int64_t rows = 0, dim = 0, stride = 0;
  BFloat16* out = nullptr;  // [rows, dim]
};
void SwiGlu(const SwiGluArgs& args, cudaStream_t stream, LaunchOrder order);

// x = round(x + y). n elements.
void AddInPlace(BFloat16* x, const BFloat16* y, int64_t n, cudaStream_t stream, LaunchOrder order);

}  // namespace quatrain::cuda
