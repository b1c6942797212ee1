// Prefill for head_dim 256, whose outputs leave no registers to overlap products and softmax: one
// warpgroup a CTA, which copies and multiplies tile by tile.
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/attention_rows.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kHeadDim = 256;
constexpr int kThreads = 128;
constexpr int kPanels = kHeadDim / 64;
constexpr int kSteps = kHeadDim / 16;
constexpr int kTile = kTileBytes<kHeadDim>;

// What the copies brought is visible to the tensor cores of all warps after it.
__device__ __forceinline__ void WaitForTiles() {
  WaitForCopies<0>();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 2)
    PrefillKernel256(DeviceAttentionArgs a, int block_shift) {
  extern __shared__ __align__(1024) uint8_t shared[];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const AttentionSequence seq = a.sequences[blockIdx.z];
  const int num_queries = static_cast<int>(seq.num_queries);
  const int num_keys = static_cast<int>(seq.num_keys);
  // The longest rows first.
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kQueryRows;
  if (first_query >= num_queries) return;
  const int head = static_cast<int>(blockIdx.x);
  const int64_t kv_offset = static_cast<int64_t>(head / (a.num_heads / a.num_kv_heads)) * kHeadDim;
  const KeyRows keys = {seq.block_table, seq.kv_begin, block_shift, num_keys};
  const float c = MulRn(a.scale, kLog2E);
  const int my_query = first_query + static_cast<int>(threadIdx.x) / 32 * 16 +
                       static_cast<int>(threadIdx.x) % 32 / 4;
  uint32_t q[kSteps][4];
  int visible[2];
  LoadQueries<kHeadDim>(a, seq, my_query, head, q, visible);
  const int last_query = min(first_query + kQueryRows, num_queries) - 1;
  const int num_blocks = (num_keys - num_queries + last_query + kAttentionBlock) / kAttentionBlock;

  const uint32_t k_tiles = SharedAddress(shared);
  const uint32_t v_tiles = k_tiles + 2 * kTile;
  const OutputTotals<kThreads, kHeadDim / 2> outputs(shared + 4 * kTile,
                                                     static_cast<int>(threadIdx.x));
  auto* rows = reinterpret_cast<int32_t*>(shared + 4 * kTile + kHeadDim / 2 * kThreads * 4);
  // Rows of a tile's keys, [4][64], looked up a barrier before the tile is copied.
  const auto find_rows = [&](int block) {
    if (threadIdx.x < kAttentionBlock) {
      rows[block % 4 * kAttentionBlock + threadIdx.x] =
          keys.RowOf(block * kAttentionBlock + static_cast<int>(threadIdx.x));
    }
  };
  const auto copy = [&](int block, const BFloat16* base, uint32_t tiles) {
    if (block < num_blocks) {
      CopyTile<kHeadDim, kThreads>(rows + block % 4 * kAttentionBlock, base + kv_offset,
                                   a.kv_stride, tiles + block % 2 * kTile, threadIdx.x);
    }
  };
  find_rows(0);
  find_rows(1);
  find_rows(2);
  __syncthreads();
  copy(0, a.k, k_tiles);
  copy(0, a.v, v_tiles);
  CommitCopies();
  float o[kHeadDim / 2] = {};
  SegmentState row;
  RowTotals totals;
  for (int block = 0; block < num_blocks; ++block) {
    WaitForTiles();
    copy(block + 1, a.k, k_tiles);
    copy(block + 1, a.v, v_tiles);
    CommitCopies();
    find_rows(block + 3);
    const uint32_t k_place = OperandPlace(k_tiles + block % 2 * kTile);
    const uint32_t v_place = OperandPlace(v_tiles + block % 2 * kTile);
    float s[32];
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Product64<0>(s, q[step],
                   OperandAt(k_place + step / 4 * kPanelPlaces + step % 4 * kStepPlaces), step > 0);
    }
    CommitProducts();
    WaitForProducts<0>();
    float alpha[2];
    SoftmaxTile(s, row, visible, block * kAttentionBlock, c, alpha);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) o[i] = MulRn(o[i], alpha[i / 2 % 2]);
    uint32_t p[16];
    RoundTile(s, p);
    FenceProducts();
#pragma unroll
    for (int i = 0; i < kAttentionBlock / 16 * kPanels; ++i) {
      const int step = i / kPanels;
      const int panel = i % kPanels;
      Product64<1>(o + 32 * panel, p + 4 * step,
                   OperandAt(v_place + panel * kPanelPlaces + step * kRowsStepPlaces), 1);
    }
    CommitProducts();
    WaitForProducts<0>();
    if (block % (kAttentionSegment / kAttentionBlock) == 7 || block + 1 == num_blocks) {
      MergeRows(o, row, c, totals, outputs);
      row = SegmentState{};
    }
  }
  WriteRows<kHeadDim, kThreads>(a, seq, my_query, head, totals, outputs);
}

}  // namespace

void AttentionPrefill256(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order) {
  constexpr size_t kShared =
      4 * kTile + kHeadDim / 2 * kThreads * sizeof(float) + 4 * kAttentionBlock * sizeof(int32_t);
  CheckCuda(
      cudaFuncSetAttribute(PrefillKernel256, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
      "attention, shared memory");
  const auto tiles = static_cast<unsigned>((args.max_queries + kQueryRows - 1) / kQueryRows);
  LaunchKernel(
      {dim3(args.num_heads, tiles, args.num_sequences), dim3(kThreads), kShared, stream, order},
      PrefillKernel256, args, BlockShift(args));
}

}  // namespace quatrain::cuda
