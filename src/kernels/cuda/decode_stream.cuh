// The engine of the decode kernels: warps that stream weights and walk chains.
//
//   one CTA = W chain warps + a weight warp + an activation warp
//
//   weight warp ------bulk copies, a ring for each chain warp--->  [stage][stage]...   K256 a stage
//   activation warp --bulk copies, all rows of x---------------->  [slot][slot]...     K256 a slot
//                                                                       |
//   chain warp: codes (LDS.128) -> BF16 B fragments (fma) -- A fragments (ldmatrix) --> k16 steps
//
// Weights stand on the n8 side of the tensor-core step (8 rows a unit), tokens on the m16 side, so
// one kernel serves every number of tokens with the same bits. A warp walks kRowUnits units x
// kTokenTiles tiles of 16 tokens, one chain each, over the whole K of its segment. Fragments are
// loaded a chunk (K128, 8 steps) ahead, into the registers that the step before has just left. The
// first weight copies are under way before griddepcontrol.wait, which only the activation warp
// executes.
//
// What a unit is, where x rows lie and what becomes of a finished sum is the Work's affair:
//   int num_rounds                                       units a warp handles one after the other
//   const uint8_t* Source(round, group, stream, segment) start of a weight stream
//   int Rows(round), const BFloat16* Row(round, row)     the activations of a round
//   void Store(round, group, totals)                     epilogue of one warp's units
#pragma once

#include <cstdint>

#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/packed_layout.h"

namespace quatrain::cuda {

inline constexpr int kStageInputs = 256;
inline constexpr int kSlotRowBytes = kStageInputs * 2 + 16;  // padded: ldmatrix without conflicts
inline constexpr int kZeroBytes = 1152;                      // a chunk or a row of zeros
inline constexpr int kMaxChainWarps = 8;

// How the shared memory of a CTA is cut and how far K goes; made by the host, the same for all
// CTAs.
struct StreamLayout {
  int num_warps = 0;       // chain warps
  int num_segments = 1;    // of K; warps of one unit group that work on different segments
  int num_stages = 0;      // K256 steps of the longest segment
  int segment_inputs = 0;  // K of all segments but the last
  int in_features = 0;     // K
  int weight_slots = 0;    // of each warp's ring
  int x_slots = 0;
  int x_rows = 0;            // rows reserved in a slot
  int x_is_resident = 0;     // the slots hold all of x, which is the same in every round
  uint32_t zero_offset = 0;  // offsets in shared memory
  uint32_t partial_offset = 0;
  uint32_t x_offset = 0;
  uint32_t weight_offset = 0;
  uint32_t shared_bytes = 0;
};

// Codes of kBits with kScales (1, 2, 4) scales of each row in a chunk.
template <int kBits_, int kScales_>
struct CodeFormat {
  static constexpr int kBits = kBits_;
  static constexpr int kScales = kScales_;
  static constexpr bool kIsCodes = true;
  static constexpr int kStreamsPerUnit = 1;
  static constexpr int kCodeBytes = 1024 * kBits / 8;
  static constexpr int kChunkBytes = kCodeBytes + 16 * kScales;
  static constexpr int kStageBytes = 2 * kChunkBytes;  // of one stream
  static constexpr int kStreamPitch = kStageBytes;     // in a ring slot
  static constexpr float kUnscale = kCodeUnscale;
  // Bytes of a stream over `inputs` of K.
  static __device__ int StreamBytes(int inputs) { return (inputs + 127) / 128 * kChunkBytes; }

  struct Chunk {
    uint4 codes[kBits / 4];
    uint32_t scales[kScales > 2 ? 2 : 1];
  };
  // `address`: of the chunk in shared memory.
  static __device__ __forceinline__ void Load(uint32_t address, int lane, Chunk* chunk) {
    chunk->codes[0] = LoadShared16(address + lane * 16);
    if constexpr (kBits == 8) chunk->codes[1] = LoadShared16(address + 512 + lane * 16);
    const uint32_t at = address + kCodeBytes + (lane / 4) * 2 * kScales;
    if constexpr (kScales == 1) {
      asm volatile("ld.shared.u16 %0, [%1];" : "=r"(chunk->scales[0]) : "r"(at) : "memory");
    } else if constexpr (kScales == 2) {
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(chunk->scales[0]) : "r"(at) : "memory");
    } else {
      asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];"
                   : "=r"(chunk->scales[0]), "=r"(chunk->scales[1])
                   : "r"(at)
                   : "memory");
    }
  }
  // B fragments of steps 2 pair and 2 pair + 1; `factors` is carried from pair to pair of a chunk.
  static __device__ __forceinline__ void Weights(const Chunk& chunk, int pair,
                                                 GroupFactors* factors, uint32_t* b) {
    if (pair * kScales % 4 == 0) {
      const int group = pair * kScales / 4;
      const uint32_t word = chunk.scales[group / 2];
      *factors = FactorsOf<kBits>(__byte_perm(word, word, group % 2 == 0 ? 0x1010 : 0x3232));
    }
    if constexpr (kBits == 4) {
      const uint4& c = chunk.codes[0];
      WeightsOfInt4Word(pair == 0 ? c.x : pair == 1 ? c.y : pair == 2 ? c.z : c.w, *factors, b);
    } else {
      const uint4& c = chunk.codes[pair / 2];
      WeightsOfInt8Word(pair % 2 == 0 ? c.x : c.z, *factors, b);
      WeightsOfInt8Word(pair % 2 == 0 ? c.y : c.w, *factors, b + 2);
    }
  }
};

// Plain BF16 weights [N, K], row-major: a stream is a row.
struct BFloat16Format {
  static constexpr bool kIsCodes = false;
  static constexpr int kStreamsPerUnit = 8;
  static constexpr int kStageBytes = kStageInputs * 2;
  static constexpr int kStreamPitch = kSlotRowBytes;
  static constexpr float kUnscale = 1.0f;
  static __device__ int StreamBytes(int inputs) { return inputs * 2; }
  struct Chunk {};
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

// Keeps the compiler from reading a kernel parameter again and again.
template <class T>
__device__ __forceinline__ void KeepInRegister(T* value) {
  asm volatile("" : "+r"(*value));
}

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

// Activation warp: x of every round, K256 by K256, into the slots. Columns past a segment are zero.
template <class Work>
__device__ void StreamActivations(const StreamLayout& layout, const Work& work, uint32_t base,
                                  int lane) {
  const StreamBarriers barriers(base, layout, 0);
  const int rounds = layout.x_is_resident ? (work.num_rounds > 0 ? 1 : 0) : work.num_rounds;
  RingPosition ring;
  int filled = 0;
  for (int round = 0; round < rounds; ++round) {
    const int rows = work.Rows(round);
    for (int stage = 0; stage < layout.num_stages; ++stage) {
      if (filled >= layout.x_slots) {
        BarrierWait(barriers.x_empty + 8 * ring.slot, ring.parity ^ 1);
      } else {
        ++filled;
      }
      const uint32_t full = barriers.x_full + 8 * ring.slot;
      const uint32_t slot = base + layout.x_offset +
                            ring.slot * (layout.num_segments * layout.x_rows * kSlotRowBytes);
      int total = 0;
      for (int segment = 0; segment < layout.num_segments; ++segment) {
        const int begin = segment * layout.segment_inputs + stage * kStageInputs;
        const int end = min(layout.in_features, (segment + 1) * layout.segment_inputs);
        const int bytes = 2 * max(0, min(kStageInputs, end - begin));
        total += bytes * rows;
        if (bytes < 2 * kStageInputs) {
          for (int row = 0; row < rows; ++row) {
            const uint32_t at = slot + (segment * layout.x_rows + row) * kSlotRowBytes;
            for (int i = bytes + 16 * lane; i < 2 * kStageInputs; i += 16 * 32) {
              asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(at + i), "r"(0)
                           : "memory");
            }
          }
        }
      }
      __syncwarp();
      if (lane == 0) BarrierExpect(full, total);
      __syncwarp();
      for (int segment = 0; segment < layout.num_segments; ++segment) {
        const int begin = segment * layout.segment_inputs + stage * kStageInputs;
        const int end = min(layout.in_features, (segment + 1) * layout.segment_inputs);
        const int bytes = 2 * max(0, min(kStageInputs, end - begin));
        for (int row = lane; row < rows && bytes > 0; row += 32) {
          CopyBulk(slot + (segment * layout.x_rows + row) * kSlotRowBytes,
                   work.Row(round, row) + begin, bytes, full);
        }
      }
      ring.Advance(layout.x_slots);
    }
  }
}

// Weight warp: lane (w * streams + stream) copies one stream of chain warp w, stage by stage.
template <class Format, int kRowUnits, class Work>
__device__ void StreamWeights(const StreamLayout& layout, const Work& work, uint32_t base,
                              int lane) {
  constexpr int kStreams = kRowUnits * Format::kStreamsPerUnit;
  constexpr int kSlotBytes = kStreams * Format::kStreamPitch;
  constexpr int kPasses = (kStreams * kMaxChainWarps + 31) / 32;
  const uint64_t policy = EvictFirstPolicy();
  RingPosition ring;
  int filled = 0;
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
      if (warp < layout.num_warps) {
        source[pass] = work.Source(round, warp / layout.num_segments, index % kStreams, segment);
        left[pass] = Format::StreamBytes(max(
            0, min(layout.segment_inputs, layout.in_features - segment * layout.segment_inputs)));
      }
    }
    for (int stage = 0; stage < layout.num_stages; ++stage) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int index = pass * 32 + lane;
        const int warp = index / kStreams;
        const bool is_on = warp < layout.num_warps;
        const StreamBarriers barriers(base, layout, is_on ? warp : 0);
        const uint32_t full = barriers.weight_full + 8 * ring.slot;
        const int bytes = min(Format::kStageBytes, left[pass]);
        if (is_on && filled >= layout.weight_slots) {
          BarrierWait(barriers.weight_empty + 8 * ring.slot, ring.parity ^ 1);
        }
        if (is_on && index % kStreams == 0) BarrierExpect(full, bytes * kStreams);
        __syncwarp();
        if (is_on && bytes > 0) {
          CopyBulkOnce(base + layout.weight_offset +
                           (warp * layout.weight_slots + ring.slot) * kSlotBytes +
                           index % kStreams * Format::kStreamPitch,
                       source[pass], bytes, full, policy);
        }
        source[pass] += bytes;
        left[pass] -= bytes;
      }
      ++filled;
      ring.Advance(layout.weight_slots);
    }
  }
}

// One chain warp. Tokens past the last are rows of zeros.
template <class Format, int kRowUnits, int kTokenTiles, class Work>
struct ChainWarp {
  static constexpr int kStreams = kRowUnits * Format::kStreamsPerUnit;
  static constexpr int kSlotBytes = kStreams * Format::kStreamPitch;
  using Chunk = typename Format::Chunk;

  const StreamLayout& layout;
  const Work& work;
  const uint32_t base;
  const int lane, group, segment;
  const StreamBarriers barriers;
  const uint32_t ring;  // of this warp
  int stream_bytes;     // of one weight stream of this segment
  uint32_t x_address[kTokenTiles];
  uint32_t x_slot_stride[kTokenTiles];
  float sums[kRowUnits][kTokenTiles][4];

  __device__ ChainWarp(const StreamLayout& l, const Work& w, uint32_t shared, int warp, int thread)
      : layout(l),
        work(w),
        base(shared),
        lane(thread),
        group(warp / l.num_segments),
        segment(warp % l.num_segments),
        barriers(shared, l, warp),
        ring(shared + l.weight_offset + warp * l.weight_slots * kSlotBytes) {
    stream_bytes = Format::StreamBytes(
        max(0, min(l.segment_inputs, l.in_features - segment * l.segment_inputs)));
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      const int row = t * 16 + lane / 8 % 2 * 8 + lane % 8;
      const uint32_t column = 16 * (lane / 16);
      const bool is_row = row < l.x_rows;
      x_slot_stride[t] = is_row ? l.num_segments * l.x_rows * kSlotRowBytes : 0;
      x_address[t] =
          base + column +
          (is_row ? l.x_offset + (segment * l.x_rows + row) * kSlotRowBytes : l.zero_offset);
      KeepInRegister(&x_slot_stride[t]);
      KeepInRegister(&x_address[t]);
    }
    KeepInRegister(&stream_bytes);
    Clear();
  }

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int u = 0; u < kRowUnits; ++u) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[u][t][i] = 0.0f;
      }
    }
  }

  // A fragments of pair 0..7 (two steps, K32) of a slot.
  __device__ __forceinline__ void LoadActivations(int slot, int pair, uint32_t* a) {
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
      const uint32_t at = x_address[t] + slot * x_slot_stride[t] + pair * 64;
      LoadMatrices(at, a + 8 * t);
      LoadMatrices(at + 32, a + 8 * t + 4);
    }
  }

  // B fragments of pair 0..7 of a slot, BF16 weights.
  __device__ __forceinline__ void LoadWeights(int slot, int pair, uint32_t (*b)[4]) {
#pragma unroll
    for (int u = 0; u < kRowUnits; ++u) {
      // Matrices: inputs 0-7, 8-15 of the first step, then of the second.
      LoadMatrices(ring + slot * kSlotBytes + (u * 8 + lane % 8) * kSlotRowBytes + 16 * (lane / 8) +
                       pair * 64,
                   b[u]);
    }
  }

  // Codes of chunk `half` of a stage, zeros past the end of K.
  __device__ __forceinline__ void LoadChunk(int slot, int stage, int half, Chunk* chunk) {
    const bool is_there = (2 * stage + half) * Format::kChunkBytes < stream_bytes;
#pragma unroll
    for (int u = 0; u < kRowUnits; ++u) {
      const uint32_t at = is_there ? ring + slot * kSlotBytes + u * Format::kStreamPitch +
                                         half * Format::kChunkBytes
                                   : base + layout.zero_offset;
      Format::Load(at, lane, &chunk[u]);
    }
  }

  __device__ __forceinline__ void Step(const uint32_t* a, const uint32_t (*b)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
        for (int u = 0; u < kRowUnits; ++u) {
          const uint32_t* f = a + 8 * t + 4 * half;
          ChainStep(sums[u][t], f[0], f[1], f[2], f[3], b[u] + 2 * half);
        }
      }
    }
  }

  // Sum of the segments' sums, in ascending order, in the warp of segment 0.
  __device__ __forceinline__ void AddSegments() {
    constexpr int kWarpBytes = kRowUnits * kTokenTiles * 32 * 16;
    const uint32_t partials =
        base + layout.partial_offset + group * (layout.num_segments - 1) * kWarpBytes;
    const int threads = 32 * layout.num_segments;
    if (segment > 0) {
#pragma unroll
      for (int i = 0; i < kRowUnits * kTokenTiles; ++i) {
        const float* s = sums[i / kTokenTiles][i % kTokenTiles];
        asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(
                         partials + (segment - 1) * kWarpBytes + i * 512 + lane * 16),
                     "f"(s[0]), "f"(s[1]), "f"(s[2]), "f"(s[3])
                     : "memory");
      }
    }
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
    for (int from = 0; segment == 0 && from < layout.num_segments - 1; ++from) {
#pragma unroll
      for (int i = 0; i < kRowUnits * kTokenTiles; ++i) {
        float* s = sums[i / kTokenTiles][i % kTokenTiles];
        const uint4 p = LoadShared16(partials + from * kWarpBytes + i * 512 + lane * 16);
        s[0] = __fadd_rn(s[0], __uint_as_float(p.x));
        s[1] = __fadd_rn(s[1], __uint_as_float(p.y));
        s[2] = __fadd_rn(s[2], __uint_as_float(p.z));
        s[3] = __fadd_rn(s[3], __uint_as_float(p.w));
      }
    }
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
  }

  __device__ __forceinline__ void Finish(int round) {
    if (layout.num_segments > 1) AddSegments();
    if (segment == 0) work.Store(round, group, lane, sums);
    Clear();
  }

  // Fragments of a chunk; with up to 32 tokens two sets take turns, beyond that one is refilled.
  struct Fragments {
    uint32_t a[4][8 * kTokenTiles];
    uint32_t b[Format::kIsCodes ? 1 : 4][kRowUnits][4];
  };
  static constexpr int kSets = kTokenTiles <= 2 ? 2 : 1;

  __device__ __forceinline__ void LoadFragments(int x_slot, int weight_slot, int half, int pair,
                                                Fragments* f) {
    LoadActivations(x_slot, 4 * half + pair, f->a[pair]);
    if constexpr (!Format::kIsCodes) LoadWeights(weight_slot, 4 * half + pair, f->b[pair]);
  }

  // Walks the chains over one chunk while the fragments of the next, at `half` of its slots, are
  // loaded.
  __device__ __forceinline__ void WalkChunk(const Chunk* chunk, Fragments* now, Fragments* next,
                                            int x_slot, int weight_slot, int half) {
    GroupFactors factors[kRowUnits];
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      if constexpr (kSets == 2) LoadFragments(x_slot, weight_slot, half, pair, next);
      if constexpr (Format::kIsCodes) {
#pragma unroll
        for (int u = 0; u < kRowUnits; ++u) {
          Format::Weights(chunk[u], pair, &factors[u], now->b[0][u]);
        }
      }
      Step(now->a[pair], now->b[Format::kIsCodes ? 0 : pair]);
      if constexpr (kSets == 1) LoadFragments(x_slot, weight_slot, half, pair, next);
    }
  }

  __device__ void Run() {
    const int total = layout.num_stages * work.num_rounds;
    if (total == 0) return;
    int num_stages = layout.num_stages;
    int weight_slots = layout.weight_slots;
    int x_slots = layout.x_slots;
    // Resident slots stay in their first phase.
    uint32_t x_parity_mask = layout.x_is_resident ? 0 : 1;
    KeepInRegister(&num_stages);
    KeepInRegister(&weight_slots);
    KeepInRegister(&x_slots);
    KeepInRegister(&x_parity_mask);
    Chunk chunk[2][kRowUnits];
    Fragments fragments[kSets];
    RingPosition w, x;
    BarrierWaitBoth(barriers.weight_full, 0, barriers.x_full, 0);
    if constexpr (Format::kIsCodes) LoadChunk(0, 0, 0, chunk[0]);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) LoadFragments(0, 0, 0, pair, &fragments[0]);
    int round = 0;
    int stage = 0;
#pragma unroll 1
    for (int i = 1; i <= total; ++i) {
      const uint32_t weight_done = barriers.weight_empty + 8 * w.slot;
      const uint32_t x_done = barriers.x_empty + 8 * x.slot;
      if constexpr (Format::kIsCodes) LoadChunk(w.slot, stage, 1, chunk[1]);
      WalkChunk(chunk[0], &fragments[0], &fragments[kSets - 1], x.slot, w.slot, 1);
      w.Advance(weight_slots);
      x.Advance(x_slots);
      if (++stage == num_stages) stage = 0;
      if (i < total) {
        BarrierWaitBoth(barriers.weight_full + 8 * w.slot, w.parity, barriers.x_full + 8 * x.slot,
                        x.parity & x_parity_mask);
      }
      // After the last stage these loads bring what nobody uses.
      if constexpr (Format::kIsCodes) LoadChunk(w.slot, stage, 0, chunk[0]);
      WalkChunk(chunk[1], &fragments[kSets - 1], &fragments[0], x.slot, w.slot, 0);
      // Everything of the stage before has been used.
      __syncwarp();
      if (lane == 0) {
        BarrierArrive(weight_done);
        BarrierArrive(x_done);
      }
      if (stage == 0) Finish(round++);
    }
  }
};

}  // namespace quatrain::cuda
