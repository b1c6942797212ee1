// The canonical linear in its plainest form, on the other operand side: the oracle of every fast
// linear kernel, and what `doctor` compares a library GEMM with. Slow.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"

namespace quatrain::cuda {

struct LinearReferenceArgs {
  const BFloat16* weight_NK = nullptr;  // row-major, w'; K a multiple of 8
  const BFloat16* x = nullptr;          // [tokens, K]
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t num_tokens = 0;
  int64_t segment_inputs = 0;  // K for one chain; SegmentInputs(N, K) of the fused matrix otherwise
  float* y_float = nullptr;    // [tokens, N], not rounded
};
void LinearReference(const LinearReferenceArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda
