// The engine of the decode kernels: warps that stream weights and walk chains.
//
//   one CTA = W chain warps + a weight warp + an activation warp
//
//   weight warp ------bulk copies, a ring for each chain warp--->  [stage][stage]...
//   activation warp --copies, all rows of x--------------------->  [slot][slot]...
//                                                                       |
//   chain warp: codes (LDS.128) -> BF16 A fragments (fma) -- B fragments (ldmatrix) --> k16 steps
//
// Weights stand on the m16 side of the tensor-core step (two units of 8 rows, or one and zeros),
// tokens on the n8 side in tiles of 8: what a warp reads from shared memory grows with the tokens,
// not with the tile, and one kernel serves every number of tokens with the same bits. A warp walks
// kRowUnits units x kTokenTiles tiles over the whole K of its segment, chunk by chunk (K128, 8
// steps). Operands are made a pair of steps ahead, codes are read a whole chunk ahead. The first
// weight copies are under way before griddepcontrol.wait, which only the activation warp executes.
//
// What a unit is, where x rows lie and what becomes of a finished sum is the Work's affair:
//   int num_rounds                                       units a warp handles one after the other
//   bool Has(round, group)                               whether a group has units in a round
//   const uint8_t* Source(round, group, stream, segment) start of a weight stream
//   bool HasNewX(round)                                  whether x differs from the round before
//   int Rows(round), const BFloat16* Row(round, row)     the activations of a round
//   kIsTiled                                             x comes in boxes of 64 columns, by
//     x_map, x_row                                       its tensor map, from this row on
//   void Store(round, group, lane, sums)                 epilogue of one warp's units
#pragma once

#include <cstdint>

#include "kernels/cuda/decode_copies.cuh"

namespace quatrain::cuda {

// Keeps the compiler from reading a kernel parameter again and again.
template <class T>
__device__ __forceinline__ void KeepInRegister(T* value) {
  asm volatile("" : "+r"(*value));
}

// One chain warp. Tiles past the last token repeat rows; their sums are not stored. Rows of a tile
// that were never filled give sums of their own only.
template <class Format, int kRowUnits, int kTokenTiles, class Work>
struct ChainWarp {
  static constexpr int kStreams = kRowUnits * Format::kStreamsPerUnit;
  static constexpr int kRowTiles = (kRowUnits + 1) / 2;
  static constexpr int kXAddresses = Work::kIsTiled ? 2 : kTokenTiles;
  // Bytes from a chunk of x to the next in a slot.
  static constexpr int kXStep =
      Work::kIsTiled ? kBoxesPerChunk * 8 * kTokenTiles * kBoxRowBytes : kChunkXBytes;

  struct Codes {
    typename Format::Chunk unit[kRowUnits];
  };
  // Of a pair of steps.
  struct Operands {
    uint32_t weights[kRowUnits][4];  // step 0: inputs 0-7, 8-15; step 1: the same
    uint32_t x[kTokenTiles][4];      // likewise
  };

  const StreamLayout& layout;
  const Work& work;
  const int lane, group, segment;
  const uint32_t base;
  const StreamBarriers barriers;
  uint32_t weights_at;  // of this lane in slot 0 of the ring
  uint32_t slot_bytes, x_slot_bytes, stream_pitch;
  int stage_chunks, weight_slots, x_slots;
  uint32_t x_parity_mask;  // resident slots change their phase with x, not round by round
  uint32_t x_phase;
  bool gives_x_back;     // in this round
  uint32_t scales_from;  // of codes: from a lane's own of a chunk to its scales
  uint32_t x_address[kXAddresses];
  RingPosition w, x;
  uint32_t now_w, now_x;  // current chunk: of this lane; offset of x
  GroupFactors factors[kRowUnits];
  float sums[kRowTiles][kTokenTiles][4];

  __device__ ChainWarp(const StreamLayout& l, const Work& w_, uint32_t shared, int warp, int thread)
      : layout(l),
        work(w_),
        lane(thread),
        group(warp / l.num_segments),
        segment(warp % l.num_segments),
        base(shared),
        barriers(shared, l, warp),
        slot_bytes(kStreams * l.stream_pitch),
        x_slot_bytes(l.XSlotBytes()),
        stream_pitch(l.stream_pitch),
        stage_chunks(l.stage_chunks),
        weight_slots(l.weight_slots),
        x_slots(l.x_slots),
        x_parity_mask(l.x_is_resident ? 0 : 1),
        x_phase(0),
        gives_x_back(true),
        scales_from(0) {
    weights_at = shared + l.weight_offset + warp * l.weight_slots * slot_bytes;
    if constexpr (Format::kIsCodes) {
      weights_at += 16 * lane;
      scales_from = Format::ScalesOf(lane) - 16 * lane;
      KeepInRegister(&scales_from);
    } else {
      // Rows of BF16 weights are read like those of x.
      weights_at += lane % 8 * stream_pitch + 16 * (lane / 8);
    }
#pragma unroll
    for (int i = 0; i < kXAddresses; ++i) {
      if constexpr (Work::kIsTiled) {
        // Of a box's rows the first and the second half; a tile is 8 rows, 1024 bytes.
        x_address[i] = shared + l.x_offset + segment * stage_chunks * kXStep +
                       lane % 8 * kBoxRowBytes + 16 * ((lane / 8) ^ (lane % 8) ^ (4 * i));
      } else {
        const int row = min(i * 8 + lane % 8, l.x_rows - 1);
        x_address[i] =
            shared + l.x_offset + (segment * l.x_rows + row) * l.x_pitch + 16 * (lane / 8);
      }
      KeepInRegister(&x_address[i]);
    }
    KeepInRegister(&weights_at);
    KeepInRegister(&slot_bytes);
    KeepInRegister(&x_slot_bytes);
    KeepInRegister(&stream_pitch);
    KeepInRegister(&stage_chunks);
    KeepInRegister(&weight_slots);
    KeepInRegister(&x_slots);
    KeepInRegister(&x_parity_mask);
  }

  // The stage at w and x: whether it is there, the wait for it, its first chunk.
  __device__ __forceinline__ bool HasStage() const {
    return BarrierTestBoth(barriers.weight_full + 8 * w.slot, w.parity,
                           barriers.x_full + 8 * x.slot, (x.parity & x_parity_mask) ^ x_phase);
  }
  __device__ __forceinline__ void WaitForStage() const {
    BarrierWaitBoth(barriers.weight_full + 8 * w.slot, w.parity, barriers.x_full + 8 * x.slot,
                    (x.parity & x_parity_mask) ^ x_phase);
  }
  __device__ __forceinline__ void PointToStage() {
    now_w = weights_at + w.slot * slot_bytes;
    now_x = x.slot * x_slot_bytes;
  }

  // Of the current chunk or, `further` bytes on, a later one.
  __device__ __forceinline__ void LoadCodes(int further, Codes* codes) {
    if constexpr (Format::kIsCodes) {
#pragma unroll
      for (int u = 0; u < kRowUnits; ++u) {
        const uint32_t at = now_w + u * stream_pitch;
        Format::LoadFrom(at + further, at + scales_from + further, &codes->unit[u]);
      }
    }
  }

  // Operands of pair 0..3 of the chunk at (now_w, now_x); its codes lie in `codes`.
  __device__ __forceinline__ void MakeOperands(const Codes& codes, int pair, Operands* o) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      if constexpr (Work::kIsTiled) {
        LoadMatrices(x_address[pair % 2] + now_x + (pair / 2 * kTokenTiles + t) * 8 * kBoxRowBytes,
                     o->x[t]);
      } else {
        LoadMatrices(x_address[t] + now_x + pair * 64, o->x[t]);
      }
    }
#pragma unroll
    for (int u = 0; u < kRowUnits; ++u) {
      if constexpr (Format::kIsCodes) {
        Format::Weights(codes.unit[u], pair, &factors[u], o->weights[u]);
      } else {
        LoadMatrices(now_w + 8 * u * stream_pitch + pair * 64, o->weights[u]);
      }
    }
  }

  __device__ __forceinline__ void Step(const Operands& o) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const bool is_whole = 2 * m + 1 < kRowUnits;
        const uint32_t* upper = o.weights[2 * m] + 2 * half;
        const uint32_t* lower = o.weights[is_whole ? 2 * m + 1 : 0] + 2 * half;
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
          ChainStep(sums[m][t], upper[0], is_whole ? lower[0] : 0u, upper[1],
                    is_whole ? lower[1] : 0u, o.x[t] + 2 * half);
        }
      }
    }
  }

  // Walks one chunk, whose first pair is in `o[0]`; leaves the first pair of the next one of the
  // stage there and its codes in `next`, which are read a whole chunk ahead.
  __device__ __forceinline__ void WalkChunk(const Codes& now, Codes* next, Operands (&o)[2]) {
    LoadCodes(Format::kChunkBytes, next);
    MakeOperands(now, 1, &o[1]);
    Step(o[0]);
    MakeOperands(now, 2, &o[0]);
    Step(o[1]);
    MakeOperands(now, 3, &o[1]);
    now_w += Format::kChunkBytes;
    now_x += kXStep;
    Step(o[0]);
    MakeOperands(*next, 0, &o[0]);
    Step(o[1]);
  }

  // The same for a stage's last chunk: gives the stage back and goes on to the next one. A branch
  // makes the compiler wait for the steps before it, so the one that is there is seldom taken, and
  // where no stage follows, this chunk is read again, which nobody uses, before it is given back.
  __device__ __forceinline__ void WalkLastChunk(bool has_next, Codes* codes, Operands (&o)[2]) {
    const uint32_t weight_done = barriers.weight_empty + 8 * w.slot;
    const uint32_t x_done = barriers.x_empty + 8 * x.slot;
    const bool arrives = lane < kArrivingLanes;
    const bool gives_x = arrives && gives_x_back;
    w.Advance(weight_slots);
    x.Advance(x_slots);
    MakeOperands(*codes, 1, &o[1]);
    Step(o[0]);
    const bool is_there = HasStage();
    MakeOperands(*codes, 2, &o[0]);
    Step(o[1]);
    MakeOperands(*codes, 3, &o[1]);
    EndReads();
    BarrierArriveAtTwo(weight_done, arrives && has_next, x_done, gives_x && has_next);
    if (has_next && !is_there) WaitForStage();
    if (has_next) PointToStage();
    LoadCodes(0, codes);
    Step(o[0]);
    MakeOperands(*codes, 0, &o[0]);
    EndReads();
    BarrierArriveAtTwo(weight_done, arrives && !has_next, x_done, gives_x && !has_next);
    Step(o[1]);
  }

  // Walks all chunks of a round.
  __device__ __forceinline__ void WalkStages(int num_chunks) {
    Codes codes[2];
    Operands operands[2];
    WaitForStage();
    PointToStage();
    LoadCodes(0, &codes[0]);
    MakeOperands(codes[0], 0, &operands[0]);
    int left = num_chunks;
#pragma unroll 1
    while (left > 0) {
      int before_last = min(stage_chunks, left) - 1;
      left -= before_last + 1;
#pragma unroll 1
      for (; before_last >= 2; before_last -= 2) {
        WalkChunk(codes[0], &codes[1], operands);
        WalkChunk(codes[1], &codes[0], operands);
      }
      if (before_last == 1) {
        WalkChunk(codes[0], &codes[1], operands);
        codes[0] = codes[1];
      }
      WalkLastChunk(left > 0, &codes[0], operands);
    }
  }

  // Sum of the segments' sums, in ascending order, in the warp of segment 0.
  __device__ __forceinline__ void AddSegments() {
    constexpr int kTiles = kRowTiles * kTokenTiles;
    constexpr int kWarpBytes = kTiles * 32 * 16;
    const uint32_t partials =
        base + layout.partial_offset + group * (layout.num_segments - 1) * kWarpBytes;
    const int threads = 32 * layout.num_segments;
    if (segment > 0) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const float(&s)[4] = sums[i / kTokenTiles][i % kTokenTiles];
        StoreShared16(partials + (segment - 1) * kWarpBytes + i * 512 + lane * 16, s);
      }
    }
    SyncSome(group + 1, threads);
    for (int from = 0; segment == 0 && from < layout.num_segments - 1; ++from) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float* s = sums[i / kTokenTiles][i % kTokenTiles];
        const uint4 p = LoadShared16(partials + from * kWarpBytes + i * 512 + lane * 16);
        s[0] = __fadd_rn(s[0], __uint_as_float(p.x));
        s[1] = __fadd_rn(s[1], __uint_as_float(p.y));
        s[2] = __fadd_rn(s[2], __uint_as_float(p.z));
        s[3] = __fadd_rn(s[3], __uint_as_float(p.w));
      }
    }
    SyncSome(group + 1, threads);
  }

  // Gives x of `stages` stages back that this warp does not use.
  __device__ __forceinline__ void PassStages(int stages) {
    for (int i = 0; i < stages; ++i) {
      if (gives_x_back) {
        BarrierWait(barriers.x_full + 8 * x.slot, (x.parity & x_parity_mask) ^ x_phase);
        __syncwarp();
        ArriveAsWarp(barriers.x_empty + 8 * x.slot, lane);
      }
      x.Advance(x_slots);
    }
  }

  __device__ void Run() {
    const int num_chunks =
        (layout.InputsOf(segment) + static_cast<int>(kChunkInputs) - 1) / kChunkInputs;
    const int my_stages = (num_chunks + stage_chunks - 1) / stage_chunks;
#pragma unroll 1
    for (int round = 0; round < work.num_rounds; ++round) {
      if (layout.x_is_resident) {
        if (round > 0 && work.HasNewX(round)) x_phase ^= 1;
        gives_x_back = round + 1 < work.num_rounds && work.HasNewX(round + 1);
      }
      if (!work.Has(round, group)) {
        PassStages(layout.num_stages);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kRowTiles * kTokenTiles * 4; ++i) {
        sums[i / 4 / kTokenTiles][i / 4 % kTokenTiles][i % 4] = 0.0f;
      }
      WalkStages(num_chunks);
      PassStages(layout.num_stages - my_stages);
      if (layout.num_segments > 1) AddSegments();
      if (segment == 0) work.Store(round, group, lane, sums);
    }
  }
};

// All warps of a CTA. Barriers lie at the start of shared memory, the rest as StreamLayout says.
template <class Format, int kRowUnits, int kTokenTiles, class Work>
__device__ __forceinline__ void RunStream(const StreamLayout& layout, const Work& work,
                                          uint8_t* shared) {
  const uint32_t base = SharedAddress(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const StreamBarriers barriers(base, layout, 0);
  if (warp < layout.num_warps) {
    __syncthreads();
    ChainWarp<Format, kRowUnits, kTokenTiles, Work> chain(layout, work, base, warp, lane);
    chain.Run();
  } else if (warp == layout.num_warps) {
    const int num_slots = layout.num_warps * layout.weight_slots;
    // A warp's slots, full then empty, follow those of the warp before.
    for (int i = lane; i < 2 * num_slots; i += 32) {
      const bool is_full = i % (2 * layout.weight_slots) < layout.weight_slots;
      BarrierInit(barriers.weight_full + 8 * i, is_full ? 1 : ArrivalsOf(1));
    }
    // Past the end of a row of BF16 weights: zeros from the start, or old weights.
    const bool is_ragged = (layout.segment_inputs | layout.in_features) % kChunkInputs != 0;
    if (!Format::kIsCodes && is_ragged) {
      ClearShared(base + layout.weight_offset,
                  num_slots * kRowUnits * Format::kStreamsPerUnit * layout.stream_pitch, lane);
    }
    FenceForCopies();
    __syncthreads();
    StreamWeights<Format, kRowUnits>(layout, work, base, lane);
  } else {
    for (int i = lane; i < layout.x_slots; i += 32) {
      BarrierInit(barriers.x_full + 8 * i, ArrivalsOf(1));
      BarrierInit(barriers.x_empty + 8 * i, ArrivalsOf(layout.num_warps));
    }
    FenceForCopies();
    if constexpr (Work::kIsTiled) {
      if (lane == 0) PrefetchMap(work.x_map);
    }
    __syncthreads();
    StreamActivations(layout, work, base, lane);
  }
}

}  // namespace quatrain::cuda
