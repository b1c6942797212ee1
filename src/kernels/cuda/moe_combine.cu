// The combine: each token's outputs of its experts, weighted and added in the order of slots.
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/moe.h"

namespace quatrain::cuda {
namespace {

constexpr int kCombineThreads = 128;

struct CombineParameters {
  const BFloat16* y;
  const float* weights;
  const int32_t* slot_row;
  const BFloat16* residual;
  BFloat16* out;
  int num_slots;
  int hidden;
};

// Eight outputs a thread.
__global__ void __launch_bounds__(kCombineThreads) CombineKernel(CombineParameters p) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t token = blockIdx.x;
  const int d = 8 * static_cast<int>(blockIdx.y * kCombineThreads + threadIdx.x);
  if (d >= p.hidden) return;
  float sum[8] = {};
  for (int slot = 0; slot < p.num_slots; ++slot) {
    const int64_t at = token * p.num_slots + slot;
    const float weight = p.weights[at];
    const uint4 y =
        *reinterpret_cast<const uint4*>(p.y + static_cast<int64_t>(p.slot_row[at]) * p.hidden + d);
    const uint32_t pairs[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] = CombineStep(weight, LowOfPair(pairs[i]), sum[2 * i]);
      sum[2 * i + 1] = CombineStep(weight, HighOfPair(pairs[i]), sum[2 * i + 1]);
    }
  }
  uint32_t out[4];
  const int64_t at = token * p.hidden + d;
  uint4 residual = {};
  if (p.residual != nullptr) residual = *reinterpret_cast<const uint4*>(p.residual + at);
  const uint32_t old[4] = {residual.x, residual.y, residual.z, residual.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = RoundPair(sum[2 * i], sum[2 * i + 1]);
    if (p.residual != nullptr) {
      out[i] = RoundPair(ResidualSum(LowOfPair(old[i]), LowOfPair(out[i])),
                         ResidualSum(HighOfPair(old[i]), HighOfPair(out[i])));
    }
  }
  *reinterpret_cast<uint4*>(p.out + at) = make_uint4(out[0], out[1], out[2], out[3]);
}

}  // namespace

void MoeCombine(const MoeCombineArgs& args, cudaStream_t stream, LaunchOrder order) {
  if (args.hidden <= 0 || args.hidden % 8 != 0) {
    throw Error(ErrorCode::kShape, ErrorParts{.where = "combine of experts",
                                              .expected = "a hidden size that is a multiple of 8",
                                              .found = fmt::format("{}", args.hidden)});
  }
  if (args.num_tokens == 0) return;
  const CombineParameters p = {args.y,
                               args.routing.weights,
                               args.routing.slot_row,
                               args.residual,
                               args.out,
                               static_cast<int>(args.num_slots),
                               static_cast<int>(args.hidden)};
  const int64_t per_cta = 8 * kCombineThreads;
  LaunchKernel({.grid = dim3(static_cast<unsigned>(args.num_tokens),
                             static_cast<unsigned>((args.hidden + per_cta - 1) / per_cta)),
                .block = dim3(kCombineThreads),
                .stream = stream,
                .order = order},
               CombineKernel, p);
}

}  // namespace quatrain::cuda
