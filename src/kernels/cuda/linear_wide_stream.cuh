// What the copying warps of the wide linear (linear_wide_kernel.cuh) do, and what they share with
// the warps that multiply: a launch's parameters, two rings of slots, which rows of x a CTA has.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/decode_format.cuh"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp_arrival.cuh"

namespace quatrain::cuda {

inline constexpr int kUnitsOfWarp = 2;
inline constexpr int kRowsOfGroup = 64;
inline constexpr int kStepBytes = 32;       // of a row in a box
inline constexpr int kBarrierBytes = 1024;  // at the start of shared memory
inline constexpr int kSharedBudget = 226 << 10;
inline constexpr int kMostSlots = 32;  // of x
inline constexpr int kMostGroups = 3;
inline constexpr int kMostTokens = 128;
inline constexpr int kCopyingThreads = 64;
inline constexpr int kXSlotBytes = 16 << 10;
inline constexpr int kStagePitch = kRowsOfGroup + 4;  // floats of a token's sums; no bank conflicts
// Boxes of x that come together.
template <int kTokens>
inline constexpr int kBoxesAtOnce = kXSlotBytes / (kTokens * kBoxRowBytes);
// Chunks of codes that come together: short copies cost as much as long ones.
inline constexpr int kChunksAtOnce = 4;

// A pair of units, 16 rows of the matrix, is what a warp holds.
struct WideParameters {
  const uint8_t* weight;
  const BFloat16* bias;
  const BFloat16* residual;
  BFloat16* y;
  float* y_float;
  int64_t unit_bytes;  // of a unit's codes in all of K
  int num_units;
  int partner_units;  // from a unit of gate to the same of up, which a warp holds with it; 0: the
                      // warp's units are neighbours
  int is_aligned;     // y, bias and residual in parts of 4
  int out_features;   // of y
  int num_tokens;
  int num_chunks;
  int cluster;
  int weight_slots;
  int x_slots;
  uint32_t unit_pitch;     // of a unit's codes in a slot
  uint32_t weight_offset;  // of the first slot in shared memory
  uint32_t weight_bytes;   // of a slot
};

// Barriers of a CTA, 8 bytes each, at the start of shared memory, for x_slots and weight_slots.
struct WideBarriers {
  uint32_t x_full, x_empty, weight_full, weight_empty;
  template <class Parameters>
  __device__ WideBarriers(uint32_t base, const Parameters& p)
      : x_full(base),
        x_empty(x_full + 8 * p.x_slots),
        weight_full(x_empty + 8 * p.x_slots),
        weight_empty(weight_full + 8 * p.weight_slots) {}
};

// A slot of a ring, and the parity of its phase.
struct WideSlot {
  int index;
  uint32_t parity;
  __device__ __forceinline__ void Advance(int num_slots) {
    if (++index == num_slots) {
      index = 0;
      parity ^= 1;
    }
  }
};

// Rows of x that a CTA multiplies.
struct WideTile {
  int row_begin;
  int num_rows;
};

template <int kTokens>
__device__ __forceinline__ WideTile TileOf(const WideParameters& p) {
  const int begin = static_cast<int>(blockIdx.y) * kTokens;
  return {begin, min(kTokens, p.num_tokens - begin)};
}

// The warp that copies weights: lane u has unit u of the CTA.
template <class Format>
__device__ __forceinline__ void CopyWeights(const WideParameters& p, uint32_t base,
                                            int num_groups) {
  constexpr int kChunks = kChunksAtOnce;
  const int lane = threadIdx.x % 32;
  const WideBarriers barriers(base, p);
  const uint64_t policy = EvictFirstPolicy();
  const int num_units = num_groups * kRowsOfGroup / static_cast<int>(kUnitRows);
  // Past the end: the last unit again; its sums are not stored.
  const int place = static_cast<int>(blockIdx.x) * num_units + lane;
  const int wanted = p.partner_units == 0 ? place : place / 2 + place % 2 * p.partner_units;
  const int unit = min(wanted, p.num_units - 1);
  const uint8_t* source = p.weight + unit * p.unit_bytes;
  WideSlot slot = {0, 1};
  for (int chunk = 0; chunk < p.num_chunks; chunk += kChunks) {
    // Not after all copies: other warps of the CTA may by then have arrived at the cluster's second
    // barrier, and a warp that waits for the first one then never comes back.
    if (chunk == p.weight_slots * kChunks) WaitForCluster();
    if (chunk >= p.weight_slots * kChunks) {
      BarrierWait(barriers.weight_empty + 8 * slot.index, slot.parity);
    }
    const uint32_t full = barriers.weight_full + 8 * slot.index;
    const uint32_t to = base + p.weight_offset + slot.index * p.weight_bytes;
    const int bytes = min(kChunks, p.num_chunks - chunk) * Format::kChunkBytes;
    if (lane == 0) BarrierExpect(full, num_units * bytes);
    __syncwarp();
    if (lane < num_units) {
      if (gridDim.y == 1) {
        CopyBulkOnce(to + lane * p.unit_pitch, source, bytes, full, policy);
      } else {
        CopyBulk(to + lane * p.unit_pitch, source, bytes, full);
      }
      source += bytes;
    }
    slot.Advance(p.weight_slots);
  }
  if (p.num_chunks <= p.weight_slots * kChunks) WaitForCluster();
}

// The warp that copies this CTA's share of x, to all CTAs of the cluster.
template <int kTokens>
__device__ __forceinline__ void CopyX(const WideParameters& p, const CUtensorMap* x_map,
                                      uint32_t base, const WideTile& tile) {
  constexpr int kBoxes = kBoxesAtOnce<kTokens>;
  const int lane = threadIdx.x % 32;
  const WideBarriers barriers(base, p);
  const int rank = static_cast<int>(RankInCluster());
  const int rows_each = kTokens / p.cluster;
  const auto ctas = static_cast<uint16_t>((1 << p.cluster) - 1);
  const int num_boxes = 2 * p.num_chunks;
  WideSlot slot = {0, 1};
  for (int box = 0; box < num_boxes; box += kBoxes) {
    const uint32_t full = barriers.x_full + 8 * slot.index;
    const int boxes = min(kBoxes, num_boxes - box);
    if (box >= p.x_slots * kBoxes) {
      BarrierWait(barriers.x_empty + 8 * slot.index, slot.parity);
    }
    if (lane == 0) BarrierExpect(full, boxes * kTokens * kBoxRowBytes);
    __syncwarp();
    if (lane < boxes) {
      const int first_row = (slot.index * kBoxes + lane) * kTokens + rank * rows_each;
      CopyBoxToAll(base + kBarrierBytes + first_row * kBoxRowBytes, x_map,
                   (box + lane) * kBoxColumns, tile.row_begin + rank * rows_each, full, ctas);
    }
    slot.Advance(p.x_slots);
  }
}

}  // namespace quatrain::cuda
