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

// Before the return of a CTA without work. One CTA waits for the kernel before all the same: were
// none to, this kernel might end before that one does, and the next one, which waits for this one
// alone, read what is not there yet. (An H100 holds the end back; PTX does not say so.)
__device__ __forceinline__ void EndWithoutWork() {
  if (blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) WaitForPreviousKernel();
}

// Copies a tile of k or v (base: the kv head's first element). rows: the row of each of its 64
// keys, in shared memory, -1 past the end: zeros then.
template <int kHeadDim, int kThreads>
__device__ __forceinline__ void CopyTile(const int32_t* rows, const BFloat16* base, int64_t stride,
                                         uint32_t tile, int thread) {
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kRowsAtOnce = kThreads / kChunks;
  const int chunk = thread % kChunks;
#pragma unroll 8
  for (int i = 0; i < kAttentionBlock / kRowsAtOnce; ++i) {
    const int row = thread / kChunks + i * kRowsAtOnce;
    const int32_t source = rows[row];
    CopyAsync16(tile + PlaceInTile(row, chunk),
                base + static_cast<int64_t>(max(source, 0)) * stride + 8 * chunk, source >= 0);
  }
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

inline int BlockShift(const DeviceAttentionArgs& a) {
  return a.block_size == 0 ? 0 : std::countr_zero(static_cast<unsigned>(a.block_size));
}

}  // namespace quatrain::cuda
