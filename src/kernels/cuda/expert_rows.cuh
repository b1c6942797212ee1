// What kernels over the rows of experts share (moe_wide.cu, input_grad.cu): how they start, which
// rows of which expert a CTA takes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_wide_stream.cuh"
#include "kernels/cuda/warp_arrival.cuh"

namespace quatrain::cuda {

// Rows sorted by expert, in device memory.
struct ExpertRows {
  const int32_t* begin;  // [num_experts + 1]; null: one expert has all rows
  int num_experts;
  int num_rows;
  int blocks;  // of a matrix, each of which meets all rows
};

// What a CTA multiplies at a time.
struct RowsTile {
  int expert;
  int row_begin;
  int num_rows;
  int block;
};

// Where every expert's rows and tiles of kTokens rows begin, [E + 1] each, in shared memory.
template <int kTokens>
struct ExpertTiles {
  int* row_begin;
  int* tile_begin;

  __device__ ExpertTiles(uint8_t* shared, int num_experts)
      : row_begin(reinterpret_cast<int*>(shared)), tile_begin(row_begin + num_experts + 1) {}

  // By all threads; ends with a barrier.
  __device__ void Fill(const ExpertRows& rows) const {
    for (int e = static_cast<int>(threadIdx.x); e <= rows.num_experts;
         e += static_cast<int>(blockDim.x)) {
      row_begin[e] = rows.begin != nullptr ? __ldcg(rows.begin + e) : e * rows.num_rows;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      const int lane = static_cast<int>(threadIdx.x);
      const int each = (rows.num_experts + 31) / 32;
      const int first = min(lane * each, rows.num_experts);
      const int last = min(first + each, rows.num_experts);
      const auto tiles_of = [&](int e) {
        return (row_begin[e + 1] - row_begin[e] + kTokens - 1) / kTokens;
      };
      int tiles = 0;
      for (int e = first; e < last; ++e) tiles += tiles_of(e);
      int up_to = tiles;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(0xFFFFFFFFu, up_to, distance);
        if (lane >= distance) up_to += before;
      }
      if (lane == 0) tile_begin[0] = 0;
      int at = up_to - tiles;
      for (int e = first; e < last; ++e) tile_begin[e + 1] = at += tiles_of(e);
    }
    __syncthreads();
  }

  __device__ __forceinline__ int NumTiles(const ExpertRows& rows) const {
    return __shfl_sync(0xFFFFFFFFu, tile_begin[rows.num_experts] * rows.blocks, 0);
  }

  // By a whole warp.
  __device__ __forceinline__ RowsTile Tile(const ExpertRows& rows, int index) const {
    const int of_rows = index / rows.blocks;
    unsigned before = 0;
    for (int e = static_cast<int>(threadIdx.x) % 32; e < rows.num_experts; e += 32) {
      before += tile_begin[e + 1] <= of_rows;
    }
    const int expert = static_cast<int>(__reduce_add_sync(0xFFFFFFFFu, before));
    const int begin = row_begin[expert] + (of_rows - tile_begin[expert]) * kTokens;
    return {expert, begin, min(kTokens, row_begin[expert + 1] - begin), index % rows.blocks};
  }
};

// The start of such a kernel, by all threads. At the beginning of shared memory stand the barriers
// of its slots, full ones and then empty ones, at which `num_warps` warps give a slot back; behind
// kBarrierBytes the tiles.
template <int kTokens>
__device__ __forceinline__ ExpertTiles<kTokens> StartOverExperts(uint8_t* shared, int num_slots,
                                                                 int num_warps,
                                                                 const ExpertRows& rows) {
  LetNextKernelStart();
  if (threadIdx.x == 0) {
    const uint32_t full = SharedAddress(shared);
    for (int i = 0; i < num_slots; ++i) {
      BarrierInit(full + 8 * i, 1);
      BarrierInit(full + 8 * (num_slots + i), ArrivalsOf(num_warps));
    }
    FenceForCopies();
  }
  WaitForPreviousKernel();
  const ExpertTiles<kTokens> tiles(shared + kBarrierBytes, rows.num_experts);
  tiles.Fill(rows);
  return tiles;
}

// ---- host ----

// Places in shared memory that boxes are copied to.
inline uint32_t AlignedTo1024(uint32_t bytes) { return (bytes + 1023) / 1024 * 1024; }

// Where the tiles of such a kernel end in shared memory.
inline uint32_t EndOfTiles(const ExpertRows& rows) {
  return AlignedTo1024(kBarrierBytes + 8 * (rows.num_experts + 1));
}

// CTAs of a launch: one a multiprocessor, and no more than there may be tiles.
template <int kTokens>
unsigned CtasFor(const ExpertRows& rows) {
  const int64_t most =
      (int64_t{std::min(rows.num_rows, rows.num_experts)} + rows.num_rows / kTokens) * rows.blocks;
  return static_cast<unsigned>(std::min<int64_t>(most, NumMultiprocessors()));
}

}  // namespace quatrain::cuda
