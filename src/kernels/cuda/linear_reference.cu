#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_reference.h"

namespace quatrain::cuda {
namespace {

// Inputs k, k + 1 of a row, zero past its end. K is even.
__device__ uint32_t LoadPair(const BFloat16* row, int64_t k, int64_t end) {
  return row != nullptr && k < end ? *reinterpret_cast<const uint32_t*>(row + k) : 0u;
}

// One warp: 16 rows of W (m16 side) by 8 tokens (n8 side).
__global__ void ReferenceKernel(LinearReferenceArgs args) {
  const int64_t tile = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  const int64_t row = tile * 16 + lane / 4;
  if (tile * 16 >= args.out_features) return;
  const int64_t k = args.in_features;
  const int64_t token = blockIdx.y * 8 + lane / 4;
  const BFloat16* upper = row < args.out_features ? args.weight_NK + row * k : nullptr;
  const BFloat16* lower = row + 8 < args.out_features ? args.weight_NK + (row + 8) * k : nullptr;
  const BFloat16* x = token < args.num_tokens ? args.x + token * k : nullptr;
  float total[4] = {0, 0, 0, 0};
  for (int64_t begin = 0; begin < k; begin += args.segment_inputs) {
    const int64_t end = min(k, begin + args.segment_inputs);
    float sum[4] = {0, 0, 0, 0};
    for (int64_t step = begin; step < end; step += 16) {
      const int64_t at = step + lane % 4 * 2;
      const uint32_t b[2] = {LoadPair(x, at, end), LoadPair(x, at + 8, end)};
      ChainStep(sum, LoadPair(upper, at, end), LoadPair(lower, at, end),
                LoadPair(upper, at + 8, end), LoadPair(lower, at + 8, end), b);
    }
    for (int i = 0; i < 4; ++i) total[i] = begin == 0 ? sum[i] : __fadd_rn(total[i], sum[i]);
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t n = row + i / 2 * 8;
    const int64_t m = blockIdx.y * 8 + lane % 4 * 2 + i % 2;
    if (n < args.out_features && m < args.num_tokens)
      args.y_float[m * args.out_features + n] = total[i];
  }
}

}  // namespace

void LinearReference(const LinearReferenceArgs& args, cudaStream_t stream) {
  if (args.num_tokens == 0) return;
  const int64_t warps = (args.out_features + 15) / 16;
  LaunchKernel({.grid = dim3(static_cast<unsigned>((warps + 3) / 4),
                             static_cast<unsigned>((args.num_tokens + 7) / 8)),
                .block = dim3(128),
                .stream = stream},
               ReferenceKernel, args);
}

}  // namespace quatrain::cuda
