// How the host cuts the shared memory of a decode kernel into slots of weights and activations.
#pragma once

#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/decode_stream.cuh"

namespace quatrain::cuda {

inline constexpr int kHalfMultiprocessor = 112 << 10;  // two CTAs at a time: the next kernel's too
inline constexpr int kWholeMultiprocessor = 220 << 10;

// What CutSharedMemory needs beside warps, segments, K and x_rows of the layout.
struct SharedMemoryCut {
  int chunk_bytes = 0;    // of a weight stream
  int padding = 0;        // of a weight stream in a slot
  int num_streams = 0;    // of a warp
  int partial_bytes = 0;  // of one warp's sums
  int stage_chunks = 0;   // 0: chosen here
  int budget = 0;         // bytes
  int num_rounds = 0;     // of a CTA, or more; 0: not known
  bool is_tiled = false;  // x in boxes
};

// Fills slots and offsets of a layout for one length of stage. False if it does not fit.
inline bool CutForStage(const SharedMemoryCut& cut, int stage_chunks, StreamLayout* layout) {
  StreamLayout& l = *layout;
  const int groups = l.num_warps / l.num_segments;
  const int segment_chunks = static_cast<int>((l.InputsOf(0) + kChunkInputs - 1) / kChunkInputs);
  l.stage_chunks = stage_chunks;
  l.num_stages = (segment_chunks + stage_chunks - 1) / stage_chunks;
  l.stream_pitch = stage_chunks * cut.chunk_bytes + cut.padding;
  l.x_pitch = stage_chunks * kChunkXBytes + (cut.is_tiled ? 0 : kRowPadding);
  const int partial_bytes = groups * (l.num_segments - 1) * cut.partial_bytes;
  const int x_slot = static_cast<int>(l.XSlotBytes());
  const int fixed = partial_bytes + 2304;  // and what alignment takes
  // x stays where several rounds read it and it leaves room enough; otherwise weights and x share
  // the room as they share the copies.
  const int room = cut.budget - fixed;
  const int slot_bytes = l.num_warps * cut.num_streams * static_cast<int>(l.stream_pitch);
  l.x_is_resident = l.num_stages * x_slot <= (cut.num_rounds > 1 ? room / 8 * 5 : room / 3) ? 1 : 0;
  const int x_room = static_cast<int>(int64_t{room} * x_slot / (x_slot + slot_bytes));
  l.x_slots = l.x_is_resident ? l.num_stages
                              : std::clamp(x_room / (x_slot + 16), 2, std::max(2, l.num_stages));
  const int left = room - l.x_slots * (x_slot + 16);
  l.weight_slots = left < 0 ? 0 : left / (slot_bytes + 16 * l.num_warps);
  if (cut.num_rounds > 0) l.weight_slots = std::min(l.weight_slots, l.num_stages * cut.num_rounds);
  // A chain warp waits for a stage before it gives the one before back.
  if (l.weight_slots < (l.num_stages * cut.num_rounds == 1 ? 1 : 2)) return false;
  uint32_t at = 16 * (l.x_slots + l.num_warps * l.weight_slots);
  const auto take = [&at](uint32_t bytes, uint32_t alignment) {
    at = (at + alignment - 1) / alignment * alignment;
    const uint32_t offset = at;
    at += bytes;
    return offset;
  };
  l.partial_offset = take(partial_bytes, 128);
  l.x_offset = take(l.x_slots * x_slot, 1024);
  l.weight_offset = take(l.weight_slots * slot_bytes, 128);
  l.shared_bytes = at;
  return true;
}

// Bytes on their way while a stage is in use, up to what hides the latency of memory; fewer count
// where slots are few.
inline int BytesUnderWay(const SharedMemoryCut& cut, const StreamLayout& l) {
  constexpr int kEnough = 40 << 10;
  constexpr int kManySlots = 8;
  const int weight_bytes = l.num_warps * cut.num_streams * static_cast<int>(l.stream_pitch);
  const bool holds_all = cut.num_rounds > 0 && l.weight_slots >= l.num_stages * cut.num_rounds;
  const int weight_lead = holds_all ? kManySlots : l.weight_slots - 1;
  const int x_lead = l.x_is_resident || l.x_slots >= l.num_stages ? kManySlots : l.x_slots - 1;
  const int lead = std::min(weight_lead, x_lead);
  const int bytes = lead * (weight_bytes + (l.x_is_resident ? 0 : l.XSlotBytes()));
  const int counted = lead == kManySlots ? kEnough : std::min(bytes, kEnough);
  if (lead >= 2) return counted;
  // Measured on an H100: many stages need a second one on its way less.
  constexpr int kManyStages = 12;
  return cut.num_rounds > 0 && l.num_stages >= kManyStages ? counted / 8 * 7 : counted / 2;
}

// The longest stage that keeps enough bytes under way, else the one that keeps most.
inline void CutSharedMemory(const SharedMemoryCut& cut, StreamLayout* layout) {
  if (cut.stage_chunks > 0 && CutForStage(cut, cut.stage_chunks, layout)) return;
  int best = 0;
  int best_score = -1;
  for (const int stage_chunks : {16, 12, 8, 6, 4, 3, 2, 1}) {
    StreamLayout trial = *layout;
    if (!CutForStage(cut, stage_chunks, &trial)) continue;
    int score = BytesUnderWay(cut, trial);
    // Copies should be long, above all rows of BF16 weights, which are copies of their own; longer
    // than this they only come later.
    constexpr int kLong = 4;
    const bool is_plain = cut.padding > 0;
    if (is_plain || cut.num_rounds > 0) score *= std::min(stage_chunks, kLong);
    if (score > best_score || (score == best_score && is_plain && stage_chunks >= kLong)) {
      best = stage_chunks;
      best_score = score;
    }
  }
  QT_CHECK(best > 0 && CutForStage(cut, best, layout), "no room for weights: {} warps, {} bytes",
           layout->num_warps, cut.budget);
}

// Where slots hold most of the weights but not all, the next kernel's first copies would come
// before this one's last: it starts when the first slot has been filled again. For CTAs alone on
// their multiprocessor with BF16 weights; INT4 gained nothing.
inline int StagesBeforeNextKernel(const StreamLayout& l, int num_rounds) {
  const bool holds_most =
      num_rounds == 1 && l.weight_slots < l.num_stages && 2 * l.weight_slots >= l.num_stages;
  return holds_most ? l.weight_slots + 1 : 0;
}

}  // namespace quatrain::cuda
