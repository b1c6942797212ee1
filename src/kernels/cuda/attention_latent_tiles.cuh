// How queries and tiles of keys come to the shared memory of the kernel of attention over a latent
// (attention_latent.cu), and how that is laid out.
#pragma once

#include <cuda.h>

#include "kernels/cuda/attention_latent.cuh"

namespace quatrain::cuda {

inline constexpr int kGroupThreads = 128;
inline constexpr int kMultiplying = 2 * kGroupThreads;
inline constexpr int kThreads = kMultiplying + kGroupThreads;
inline constexpr int kStages = 2;
inline constexpr int kPanels = kLatentKeyDim / 64;
inline constexpr int kTile = kPanels * kPanelBytes;
inline constexpr int kHalfColumns = kLatentDim / 2;
inline constexpr int kProbabilities = (kPanels - 1) * kPanelBytes;  // in a tile

struct TileCopies {
  CUtensorMap kv;
  int box_rows;  // 0: no boxes
  int block_shift;
  bool comes_once;  // few CTAs read a tile, at about the same time: first out of the L2
};

// Shared memory: queries, tiles, what is known of the rows after each of the last two tiles, the
// barriers (tile there, tile free, probabilities there), a word.
inline constexpr int kTiles = kTile;
inline constexpr int kStates = kTiles + kStages * kTile;
inline constexpr int kStateBytes = kGroupThreads * 32;
inline constexpr int kFull = kStates + 2 * kStateBytes;
inline constexpr int kParts = 3;  // of a tile, each with a barrier: scores begin with the first
inline constexpr int kEmpty = kFull + 8 * kStages * kParts;
inline constexpr int kReady = kEmpty + 8 * kStages;
inline constexpr int kWord = kReady + 8 * kStages;
inline constexpr int kSharedBytes = kWord + 16;

// ---- the copying warpgroup ----

// By 16 bytes, with zeros past the end.
__device__ __forceinline__ void CopyTileByThreads(const DeviceLatentAttentionArgs& a,
                                                  const KeyRows& keys, int first, uint32_t tile) {
  constexpr int kChunks = kLatentKeyDim / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kAttentionBlock * kChunks; i += kGroupThreads) {
    const int32_t source = keys.RowOf(first + i / kChunks);
    CopyAsync16(tile + PlaceInTile(i / kChunks, i % kChunks),
                a.kv + static_cast<int64_t>(max(source, 0)) * a.kv_stride + i % kChunks * 8,
                source >= 0);
  }
  CommitCopies();
  WaitForCopies<0>();
  FenceOperands();
}

__device__ __forceinline__ void CopyTiles(const DeviceLatentAttentionArgs& a,
                                          const LatentWork& work, const TileCopies& copies,
                                          uint32_t base) {
  const int num_keys = static_cast<int>(work.seq.num_keys);
  const KeyRows keys = {work.seq.block_table, work.seq.kv_begin, copies.block_shift, num_keys};
  const int boxes_of_panel = copies.box_rows > 0 ? kAttentionBlock / copies.box_rows : 0;
  const uint64_t policy = EvictFirstPolicy();
  WaitForPreviousKernel();
#pragma unroll 1
  for (int block = 0; block < work.num_blocks; ++block) {
    const int slot = block % kStages;
    const uint32_t tile = base + kTiles + slot * kTile;
    const uint32_t full = base + kFull + 8 * kParts * slot;
    if (block >= kStages) BarrierWait(base + kEmpty + 8 * slot, block / kStages % 2 ^ 1);
    const int first = (work.first_block + block) * kAttentionBlock;
    if (copies.box_rows == 0 || first + kAttentionBlock > num_keys) {
      CopyTileByThreads(a, keys, first, tile);
      SyncSome(4, kGroupThreads);
      if (threadIdx.x < kParts) BarrierArrive(full + 8 * threadIdx.x);
      continue;
    }
    if (threadIdx.x >= 32) continue;
    if (threadIdx.x < kParts) BarrierExpect(full + 8 * threadIdx.x, kTile / kParts);
    __syncwarp();
    for (int i = static_cast<int>(threadIdx.x); i < boxes_of_panel * kPanels; i += 32) {
      const int panel = i / boxes_of_panel;
      const int row = i % boxes_of_panel * copies.box_rows;
      const uint32_t place = tile + panel * kPanelBytes + row * 128;
      const uint32_t part_full = full + 8 * (panel / (kPanels / kParts));
      if (copies.comes_once) {
        CopyBoxOnce(place, &copies.kv, panel * 64, keys.RowOf(first + row), part_full, policy);
      } else {
        CopyBox(place, &copies.kv, panel * 64, keys.RowOf(first + row), part_full);
      }
    }
  }
}

// The tile of queries, by both; zeros past the last row.
__device__ __forceinline__ void CopyQueries(const DeviceLatentAttentionArgs& a,
                                            const LatentWork& work, uint32_t base) {
  constexpr int kChunks = kLatentKeyDim / 8;
#pragma unroll 6
  for (int i = static_cast<int>(threadIdx.x) - kGroupThreads; i < kLatentRows * kChunks;
       i += kMultiplying) {
    const int row = work.first_row + i / kChunks;
    const bool is_there = row < work.num_rows;
    const int query = is_there ? row / a.num_heads : 0;
    const int head = is_there ? row % a.num_heads : 0;
    CopyAsync16(
        base + PlaceInTile(i / kChunks, i % kChunks),
        a.q + (work.seq.q_begin + query) * a.q_stride + head * kLatentKeyDim + i % kChunks * 8,
        is_there);
  }
  CommitCopies();
  WaitForCopies<0>();
  FenceOperands();
  SyncSome(3, kMultiplying);
}

}  // namespace quatrain::cuda
