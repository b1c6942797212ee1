// Plan: 8 neighbours (16 bytes) belong to one thread. A row of RMSNorm is a power of two of
// threads, so that thread t of pass p holds chunk p * threads + t and the neighbour tree is xor
// shuffles, then a tree over warps, then one over passes. A head is 8 to 32 threads of a warp;
// RoPE's other half comes by shuffle.
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/eight_values.cuh"
#include "kernels/cuda/elementwise.h"

namespace quatrain::cuda {
namespace {

constexpr int kBlockThreads = 256;

__device__ __forceinline__ uint4 NormalizeEight(const uint4& v, const uint4& w, float inverse) {
  float x[8], weight[8];
  UnpackEight(v, x);
  UnpackEight(w, weight);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = Normalized(x[i], inverse, weight[i]);
  return PackEight(x);
}

__device__ __forceinline__ float SquaresOf(const uint4& v) {
  float x[8];
  UnpackEight(v, x);
  return ChunkOfSquares(x);
}

// Neighbour tree over kLanes (at most 32) neighbouring lanes; every lane gets the root.
template <int kLanes>
__device__ __forceinline__ float TreeOfLanes(float sum) {
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    sum = AddRn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, offset));
  }
  return sum;
}

__global__ void EmbeddingKernel(EmbeddingArgs a) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t row = blockIdx.x;
  const auto* source =
      reinterpret_cast<const uint4*>(a.table + static_cast<int64_t>(a.token_ids[row]) * a.dim);
  auto* out = reinterpret_cast<uint4*>(a.out + row * a.dim);
  for (int64_t i = threadIdx.x; i < a.dim / 8; i += blockDim.x) out[i] = source[i];
}

// kThreads per row, kPasses chunks a thread.
template <int kThreads, int kPasses, bool kBranch>
__global__ void __launch_bounds__(kBlockThreads) RmsNormKernel(RmsNormArgs a) {
  constexpr int kRows = kBlockThreads / kThreads;
  constexpr int kWarps = kThreads / 32;
  __shared__ float warp_sums[kBlockThreads / 32];
  const int in_row = threadIdx.x % kThreads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kThreads;
  const int chunks = static_cast<int>(a.dim / 8);
  const bool has_row = row < a.rows;
  uint4 weight[kPasses] = {};
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    const int chunk = p * kThreads + in_row;
    if (chunk < chunks) weight[p] = reinterpret_cast<const uint4*>(a.weight)[chunk];
  }
  LetNextKernelStart();
  WaitForPreviousKernel();
  auto* x_row = reinterpret_cast<uint4*>(a.x + row * a.dim);
  const auto* branch_row = reinterpret_cast<const uint4*>(a.branch + row * a.dim);
  uint4 x[kPasses] = {};
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    const int chunk = p * kThreads + in_row;
    if (has_row && chunk < chunks) x[p] = x_row[chunk];
  }
  if constexpr (kBranch) {
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      const int chunk = p * kThreads + in_row;
      if (has_row && chunk < chunks) {
        x[p] = AddEight(x[p], branch_row[chunk]);
        x_row[chunk] = x[p];
      }
    }
  }
  float sums[kPasses];
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    sums[p] = TreeOfLanes<(kThreads < 32 ? kThreads : 32)>(SquaresOf(x[p]));
    if constexpr (kWarps > 1) {
      if (p > 0) __syncthreads();
      if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sums[p];
      __syncthreads();
      const int first_warp = threadIdx.x / kThreads * kWarps;
      float of_warps[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) of_warps[w] = warp_sums[first_warp + w];
      sums[p] = NeighbourTree(of_warps);
    }
  }
  const float inverse = InverseNorm(NeighbourTree(sums), static_cast<float>(a.dim), a.eps);
  auto* y_row = reinterpret_cast<uint4*>(a.y + row * a.dim);
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    const int chunk = p * kThreads + in_row;
    if (has_row && chunk < chunks) y_row[chunk] = NormalizeEight(x[p], weight[p], inverse);
  }
}

template <int kThreads, int kPasses>
void LaunchRmsNorm(const RmsNormArgs& args, cudaStream_t stream, LaunchOrder order) {
  constexpr int kRows = kBlockThreads / kThreads;
  const auto blocks = static_cast<unsigned>((args.rows + kRows - 1) / kRows);
  const LaunchShape shape = {dim3(blocks), dim3(kBlockThreads), 0, stream, order};
  LaunchKernel(shape,
               args.branch != nullptr ? RmsNormKernel<kThreads, kPasses, true>
                                      : RmsNormKernel<kThreads, kPasses, false>,
               args);
}

template <int kHeadDim>
__global__ void __launch_bounds__(kBlockThreads) HeadNormRopeKernel(HeadNormRopeArgs a) {
  constexpr int kThreads = kHeadDim / 8;
  constexpr int kHeads = kBlockThreads / kThreads;
  LetNextKernelStart();
  const int heads = a.num_q_heads + a.num_k_heads;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kHeads + threadIdx.x / kThreads;
  const bool has_head = index < a.tokens * heads;
  const int64_t token = has_head ? index / heads : 0;
  const int head = has_head ? static_cast<int>(index % heads) : 0;
  const int lane = threadIdx.x % kThreads;
  const bool is_second = lane >= kThreads / 2;
  const BFloat16* weight = head < a.num_q_heads ? a.q_weight : a.k_weight;
  WaitForPreviousKernel();
  auto* place = reinterpret_cast<uint4*>(a.qk + token * a.row_stride +
                                         static_cast<int64_t>(head) * kHeadDim) +
                lane;
  uint4 v = *place;
  const float sum = TreeOfLanes<kThreads>(SquaresOf(v));
  if (weight != nullptr) {
    const float inverse = InverseNorm(sum, static_cast<float>(kHeadDim), a.eps);
    v = NormalizeEight(v, reinterpret_cast<const uint4*>(weight)[lane], inverse);
  }
  uint4 other;
  other.x = __shfl_xor_sync(0xFFFFFFFFu, v.x, kThreads / 2);
  other.y = __shfl_xor_sync(0xFFFFFFFFu, v.y, kThreads / 2);
  other.z = __shfl_xor_sync(0xFFFFFFFFu, v.z, kThreads / 2);
  other.w = __shfl_xor_sync(0xFFFFFFFFu, v.w, kThreads / 2);
  float x[8], y[8], cos[8], sin[8];
  UnpackEight(v, x);
  UnpackEight(other, y);
  const int64_t entry =
      static_cast<int64_t>(a.positions[token]) * (kHeadDim / 2) + 8 * (lane % (kThreads / 2));
  *reinterpret_cast<float4*>(cos) = *reinterpret_cast<const float4*>(a.cos + entry);
  *reinterpret_cast<float4*>(cos + 4) = *reinterpret_cast<const float4*>(a.cos + entry + 4);
  *reinterpret_cast<float4*>(sin) = *reinterpret_cast<const float4*>(a.sin + entry);
  *reinterpret_cast<float4*>(sin + 4) = *reinterpret_cast<const float4*>(a.sin + entry + 4);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i] =
        is_second ? RopeSecond(y[i], x[i], cos[i], sin[i]) : RopeFirst(x[i], y[i], cos[i], sin[i]);
  }
  if (has_head) *place = PackEight(x);
}

__global__ void __launch_bounds__(kBlockThreads) SwiGluKernel(SwiGluArgs a) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t row = blockIdx.x;
  const int chunk = blockIdx.y * kBlockThreads + threadIdx.x;
  if (chunk >= a.dim / 8) return;
  const uint4 g = reinterpret_cast<const uint4*>(a.gate + row * a.stride)[chunk];
  const uint4 u = reinterpret_cast<const uint4*>(a.up + row * a.stride)[chunk];
  float gate[8], up[8];
  UnpackEight(g, gate);
  UnpackEight(u, up);
#pragma unroll
  for (int i = 0; i < 8; ++i) gate[i] = SwiGlu(gate[i], up[i]);
  reinterpret_cast<uint4*>(a.out + row * a.dim)[chunk] = PackEight(gate);
}

__global__ void __launch_bounds__(kBlockThreads)
    AddInPlaceKernel(BFloat16* x, const BFloat16* y, int64_t chunks) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (chunk >= chunks) return;
  auto* place = reinterpret_cast<uint4*>(x) + chunk;
  *place = AddEight(*place, reinterpret_cast<const uint4*>(y)[chunk]);
}

void CheckEights(int64_t value, const char* what) {
  if (value % 8 == 0 && value > 0) return;
  throw Error(ErrorCode::kShape, {.where = what,
                                  .what = "the length does not suit 16-byte accesses",
                                  .expected = "a multiple of 8",
                                  .found = std::to_string(value)});
}

}  // namespace

void Embedding(const EmbeddingArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckEights(args.dim, "embedding");
  if (args.rows == 0) return;
  LaunchKernel({dim3(static_cast<unsigned>(args.rows)), dim3(128), 0, stream, order},
               EmbeddingKernel, args);
}

void RmsNorm(const RmsNormArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckEights(args.dim, "RMSNorm");
  if (args.dim > 16384) {
    throw Error(ErrorCode::kShape, {.where = "RMSNorm",
                                    .what = "the row is too long",
                                    .expected = "at most 16384",
                                    .found = std::to_string(args.dim)});
  }
  if (args.rows == 0) return;
  const int64_t chunks = args.dim / 8;
  if (chunks <= 8) return LaunchRmsNorm<8, 1>(args, stream, order);
  if (chunks <= 16) return LaunchRmsNorm<16, 1>(args, stream, order);
  if (chunks <= 32) return LaunchRmsNorm<32, 1>(args, stream, order);
  if (chunks <= 64) return LaunchRmsNorm<64, 1>(args, stream, order);
  if (chunks <= 128) return LaunchRmsNorm<128, 1>(args, stream, order);
  if (chunks <= 256) return LaunchRmsNorm<256, 1>(args, stream, order);
  if (chunks <= 512) return LaunchRmsNorm<256, 2>(args, stream, order);
  if (chunks <= 1024) return LaunchRmsNorm<256, 4>(args, stream, order);
  LaunchRmsNorm<256, 8>(args, stream, order);
}

void HeadNormRope(const HeadNormRopeArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckEights(args.row_stride, "RoPE, row stride");
  const int64_t heads = args.tokens * (args.num_q_heads + args.num_k_heads);
  if (heads == 0) return;
  const int64_t per_block = kBlockThreads / (args.head_dim / 8);
  const auto blocks = static_cast<unsigned>((heads + per_block - 1) / per_block);
  const LaunchShape shape = {dim3(blocks), dim3(kBlockThreads), 0, stream, order};
  switch (args.head_dim) {
    case 64:
      return LaunchKernel(shape, HeadNormRopeKernel<64>, args);
    case 128:
      return LaunchKernel(shape, HeadNormRopeKernel<128>, args);
    case 256:
      return LaunchKernel(shape, HeadNormRopeKernel<256>, args);
    default:
      throw Error(ErrorCode::kShape, {.where = "RoPE",
                                      .what = "no kernel for this head_dim",
                                      .expected = "64, 128 or 256",
                                      .found = std::to_string(args.head_dim)});
  }
}

void SwiGlu(const SwiGluArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckEights(args.dim, "SwiGLU");
  CheckEights(args.stride, "SwiGLU, stride");
  if (args.rows == 0) return;
  const auto blocks = static_cast<unsigned>((args.dim / 8 + kBlockThreads - 1) / kBlockThreads);
  LaunchKernel(
      {dim3(static_cast<unsigned>(args.rows), blocks), dim3(kBlockThreads), 0, stream, order},
      SwiGluKernel, args);
}

void AddInPlace(BFloat16* x, const BFloat16* y, int64_t n, cudaStream_t stream, LaunchOrder order) {
  if (n == 0) return;
  CheckEights(n, "residual");
  const auto blocks = static_cast<unsigned>((n / 8 + kBlockThreads - 1) / kBlockThreads);
  LaunchKernel({dim3(blocks), dim3(kBlockThreads), 0, stream, order}, AddInPlaceKernel, x, y,
               n / 8);
}

}  // namespace quatrain::cuda
