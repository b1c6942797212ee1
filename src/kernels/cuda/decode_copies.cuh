// What feeds the chain warps of the decode kernels (decode_stream.cuh): how a CTA's shared memory
// is cut, and the two warps that copy weights and activations into it.
#pragma once

#include <cstdint>

#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/decode_format.cuh"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp_arrival.cuh"

namespace quatrain::cuda {

inline constexpr int kBoxesPerChunk = 2;
inline constexpr int kMaxChainWarps = 8;

// How the shared memory of a CTA is cut and how far K goes; made by the host, the same for all
// CTAs.
struct StreamLayout {
  int num_warps = 0;       // chain warps
  int num_segments = 1;    // of K; warps of one unit group that work on different segments
  int segment_inputs = 0;  // K of all segments but the last
  int in_features = 0;     // K
  int stage_chunks = 0;    // chunks in a stage: a slot of x and of a ring
  int num_stages = 0;      // of the longest segment
  int weight_slots = 0;    // of each warp's ring
  int x_slots = 0;
  int x_rows = 0;         // rows reserved in a slot
  int x_is_resident = 0;  // the slots hold all of x, until a round has a new one
  // Stages whose weights are asked for before the next kernel may start.
  int start_next_after = 0;
  int boxes_at_once = 1;        // of x, in a copy: one, or those of a stage
  uint32_t stream_pitch = 0;    // of a weight stream in a ring slot
  uint32_t x_pitch = 0;         // of a row of x in a slot
  uint32_t partial_offset = 0;  // offsets in shared memory
  uint32_t x_offset = 0;
  uint32_t weight_offset = 0;
  uint32_t shared_bytes = 0;

  QT_HOST_DEVICE uint32_t XSlotBytes() const { return num_segments * x_rows * x_pitch; }
  QT_HOST_DEVICE int BoxBytes() const { return x_rows * kBoxRowBytes; }
  QT_HOST_DEVICE int BoxCopyBytes() const { return boxes_at_once * BoxBytes(); }
  QT_HOST_DEVICE int FirstInput(int segment, int stage) const {
    return segment * segment_inputs + stage * stage_chunks * static_cast<int>(kChunkInputs);
  }
  // Inputs of a segment, and those of its stage.
  QT_HOST_DEVICE int InputsOf(int segment) const {
    const int left = in_features - segment * segment_inputs;
    return left < 0 ? 0 : left < segment_inputs ? left : segment_inputs;
  }
  QT_HOST_DEVICE int InputsOf(int segment, int stage) const {
    const int stage_inputs = stage_chunks * static_cast<int>(kChunkInputs);
    const int left = InputsOf(segment) - stage * stage_inputs;
    return left < 0 ? 0 : left < stage_inputs ? left : stage_inputs;
  }
};

// Barriers of one CTA, 8 bytes each, at the start of shared memory.
struct StreamBarriers {
  uint32_t x_full, x_empty, weight_full, weight_empty;
  __device__ StreamBarriers(uint32_t base, const StreamLayout& layout, int warp)
      : x_full(base),
        x_empty(base + 8 * layout.x_slots),
        weight_full(base + 16 * layout.x_slots + 16 * warp * layout.weight_slots),
        weight_empty(weight_full + 8 * layout.weight_slots) {}
};

// A position in a ring: slot and the parity of its current phase.
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance(int num_slots) {
    if (++slot == num_slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Copies of boxes that bring a stage of x to a segment.
__device__ __forceinline__ int NumBoxCopies(const StreamLayout& layout, int segment, int stage) {
  constexpr int kInputs = static_cast<int>(kChunkInputs);
  const int boxes = (layout.InputsOf(segment, stage) + kInputs - 1) / kInputs * kBoxesPerChunk;
  return (boxes + layout.boxes_at_once - 1) / layout.boxes_at_once;
}

// Makes the barrier `full` of a slot wait for x of one stage. Where rows come one by one, columns
// past a segment's end are zero to the end of the chunk.
template <class Work>
__device__ __forceinline__ void ExpectStage(const StreamLayout& layout, int rows, int stage,
                                            int lane, uint32_t slot, uint32_t full) {
  int total = 0;
  for (int segment = 0; segment < layout.num_segments; ++segment) {
    if constexpr (Work::kIsTiled) {
      total += NumBoxCopies(layout, segment, stage) * layout.BoxCopyBytes();
    } else {
      const int bytes = 2 * layout.InputsOf(segment, stage);
      total += bytes * rows;
      for (int row = 0; bytes % kChunkXBytes != 0 && row < rows; ++row) {
        const uint32_t at = slot + (segment * layout.x_rows + row) * layout.x_pitch;
        const int end = (bytes + kChunkXBytes - 1) / kChunkXBytes * kChunkXBytes;
        ClearShared(at + bytes, end - bytes, lane);
      }
    }
  }
  __syncwarp();
  ExpectAsWarp(full, total, lane);
  __syncwarp();
}

// x of one stage as at most 32 rows, each in one copy; lane l has row l.
__device__ __forceinline__ void CopyRows(const StreamLayout& layout, const BFloat16* row_of_lane,
                                         int rows, int stage, int lane, uint32_t slot,
                                         uint32_t full) {
  for (int segment = 0; segment < layout.num_segments; ++segment) {
    const int bytes = 2 * layout.InputsOf(segment, stage);
    if (lane < rows && bytes > 0) {
      CopyBulk(slot + (segment * layout.x_rows + lane) * layout.x_pitch,
               row_of_lane + layout.FirstInput(segment, stage), bytes, full);
    }
  }
}

// The same as boxes of all rows by 64 columns, 128 bytes a row, in which the 16-byte parts of row r
// change places by r % 8. Rows and columns past the end are zero.
template <class Work>
__device__ __forceinline__ void CopyBoxes(const StreamLayout& layout, const Work& work, int stage,
                                          int lane, uint32_t slot, uint32_t full) {
  for (int segment = 0; segment < layout.num_segments; ++segment) {
    const uint32_t to = slot + segment * layout.stage_chunks * kBoxesPerChunk * layout.BoxBytes();
    const int first = layout.FirstInput(segment, stage) / kBoxColumns;
#ifdef QT_COPIES_BY_THREADS
    const int parts =
        NumBoxCopies(layout, segment, stage) * layout.boxes_at_once * layout.x_rows * 8;
    for (int i = lane; i < parts; i += 32) {
      const int row = i / 8 % layout.x_rows;
      const int column =
          layout.FirstInput(segment, stage) + i / 8 / layout.x_rows * kBoxColumns + i % 8 * 8;
      const bool is_there = row < work.Rows(0) && column < layout.in_features;
      CopyAsync16(to + i / 8 * kBoxRowBytes + 16 * (i % 8 ^ row % 8),
                  work.Row(0, is_there ? row : 0) + (is_there ? column : 0), is_there);
    }
    CountCopies(full);
#else
    for (int i = lane; i < NumBoxCopies(layout, segment, stage); i += 32) {
      const int box = i * layout.boxes_at_once;
      CopyBoxes(to + box * layout.BoxBytes(), work.x_map,
                {layout.boxes_at_once > 1 ? 0 : (first + box) * kBoxColumns, work.x_row,
                 layout.boxes_at_once > 1 ? first + box : 0},
                full);
    }
#endif
  }
}

// Activation warp: x of every round, stage by stage, into the slots.
template <class Work>
__device__ void StreamActivations(const StreamLayout& layout, const Work& work, uint32_t base,
                                  int lane) {
  const StreamBarriers barriers(base, layout, 0);
  const auto slot_at = [&](int slot) {
    return base + layout.x_offset + slot * layout.XSlotBytes();
  };
  // What needs no x is done before the wait for the kernel that writes it.
  const int num_ahead = work.num_rounds == 0 ? 0 : min(layout.x_slots, layout.num_stages);
  for (int stage = 0; stage < num_ahead; ++stage) {
    ExpectStage<Work>(layout, work.Rows(0), stage, lane, slot_at(stage),
                      barriers.x_full + 8 * stage);
  }
  WaitForPreviousKernel();
  RingPosition ring;
  int filled = 0;
  for (int round = 0; round < work.num_rounds; ++round) {
    if (layout.x_is_resident && !work.HasNewX(round)) continue;
    const int rows = work.Rows(round);
    const BFloat16* const row_of_lane = lane < rows ? work.Row(round, lane) : nullptr;
    for (int stage = 0; stage < layout.num_stages; ++stage, ++filled) {
      const uint32_t slot = slot_at(ring.slot);
      const uint32_t full = barriers.x_full + 8 * ring.slot;
      if (filled >= layout.x_slots) {
        BarrierWait(barriers.x_empty + 8 * ring.slot, ring.parity ^ 1);
      }
      if (filled >= num_ahead) ExpectStage<Work>(layout, rows, stage, lane, slot, full);
      if constexpr (Work::kIsTiled) {
        CopyBoxes(layout, work, stage, lane, slot, full);
      } else {
        CopyRows(layout, row_of_lane, rows, stage, lane, slot, full);
      }
      AllAsked(full, lane == 0);
      ring.Advance(layout.x_slots);
    }
  }
}

// Weight warp: lane (w * streams + stream) copies one stream of chain warp w, stage by stage.
template <class Format, int kRowUnits, class Work>
__device__ void StreamWeights(const StreamLayout& layout, const Work& work, uint32_t base,
                              int lane) {
  constexpr int kStreams = kRowUnits * Format::kStreamsPerUnit;
  constexpr int kPasses = (kStreams * kMaxChainWarps + 31) / 32;
  const uint64_t policy = EvictFirstPolicy();
  const int stage_bytes = layout.stage_chunks * Format::kChunkBytes;
  RingPosition ring[kPasses];
  int filled[kPasses] = {};
  int stages_before_next = layout.start_next_after;
  for (int round = 0; round < work.num_rounds; ++round) {
    const uint8_t* source[kPasses];
    int left[kPasses];
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int index = pass * 32 + lane;
      const int warp = index / kStreams;
      const int segment = warp % layout.num_segments;
      left[pass] = 0;
      source[pass] = nullptr;
      if (warp < layout.num_warps && work.Has(round, warp / layout.num_segments)) {
        source[pass] = work.Source(round, warp / layout.num_segments, index % kStreams, segment);
        left[pass] = Format::StreamBytes(layout.InputsOf(segment));
      }
    }
    for (int stage = 0; stage < layout.num_stages; ++stage) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int index = pass * 32 + lane;
        const int warp = index / kStreams;
        const bool is_on = left[pass] > 0;
        const StreamBarriers barriers(base, layout, is_on ? warp : 0);
        const uint32_t full = barriers.weight_full + 8 * ring[pass].slot;
        const int bytes = min(stage_bytes, left[pass]);
        WaitInLanes(is_on && filled[pass] >= layout.weight_slots,
                    barriers.weight_empty + 8 * ring[pass].slot, ring[pass].parity ^ 1);
        if (is_on && index % kStreams == 0) BarrierExpect(full, bytes * kStreams);
        __syncwarp();
        if (is_on) {
          CopyBulkOnce(
              base + layout.weight_offset +
                  ((warp * layout.weight_slots + ring[pass].slot) * kStreams + index % kStreams) *
                      layout.stream_pitch,
              source[pass], bytes, full, policy);
          source[pass] += bytes;
          left[pass] -= bytes;
          ++filled[pass];
          ring[pass].Advance(layout.weight_slots);
        }
        AllAsked(full, is_on && index % kStreams == 0);
      }
      if (--stages_before_next == 0) LetNextKernelStart();
    }
  }
}

}  // namespace quatrain::cuda
