// Plan: memory-bound steps, eight elements (16 bytes) a thread. A warp has a (token, slot) in the
// gradient of combine, whose dot product is a tree over its lanes; the others are element by
// element.
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/eight_values.cuh"
#include "kernels/cuda/moe_backward.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 8;

__device__ __forceinline__ int64_t ThreadIndex() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// A lane's chain over its elements, ascending; then lanes 16, 8, 4, 2, 1 apart are added.
__global__ void __launch_bounds__(kThreads) CombineGradKernel(MoeCombineGradArgs p) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t slot = ThreadIndex() / 32;
  if (slot >= p.num_tokens * p.num_slots) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float weight = p.weights[slot];
  const int64_t row = p.slot_row[slot];
  const BFloat16* const dout = p.dout + slot / p.num_slots * p.hidden;
  float sum = 0.0f;
  for (int64_t i = lane * kEach; i < p.hidden; i += 32 * kEach) {
    float d[kEach], y[kEach];
    LoadEight(dout + i, d);
    LoadEight(p.y + row * p.hidden + i, y);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      sum = FmaRn(d[j], y[j], sum);
      d[j] = MulRn(weight, d[j]);
    }
    StoreEight(p.dy + row * p.hidden + i, d);
  }
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) {
    sum = AddRn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, distance));
  }
  if (lane == 0) p.dweights[slot] = sum;
}

__global__ void __launch_bounds__(kThreads) SwiGluGradKernel(SwiGluGradArgs p) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t parts = p.inner / kEach;
  const int64_t index = ThreadIndex();
  if (index >= p.rows * parts) return;
  const int64_t row = index / parts;
  const int64_t at = row * 2 * p.inner + index % parts * kEach;
  float gate[kEach], up[kEach], dh[kEach];
  LoadEight(p.gate_up + at, gate);
  LoadEight(p.gate_up + at + p.inner, up);
  LoadEight(p.dh + index * kEach, dh);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const float sigmoid = ReciprocalRn(AddRn(1.0f, Ex2(MulRn(-gate[j], kLog2E))));
    const float silu = MulRn(gate[j], sigmoid);
    const float slope = FmaRn(silu, AddRn(1.0f, -sigmoid), sigmoid);
    gate[j] = MulRn(MulRn(dh[j], up[j]), slope);
    up[j] = MulRn(dh[j], silu);
  }
  StoreEight(p.dgate_up + at, gate);
  StoreEight(p.dgate_up + at + p.inner, up);
}

__global__ void __launch_bounds__(kThreads) GatherGradKernel(MoeGatherGradArgs p) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t parts = p.hidden / kEach;
  const int64_t index = ThreadIndex();
  if (index >= p.num_tokens * parts) return;
  const int64_t token = index / parts;
  const int64_t at = index % parts * kEach;
  float sum[kEach] = {};
  for (int64_t slot = 0; slot < p.num_slots; ++slot) {
    float d[kEach];
    LoadEight(p.drows + p.slot_row[token * p.num_slots + slot] * p.hidden + at, d);
#pragma unroll
    for (int j = 0; j < kEach; ++j) sum[j] = AddRn(sum[j], d[j]);
  }
  if (p.other != nullptr) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      sum[j] = AddRn(p.other[token * p.hidden + at + j], sum[j]);
    }
  }
  StoreEight(p.dx + token * p.hidden + at, sum);
}

void CheckSize(int64_t size) {
  if (size <= 0 || size % kEach != 0) {
    throw Error(ErrorCode::kShape, ErrorParts{.where = "gradients of a mixture of experts",
                                              .expected = "rows of a multiple of 8",
                                              .found = fmt::format("{}", size)});
  }
}

LaunchShape ShapeFor(int64_t threads, cudaStream_t stream, LaunchOrder order) {
  return {.grid = dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)),
          .block = dim3(kThreads),
          .stream = stream,
          .order = order};
}

}  // namespace

void MoeCombineGrad(const MoeCombineGradArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckSize(args.hidden);
  const int64_t slots = args.num_tokens * args.num_slots;
  if (slots == 0) return;
  LaunchKernel(ShapeFor(slots * 32, stream, order), CombineGradKernel, args);
}

void SwiGluGrad(const SwiGluGradArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckSize(args.inner);
  if (args.rows == 0) return;
  LaunchKernel(ShapeFor(args.rows * (args.inner / kEach), stream, order), SwiGluGradKernel, args);
}

void MoeGatherGrad(const MoeGatherGradArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckSize(args.hidden);
  if (args.num_tokens == 0) return;
  LaunchKernel(ShapeFor(args.num_tokens * (args.hidden / kEach), stream, order), GatherGradKernel,
               args);
}

}  // namespace quatrain::cuda
