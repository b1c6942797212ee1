// The combine: each token's outputs of its experts, weighted and added in the order of slots.
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/eight_values.cuh"
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
    float y[8];
    LoadEight(p.y + static_cast<int64_t>(p.slot_row[at]) * p.hidden + d, y);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = CombineStep(weight, y[i], sum[i]);
  }
  const int64_t at = token * p.hidden + d;
  uint4 out = PackEight(sum);
  if (p.residual != nullptr) {
    out = AddEight(*reinterpret_cast<const uint4*>(p.residual + at), out);
  }
  *reinterpret_cast<uint4*>(p.out + at) = out;
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
