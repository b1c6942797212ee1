// The dense decode kernel and its launcher, a template over the weight format; one .cu per format
// instantiates it.
#pragma once

#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/decode_layout.h"
#include "kernels/cuda/decode_stream.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/tensor_map.h"

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

// A dense matrix: CTA b holds the groups from b * all / CTAs on, num_groups of them in each round.
template <class Format, int kRowUnits, int kTokenTiles, bool kTiled>
struct DenseWork {
  static constexpr bool kIsTiled = kTiled;
  const void* x_map;
  int x_row;
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
  int partner_units;       // from a unit of gate to the same of up, which a group holds with it; 0:
                           // a group's units are neighbours
  int out_features;        // of y
  int num_tokens;
  int num_groups;
  int num_rounds;   // of this CTA; set by Deal
  int first_group;  // likewise
  int group_count;  // likewise; before Deal: groups in all

  __device__ __forceinline__ void Deal() {
    const int64_t all = group_count;
    first_group = static_cast<int>(blockIdx.x * all / gridDim.x);
    group_count = static_cast<int>((blockIdx.x + 1) * all / gridDim.x) - first_group;
    num_rounds = (group_count + num_groups - 1) / num_groups;
  }
  __device__ __forceinline__ bool Has(int round, int group) const {
    return round * num_groups + group < group_count;
  }
  __device__ __forceinline__ int64_t Group(int round, int group) const {
    return first_group + round * num_groups + group;
  }
  __device__ __forceinline__ const uint8_t* Source(int round, int group, int stream,
                                                   int segment) const {
    // Past the end: the last one again; its result is not stored.
    const int64_t index = partner_units == 0
                              ? Group(round, group) * (kRowUnits * Format::kStreamsPerUnit) + stream
                              : Group(round, group) + static_cast<int64_t>(stream) * partner_units;
    return weight + min(index, static_cast<int64_t>(num_streams - 1)) * stream_stride +
           segment * segment_stride;
  }
  __device__ __forceinline__ bool HasNewX(int round) const { return round == 0; }
  __device__ __forceinline__ int Rows(int) const { return num_tokens; }
  __device__ __forceinline__ const BFloat16* Row(int, int row) const { return x + row * x_stride; }

  // What StoreOne does where there is only y.
  __device__ __forceinline__ void StorePlain(int64_t at, float total) const {
    y[at] = ToBFloat16(total * Format::kUnscale);
  }
  // Calls store(place of the token's row in y, tile, half) for this lane's tokens that are there.
  template <class StoreToken>
  __device__ __forceinline__ void ForTokens(int lane, const StoreToken& store) const {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = t * 8 + lane % 4 * 2 + i;
        if (token < num_tokens) store(static_cast<int64_t>(token) * out_features, t, i);
      }
    }
  }
  template <int kRowTiles, class StoreAt>
  __device__ __forceinline__ void StoreAll(int round, int group, int lane,
                                           const float (&sums)[kRowTiles][kTokenTiles][4],
                                           const StoreAt& store) const {
    const int64_t first = Group(round, group) * (kRowUnits * 8) + lane / 4;
    ForTokens(lane, [&](int64_t row, int t, int i) {
#pragma unroll
      for (int u = 0; u < kRowUnits; ++u) {
        const int64_t n = first + u * 8;
        if (n < out_features) store(row + n, n, sums[u / 2][t][u % 2 * 2 + i]);
      }
    });
  }
  // Of gate and up: what the kernel SwiGlu would make of their BF16 sums.
  template <int kRowTiles>
  __device__ __forceinline__ void StoreSwiGlu(
      int round, int group, int lane, const float (&sums)[kRowTiles][kTokenTiles][4]) const {
    const int64_t n = Group(round, group) * 8 + lane / 4;
    ForTokens(lane, [&](int64_t row, int t, int i) {
      const float gate = RoundedToBFloat16(sums[0][t][i] * Format::kUnscale);
      const float up = RoundedToBFloat16(sums[0][t][i + 2] * Format::kUnscale);
      y[row + n] = ToBFloat16(SwiGlu(gate, up));
    });
  }
  template <int kRowTiles>
  __device__ __forceinline__ void Store(int round, int group, int lane,
                                        const float (&sums)[kRowTiles][kTokenTiles][4]) const {
    if constexpr (Format::kIsCodes && kRowUnits == 2) {
      if (partner_units != 0) return StoreSwiGlu(round, group, lane, sums);
    }
    if (bias == nullptr && residual == nullptr && y_float == nullptr) {
      StoreAll(round, group, lane, sums,
               [this](int64_t at, int64_t, float total) { StorePlain(at, total); });
    } else {
      StoreAll(round, group, lane, sums, [this](int64_t at, int64_t n, float total) {
        StoreOne(*this, at, n, total * Format::kUnscale);
      });
    }
  }
};

template <class Format, int kRowUnits, int kTokenTiles, bool kTiled>
__global__ void __launch_bounds__(32 * (kMaxChainWarps + 2), kTokenTiles <= 2 ? 2 : 1)
    LinearDecodeKernel(
        const __grid_constant__ StreamLayout layout,
        const __grid_constant__ DenseWork<Format, kRowUnits, kTokenTiles, kTiled> args,
        const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if (layout.start_next_after == 0) LetNextKernelStart();
  DenseWork<Format, kRowUnits, kTokenTiles, kTiled> work = args;
  work.Deal();
  work.x_map = &x_map;
  RunStream<Format, kRowUnits, kTokenTiles>(layout, work, shared);
}

template <class Format, int kRowUnits, int kTokenTiles, bool kTiled>
void LaunchDecode(const DenseLaunch& launch) {
  const LinearDecodeArgs& args = launch.args;
  const int64_t k = args.shape.in_features;
  const int64_t units = NumUnits(args.shape);
  DenseWork<Format, kRowUnits, kTokenTiles, kTiled> work = {};
  work.group_count = static_cast<int>((units + kRowUnits - 1) / kRowUnits);
  const int per_cta = (work.group_count + launch.plan.num_ctas - 1) / launch.plan.num_ctas;
  StreamLayout layout;
  layout.num_segments = launch.num_segments;
  layout.num_warps = launch.plan.num_groups * launch.num_segments;
  layout.segment_inputs = static_cast<int>(launch.segment_inputs);
  layout.in_features = static_cast<int>(k);
  layout.x_rows = work.kIsTiled ? 8 * kTokenTiles : static_cast<int>(args.num_tokens);
  const int num_rounds = (per_cta + launch.plan.num_groups - 1) / launch.plan.num_groups;
  CutSharedMemory({.chunk_bytes = Format::kChunkBytes,
                   .padding = Format::kPadding,
                   .num_streams = kRowUnits * Format::kStreamsPerUnit,
                   .partial_bytes = (kRowUnits + 1) / 2 * kTokenTiles * 512,
                   .stage_chunks = launch.plan.stage_chunks,
                   .budget = launch.plan.shared_budget,
                   .num_rounds = num_rounds,
                   .is_tiled = work.kIsTiled},
                  &layout);
  if (!Format::kIsCodes && launch.plan.num_ctas <= NumMultiprocessors()) {
    layout.start_next_after = StagesBeforeNextKernel(layout, num_rounds);
  }
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
  work.num_streams = static_cast<int>(Format::kIsCodes ? units : args.shape.out_features);
  work.partner_units = args.epilogue == LinearEpilogue::kSwiGlu ? work.num_streams / 2 : 0;
  work.out_features = static_cast<int>(args.NumOutputs());
  work.num_tokens = static_cast<int>(args.num_tokens);
  work.num_groups = launch.plan.num_groups;

  CUtensorMap x_map = {};
  if (work.kIsTiled) {
    if (k % kBoxColumns == 0) layout.boxes_at_once = kBoxesPerChunk * layout.stage_chunks;
    x_map = BoxesInRow({args.x, args.num_tokens, k, work.x_stride}, layout.x_rows,
                       layout.boxes_at_once);
  }
  const auto kernel = LinearDecodeKernel<Format, kRowUnits, kTokenTiles, kTiled>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(layout.shared_bytes)),
            "shared memory of linear_decode");
  LaunchKernel({.grid = dim3(launch.plan.num_ctas),
                .block = dim3(32 * (layout.num_warps + 2)),
                .shared_bytes = layout.shared_bytes,
                .stream = launch.stream,
                .order = launch.order},
               kernel, layout, work, x_map);
}

template <class Format, int kRowUnits>
void LaunchDecodeUnits(const DenseLaunch& launch) {
  const int64_t m = launch.args.num_tokens;
  // Boxes always have the rows of whole tiles, so one or two rows come one by one; beside rows of
  // BF16 that is slower.
  if constexpr (Format::kIsCodes) {
    if (m <= 2) return LaunchDecode<Format, kRowUnits, 1, false>(launch);
  }
  if (m <= 8) return LaunchDecode<Format, kRowUnits, 1, true>(launch);
  if (m <= 16) return LaunchDecode<Format, kRowUnits, 2, true>(launch);
  if (m <= 32) return LaunchDecode<Format, kRowUnits, 4, true>(launch);
  return LaunchDecode<Format, kRowUnits, 8, true>(launch);
}

template <class Format>
void LaunchDecodeFormat(const DenseLaunch& launch) {
  // A unit of BF16 rows fills a ring slot as eight units of INT4 do.
  if (!Format::kIsCodes || launch.plan.row_units == 1) return LaunchDecodeUnits<Format, 1>(launch);
  if constexpr (Format::kIsCodes) return LaunchDecodeUnits<Format, 2>(launch);
}

}  // namespace quatrain::cuda
