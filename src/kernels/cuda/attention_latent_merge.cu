// The segments of a row tile, ascending, where CTAs share them: a warp takes two words of 16 rows
// (sixteen columns), and reads eight segments at once. A kernel of its own spreads the sums over
// all multiprocessors; the last CTA of a tile alone took longer over them than over its segment.
#include "kernels/cuda/attention_latent.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWords = 2;
constexpr int kBatch = 8;
constexpr int kUnits = 2 * kLatentWords / kWords;  // of 16 rows
constexpr int kCtasOfRows = kUnits / (kThreads / 32);

__global__ void __launch_bounds__(kThreads)
    MergeKernel(const __grid_constant__ DeviceLatentAttentionArgs a, LatentScratch scratch) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int rows_index = static_cast<int>(blockIdx.x) / kCtasOfRows;
  const int tile = rows_index / scratch.row_warps;
  const int row_warp = rows_index % scratch.row_warps;
  const int first_word = (static_cast<int>(blockIdx.x) % kCtasOfRows * (kThreads / 32) +
                          static_cast<int>(threadIdx.x) / 32) *
                         kWords;  // of both halves
  const LatentWork work = WorkOfTile(a, static_cast<int>(blockIdx.y), tile);
  if (work.num_segments == 0 || work.first_row + row_warp * 16 >= work.num_rows) return;
  const int tiles = static_cast<int>(gridDim.x) / kCtasOfRows / scratch.row_warps;
  const int64_t tile_index = static_cast<int64_t>(blockIdx.y) * tiles + tile;
  const float c = MulRn(a.scale, kLog2E);
  RowTotals totals;
  float4 merged[kWords] = {};
#pragma unroll 1
  for (int begin = 0; begin < work.num_segments; begin += kBatch) {
    float max[kBatch][2], sum[kBatch][2];
    float4 o[kBatch][kWords];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i >= work.num_segments) continue;
      const float* partial = LatentPartial(scratch, tile_index, begin + i, row_warp);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        max[i][r] = __ldcg(partial + 2 * kLatentHalf + lane / 4 + 8 * r);
        sum[i][r] = __ldcg(partial + 2 * kLatentHalf + 16 + lane / 4 + 8 * r);
      }
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        o[i][word] =
            __ldcg(reinterpret_cast<const float4*>(partial) + (first_word + word) * 32 + lane);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i >= work.num_segments) continue;
      const SegmentFactors f[2] = {AddSegment(max[i][0], sum[i][0], c, totals, 0),
                                   AddSegment(max[i][1], sum[i][1], c, totals, 1)};
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        merged[word] = MergeWord(merged[word], o[i][word], f);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = work.first_row + row_warp * 16 + lane / 4 + 8 * r;
    if (row >= work.num_rows) continue;
    const float share = ReciprocalRn(totals.sum[r]);
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const float4& o = merged[word];
      StoreLatent(a, work, row, (first_word + word) * 8 + lane % 4 * 2,
                  MulRn(r == 0 ? o.x : o.z, share), MulRn(r == 0 ? o.y : o.w, share));
    }
    if (a.lse != nullptr && first_word == 0 && lane % 4 == 0) {
      a.lse[work.seq.q_begin * a.num_heads + row] =
          LogSumExp(totals.max[r], totals.sum[r], a.scale);
    }
  }
}

}  // namespace

void MergeLatentSegments(const DeviceLatentAttentionArgs& args, int64_t tiles,
                         const LatentScratch& scratch, cudaStream_t stream) {
  const auto ctas = static_cast<unsigned>(tiles * scratch.row_warps * kCtasOfRows);
  LaunchKernel({.grid = dim3(ctas, args.num_sequences),
                .block = dim3(kThreads),
                .stream = stream,
                .order = LaunchOrder::kOverlap},
               MergeKernel, args, scratch);
}

}  // namespace quatrain::cuda
