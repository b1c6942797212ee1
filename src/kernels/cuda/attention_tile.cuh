// What the attention kernels share beside the scalar steps of canonical.cuh: where a key lies,
// tiles of 64 keys in shared memory (swizzled as wgmma and ldmatrix want them), and the checks of
// the arguments.
#pragma once

#include <bit>
#include <string>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"

namespace quatrain::cuda {

inline constexpr int kTilesPerSegment = kAttentionSegment / kAttentionBlock;

// A tile of 64 keys: head_dim / 64 panels of 64 rows x 128 bytes, 16-byte chunk c of row r at c ^
// (r % 8).
inline constexpr int kPanelBytes = kAttentionBlock * 128;
template <int kHeadDim>
inline constexpr int kTileBytes = kHeadDim / 64 * kPanelBytes;

__device__ __forceinline__ uint32_t PlaceInTile(int row, int chunk) {
  return static_cast<uint32_t>(chunk / 8 * kPanelBytes + row * 128 +
                               ((chunk % 8) ^ (row % 8)) * 16);
}

// Keys of one sequence, as rows of k and v.
struct KeyRows {
  const int32_t* block_table;
  int64_t kv_begin;
  int block_shift;
  int num_keys;

  // -1 past the end.
  __device__ __forceinline__ int32_t RowOf(int key) const {
    if (key >= num_keys) return -1;
    if (block_table == nullptr) return static_cast<int32_t>(kv_begin) + key;
    const int32_t block = __ldg(block_table + (key >> block_shift));
    return (block << block_shift) + (key & ((1 << block_shift) - 1));
  }
};

// A thread's share of a row of q as the A operand of head_dim / 16 steps: row lane / 4, with r = 1
// that eight on; `source`: the row's element lane % 4 * 2.
template <int kHeadDim>
__device__ __forceinline__ void LoadQueryRow(const BFloat16* source, int r,
                                             uint32_t (&q)[kHeadDim / 16][4]) {
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    q[step][r] = *reinterpret_cast<const uint32_t*>(source + step * 16);
    q[step][2 + r] = *reinterpret_cast<const uint32_t*>(source + step * 16 + 8);
  }
}

// Before the return of a CTA without work. One CTA waits for the kernel before all the same: were
// none to, this kernel might end before that one does, and the next one, which waits for this one
// alone, read what is not there yet. (An H100 holds the end back; PTX does not say so.)
__device__ __forceinline__ void EndWithoutWork() {
  if (blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) WaitForPreviousKernel();
}

inline void CheckAttention(const DeviceAttentionArgs& a) {
  const bool fits = (a.head_dim == 64 || a.head_dim == 128 || a.head_dim == 256) &&
                    a.num_kv_heads > 0 && a.num_heads % a.num_kv_heads == 0 &&
                    a.q_stride % 8 == 0 && a.kv_stride % 8 == 0 &&
                    (a.block_size == 0 || std::has_single_bit(static_cast<unsigned>(a.block_size)));
  if (fits) return;
  throw Error(
      ErrorCode::kShape,
      {.where = "attention on the device",
       .what = "no kernel for this shape",
       .expected = "head_dim 64, 128 or 256, whole groups of heads, strides in multiples of "
                   "8, a power of two as block size",
       .found = "head_dim " + std::to_string(a.head_dim) + ", " + std::to_string(a.num_heads) +
                "/" + std::to_string(a.num_kv_heads) + " heads, strides " +
                std::to_string(a.q_stride) + " and " + std::to_string(a.kv_stride) +
                ", blocks of " + std::to_string(a.block_size)});
}

// block_size: of a page, 0 without pages.
inline int BlockShift(int block_size) {
  return block_size == 0 ? 0 : std::countr_zero(static_cast<unsigned>(block_size));
}

// Rows of the boxes that the copy engine brings a tile in, none of which spans pages; 0 where pages
// are too short for boxes.
inline int BoxRows(int block_size) {
  constexpr int kLeastBoxRows = 8;  // eight rows are what the swizzle repeats after
  if (block_size == 0 || block_size >= kAttentionBlock) return kAttentionBlock;
  return block_size >= kLeastBoxRows ? block_size : 0;
}

}  // namespace quatrain::cuda
