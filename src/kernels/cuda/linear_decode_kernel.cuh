// The dense decode kernel and its launcher, a template over the weight format; one .cu per format
// instantiates it.
#pragma once

#include "kernels/cuda/decode_stream.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_decode.h"

namespace quatrain::cuda {

// What a launch needs beside the stream layout.
struct DenseLaunch {
  LinearDecodeArgs args;
  DecodePlan plan;
  int num_segments = 1;
  int64_t segment_inputs = 0;
  cudaStream_t stream = nullptr;
  LaunchOrder order = LaunchOrder::kAfterPrevious;
};

void LaunchInt4Decode(const DenseLaunch& launch);
void LaunchInt8Decode(const DenseLaunch& launch);
void LaunchBFloat16Decode(const DenseLaunch& launch);

// A dense matrix: round r of CTA b holds the groups (r * CTAs + b) * num_groups + 0..num_groups
// - 1.
template <class Format, int kRowUnits, int kTokenTiles>
struct DenseWork {
  const uint8_t* weight;
  const BFloat16* x;
  const BFloat16* bias;
  const BFloat16* residual;
  BFloat16* y;
  float* y_float;
  int64_t x_stride;
  int64_t stream_stride;   // bytes from a unit (codes) or row (BF16) to the next
  int64_t segment_stride;  // bytes of a stream in one segment
  int num_streams;         // units or rows in all
  int out_features;
  int num_tokens;
  int num_groups;
  int num_rounds;

  __device__ __forceinline__ int64_t Group(int round, int group) const {
    return (static_cast<int64_t>(round) * gridDim.x + blockIdx.x) * num_groups + group;
  }
  __device__ __forceinline__ const uint8_t* Source(int round, int group, int stream,
                                                   int segment) const {
    // Past the end: the last one again; its result is not stored.
    const int64_t index = Group(round, group) * (kRowUnits * Format::kStreamsPerUnit) + stream;
    return weight + min(index, static_cast<int64_t>(num_streams - 1)) * stream_stride +
           segment * segment_stride;
  }
  __device__ __forceinline__ int Rows(int) const { return num_tokens; }
  __device__ __forceinline__ const BFloat16* Row(int, int row) const { return x + row * x_stride; }

  __device__ __forceinline__ void StoreOne(int64_t at, int n, float total) const {
    total *= Format::kUnscale;
    if (bias != nullptr) total = __fadd_rn(total, ToFloat(bias[n]));
    if (y_float != nullptr) {
      y_float[at] = total;
      return;
    }
    BFloat16 value = ToBFloat16(total);
    if (residual != nullptr) {
      value = ToBFloat16(__fadd_rn(ToFloat(residual[at]), ToFloat(value)));
    }
    y[at] = value;
  }
  __device__ __forceinline__ void Store(int round, int group, int lane,
                                        const float (&sums)[kRowUnits][kTokenTiles][4]) const {
    const int64_t first = Group(round, group) * (kRowUnits * 8) + lane % 4 * 2;
#pragma unroll
    for (int u = 0; u < kRowUnits; ++u) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t n = first + u * 8 + i % 2;
          const int token = t * 16 + i / 2 * 8 + lane / 4;
          if (n < out_features && token < num_tokens) {
            StoreOne(static_cast<int64_t>(token) * out_features + n, static_cast<int>(n),
                     sums[u][t][i]);
          }
        }
      }
    }
  }
};

// First columns of shared memory are barriers; see StreamLayout for the rest.
template <class Format, int kRowUnits, int kTokenTiles, class Work>
__device__ __forceinline__ void RunStream(const StreamLayout& layout, const Work& work,
                                          uint8_t* shared) {
  const uint32_t base = SharedAddress(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const StreamBarriers barriers(base, layout, 0);
  if (warp < layout.num_warps) {
    __syncthreads();
    ChainWarp<Format, kRowUnits, kTokenTiles, Work> chain(layout, work, base, warp, lane);
    chain.Run();
  } else if (warp == layout.num_warps) {
    constexpr int kSlotBytes = kRowUnits * Format::kStreamsPerUnit * Format::kStreamPitch;
    const int num_slots = layout.num_warps * layout.weight_slots;
    for (int i = lane; i < 2 * num_slots; i += 32) BarrierInit(barriers.weight_full + 8 * i, 1);
    // Past the end of a row of BF16 weights: zeros from the start, or old weights.
    const bool is_ragged = (layout.segment_inputs | layout.in_features) % kStageInputs != 0;
    if (!Format::kIsCodes && is_ragged) {
      ClearShared(base + layout.weight_offset, num_slots * kSlotBytes, lane);
    }
    FenceForCopies();
    __syncthreads();
    StreamWeights<Format, kRowUnits>(layout, work, base, lane);
  } else {
    for (int i = lane; i < layout.x_slots; i += 32) {
      BarrierInit(barriers.x_full + 8 * i, 1);
      BarrierInit(barriers.x_empty + 8 * i, layout.num_warps);
    }
    ClearShared(base + layout.zero_offset, kZeroBytes, lane);
    FenceForCopies();
    __syncthreads();
    WaitForPreviousKernel();
    StreamActivations(layout, work, base, lane);
  }
}

template <class Format, int kRowUnits, int kTokenTiles>
__global__ void __launch_bounds__(32 * (kMaxChainWarps + 2), kTokenTiles == 1 ? 2 : 1)
    LinearDecodeKernel(const __grid_constant__ StreamLayout layout,
                       const __grid_constant__ DenseWork<Format, kRowUnits, kTokenTiles> work) {
  extern __shared__ __align__(128) uint8_t shared[];
  LetNextKernelStart();
  RunStream<Format, kRowUnits, kTokenTiles>(layout, work, shared);
}

// Fills slots and offsets. `slot_bytes`: of one warp's ring slot; `warp_partial_bytes`: one warp's
// sums.
inline void CutSharedMemory(int slot_bytes, int warp_partial_bytes, int num_rounds, int budget,
                            StreamLayout* layout) {
  StreamLayout& l = *layout;
  const int groups = l.num_warps / l.num_segments;
  const int partial_bytes = groups * (l.num_segments - 1) * warp_partial_bytes;
  const int x_slot = l.num_segments * l.x_rows * kSlotRowBytes;
  const int fixed = kZeroBytes + partial_bytes + 1024;
  // Activations take a third, weights the rest.
  l.x_slots = std::max(2, std::min(l.num_stages, (budget - fixed) / 3 / x_slot));
  l.x_is_resident = l.x_slots >= l.num_stages ? 1 : 0;
  if (l.x_is_resident) l.x_slots = l.num_stages;
  const int left = budget - fixed - l.x_slots * (x_slot + 16);
  l.weight_slots = std::min(left / (l.num_warps * (slot_bytes + 16)), l.num_stages * num_rounds);
  // A chain warp waits for a stage before it gives the one before back.
  QT_CHECK(l.weight_slots >= 2 || l.num_stages * num_rounds == 1,
           "no room for weights: {} bytes for {} warps", left, l.num_warps);
  uint32_t at = 16 * (l.x_slots + l.num_warps * l.weight_slots);
  const auto take = [&at](uint32_t bytes) {
    at = (at + 127) / 128 * 128;
    const uint32_t offset = at;
    at += bytes;
    return offset;
  };
  l.zero_offset = take(kZeroBytes);
  l.partial_offset = take(partial_bytes);
  l.x_offset = take(l.x_slots * x_slot);
  l.weight_offset = take(l.num_warps * l.weight_slots * slot_bytes);
  l.shared_bytes = at;
}

template <class Format, int kRowUnits, int kTokenTiles>
void LaunchDecode(const DenseLaunch& launch) {
  const LinearDecodeArgs& args = launch.args;
  const int64_t k = args.shape.in_features;
  const int64_t n = args.shape.out_features;
  StreamLayout layout;
  layout.num_segments = launch.num_segments;
  layout.num_warps = launch.plan.num_groups * launch.num_segments;
  layout.segment_inputs = static_cast<int>(launch.segment_inputs);
  layout.in_features = static_cast<int>(k);
  layout.num_stages = static_cast<int>(
      (std::min<int64_t>(launch.segment_inputs, k) + kStageInputs - 1) / kStageInputs);
  layout.x_rows = static_cast<int>(args.num_tokens);
  constexpr int kSlotBytes = kRowUnits * Format::kStreamsPerUnit * Format::kStreamPitch;
  CutSharedMemory(kSlotBytes, kRowUnits * kTokenTiles * 512, launch.plan.num_rounds,
                  launch.plan.shared_budget, &layout);

  DenseWork<Format, kRowUnits, kTokenTiles> work;
  work.weight = static_cast<const uint8_t*>(args.weight);
  work.x = args.x;
  work.bias = args.bias;
  work.residual = args.residual;
  work.y = args.y;
  work.y_float = args.y_float;
  work.x_stride = args.x_stride == 0 ? k : args.x_stride;
  work.stream_stride = Format::kIsCodes ? UnitBytes(args.shape) : 2 * k;
  work.segment_stride = Format::kIsCodes
                            ? launch.segment_inputs / kChunkInputs * ChunkBytes(args.shape)
                            : 2 * launch.segment_inputs;
  work.num_streams = static_cast<int>(Format::kIsCodes ? NumUnits(args.shape) : n);
  work.out_features = static_cast<int>(n);
  work.num_tokens = static_cast<int>(args.num_tokens);
  work.num_groups = launch.plan.num_groups;
  work.num_rounds = launch.plan.num_rounds;

  const auto kernel = LinearDecodeKernel<Format, kRowUnits, kTokenTiles>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(layout.shared_bytes)),
            "shared memory of linear_decode");
  LaunchKernel({.grid = dim3(launch.plan.num_ctas),
                .block = dim3(32 * (layout.num_warps + 2)),
                .shared_bytes = layout.shared_bytes,
                .stream = launch.stream,
                .order = launch.order},
               kernel, layout, work);
}

template <class Format>
void LaunchDecodeFormat(const DenseLaunch& launch) {
  const int64_t m = launch.args.num_tokens;
  if (launch.plan.row_units == 1) {
    if (m <= 16) return LaunchDecode<Format, 1, 1>(launch);
    if (m <= 32) return LaunchDecode<Format, 1, 2>(launch);
    return LaunchDecode<Format, 1, 4>(launch);
  }
  if (m <= 16) return LaunchDecode<Format, 2, 1>(launch);
  if (m <= 32) return LaunchDecode<Format, 2, 2>(launch);
  return LaunchDecode<Format, 2, 4>(launch);
}

}  // namespace quatrain::cuda
