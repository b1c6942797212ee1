// Plan: 64 rows (query, head) a CTA. A tile of 64 keys (64 x 576) serves scores and, its first 512
// columns, as values. Two warpgroups take the scores of the tiles in turn and hold half of the
// outputs' columns each; whoever has a tile's scores gives the other the rounded probabilities, in
// the place of the tile's last 64 columns, which the scores were the last to read:
//
//   group 0:  S(0) P(0) | O0 += P(0) V | O0 += P(1) V, S(2)       P(2) | O0 += P(2) V ...
//   group 1:            | O1 += P(0) V, S(1)         P(1) | O1 += P(1) V | O1 += P(2) V, S(3) ...
//
// A third warpgroup brings the tiles, two of which fit beside the queries: whole ones by the copy
// engine, a box a page and panel, the last one by 16-byte copies with zeros past the end, since a
// stale page may hold NaN. What a walk adds up over its segments lies in global memory (128 KB, in
// the L2): no other place is left.
#include <algorithm>

#include "kernels/cuda/attention_latent_tiles.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp_arrival.cuh"

namespace quatrain::cuda {
namespace {

// ---- the multiplying warpgroups ----

// What a thread's two rows have reached after a tile, and alpha of the tile. Both groups' threads
// have the same rows.
struct RowStates {
  float4* mine;
  __device__ __forceinline__ SegmentState Load(int block) const {
    const float4 partial = mine[block % 2 * 2 * kGroupThreads];
    const float4 rest = mine[(block % 2 * 2 + 1) * kGroupThreads];
    return {{rest.x, rest.y}, {{partial.x, partial.y}, {partial.z, partial.w}}};
  }
  __device__ __forceinline__ void Store(int block, const SegmentState& row,
                                        const float (&alpha)[2]) const {
    mine[block % 2 * 2 * kGroupThreads] =
        make_float4(row.partial[0][0], row.partial[0][1], row.partial[1][0], row.partial[1][1]);
    mine[(block % 2 * 2 + 1) * kGroupThreads] =
        make_float4(row.max[0], row.max[1], alpha[0], alpha[1]);
  }
  __device__ __forceinline__ void LoadAlpha(int block, float (&alpha)[2]) const {
    const float4 rest = mine[(block % 2 * 2 + 1) * kGroupThreads];
    alpha[0] = rest.z;
    alpha[1] = rest.w;
  }
};

__device__ __forceinline__ void ScaleOutputs(float (&o)[128], const float (&alpha)[2]) {
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i] = MulRn(o[i], alpha[i / 2 % 2]);
}

__device__ __forceinline__ float4 WordOf(const float (&o)[128], int i) {
  return make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
}
__device__ __forceinline__ void SetWord(float (&o)[128], int i, const float4& word) {
  o[4 * i] = word.x;
  o[4 * i + 1] = word.y;
  o[4 * i + 2] = word.z;
  o[4 * i + 3] = word.w;
}

enum class Merge { kFirst, kMiddle, kLast };

// The end of a segment: outputs into the totals at `mine`, and zero; of the last one, the totals
// into the outputs. Warps without rows have no totals, and whatever in their outputs.
template <Merge kMerge>
__device__ __forceinline__ void MergeIntoTotals(float (&o)[128], const SegmentState& row, float c,
                                                RowTotals& totals, float4* mine) {
  constexpr int kBatch = 8;
  if (mine == nullptr) return;
  const SegmentFactors f[2] = {MergeRow(row, 0, c, totals), MergeRow(row, 1, c, totals)};
#pragma unroll
  for (int begin = 0; begin < kLatentWords; begin += kBatch) {
    float4 old[kBatch];
    if constexpr (kMerge != Merge::kFirst) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) old[i] = __ldcg(mine + (begin + i) * kGroupThreads);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      float4 word = WordOf(o, begin + i);
      if constexpr (kMerge != Merge::kFirst) word = MergeWord(old[i], word, f);
      if constexpr (kMerge == Merge::kLast) {
        SetWord(o, begin + i, word);
      } else {
        __stcg(mine + (begin + i) * kGroupThreads, word);
        SetWord(o, begin + i, make_float4(0, 0, 0, 0));
      }
    }
  }
}

__device__ __forceinline__ int VisibleKeys(const DeviceLatentAttentionArgs& a,
                                           const LatentWork& work, int row) {
  const auto before = static_cast<int>(work.seq.num_keys - work.seq.num_queries);
  return row < work.num_rows ? before + row / a.num_heads + 1 : 0;
}

template <int kGroup>
__device__ __forceinline__ void WriteRows(const DeviceLatentAttentionArgs& a,
                                          const LatentWork& work, int my_row, const float (&o)[128],
                                          const RowTotals& totals) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = my_row + 8 * r;
    if (row >= work.num_rows) continue;
    const float share = ReciprocalRn(totals.sum[r]);
#pragma unroll
    for (int i = 0; i < kLatentWords; ++i) {
      StoreLatent(a, work, row, kGroup * kHalfColumns + i * 8 + lane % 4 * 2,
                  MulRn(o[4 * i + 2 * r], share), MulRn(o[4 * i + 2 * r + 1], share));
    }
    if (a.lse != nullptr && kGroup == 0 && lane % 4 == 0) {
      a.lse[work.seq.q_begin * a.num_heads + row] =
          LogSumExp(totals.max[r], totals.sum[r], a.scale);
    }
  }
}

// What becomes of a segment's sums: added to the totals, as the only CTA of a row tile does, or
// left for the kernel that merges them.
enum class Ends { kAdded, kLeft };

// Where a thread's sums go, null if the warp has no rows; left segments are `stride` words apart.
struct SumsPlace {
  float4* mine;
  int64_t stride;
  float c;
};

// A segment's sums for the kernel that merges them; zero then.
template <int kGroup>
__device__ __forceinline__ void LeaveSegment(float (&o)[128], const SegmentState& row,
                                             const SumsPlace& to, int segment) {
  if (to.mine == nullptr) return;
  RowTotals totals;
  MergeRow(row, 0, to.c, totals);
  MergeRow(row, 1, to.c, totals);
  float4* const place = to.mine + segment * to.stride;
#pragma unroll
  for (int i = 0; i < kLatentWords; ++i) {
    __stcg(place + i * 32, WordOf(o, i));
    SetWord(o, i, make_float4(0, 0, 0, 0));
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (kGroup == 0 && lane % 4 == 0) {
    // Behind both halves.
    auto* const rows = reinterpret_cast<float*>(place - lane) + 2 * kLatentHalf + lane / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows[8 * r] = totals.max[r];
      rows[16 + 8 * r] = totals.sum[r];
    }
  }
}

// The end of a segment that is not the CTA's last; leaves the outputs zero.
template <int kGroup, Ends kEnds>
__device__ __forceinline__ void EndSegment(float (&o)[128], const SegmentState& row,
                                           RowTotals& totals, const SumsPlace& to, int segment) {
  if constexpr (kEnds == Ends::kLeft) {
    LeaveSegment<kGroup>(o, row, to, segment);
  } else if (segment == 0) {
    MergeIntoTotals<Merge::kFirst>(o, row, to.c, totals, to.mine);
  } else {
    MergeIntoTotals<Merge::kMiddle>(o, row, to.c, totals, to.mine);
  }
}

template <int kGroup, Ends kEnds>
__device__ __forceinline__ SumsPlace PlaceOfSums(const LatentWork& work,
                                                 const LatentScratch& scratch, int64_t tile,
                                                 int slot, float c) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  SumsPlace place = {nullptr, int64_t{scratch.row_warps} * (kLatentPartial / 4), c};
  if (work.first_row + thread / 32 * 16 >= work.num_rows) return place;
  if constexpr (kEnds == Ends::kLeft) {
    float* const first =
        LatentPartial(scratch, tile, work.first_block / kTilesPerSegment, thread / 32);
    place.mine = reinterpret_cast<float4*>(first + kGroup * kLatentHalf) + thread % 32;
  } else {
    place.mine = reinterpret_cast<float4*>(scratch.sums) +
                 (slot * 2 + kGroup) * kLatentWords * kGroupThreads + thread;
  }
  return place;
}

// By one thread: totals that no running CTA uses.
__device__ __forceinline__ int TakeSlot(const LatentScratch& scratch) {
  unsigned slot;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(slot));
  slot %= static_cast<unsigned>(scratch.num_slots);
  while (atomicCAS(scratch.slots + slot, 0u, 1u) != 0u) {
    slot = (slot + 1) % static_cast<unsigned>(scratch.num_slots);
  }
  __threadfence();
  return static_cast<int>(slot);
}

// Probabilities of the warp's 16 rows to shared memory, as an operand.
__device__ __forceinline__ void StoreProbabilities(const uint32_t (&p)[16], uint32_t panel) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) % kGroupThreads / 32 * 16 + lane % 16;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    StoreMatrices(panel + PlaceInTile(row, 2 * step + lane / 16), p + 4 * step);
  }
  FenceOperands();
}

template <int kGroup, Ends kEnds>
__device__ __forceinline__ void MultiplyTiles(const DeviceLatentAttentionArgs& a,
                                              const LatentWork& work, const LatentScratch& scratch,
                                              int64_t tile_index, uint8_t* shared) {
  const uint32_t base = SharedAddress(shared);
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int my_row = work.first_row + thread / 32 * 16 + thread % 32 / 4;
  const float c = MulRn(a.scale, kLog2E);
  const bool has_totals = kEnds == Ends::kAdded && work.num_blocks > kTilesPerSegment;
  const RowStates states = {reinterpret_cast<float4*>(shared + kStates) + thread};
  auto* const word = reinterpret_cast<volatile int*>(shared + kWord);
  const int visible[2] = {VisibleKeys(a, work, my_row), VisibleKeys(a, work, my_row + 8)};
  if (kGroup == 0 && thread == 0 && has_totals) *word = TakeSlot(scratch);
  CopyQueries(a, work, base);
  const SumsPlace place =
      PlaceOfSums<kGroup, kEnds>(work, scratch, tile_index, has_totals ? *word : 0, c);
  float o[128] = {};
  float s[32];
  uint32_t p[16];
  RowTotals totals;
  SegmentState before;  // of a segment that has ended
  float alpha[2];
  const auto tile_of = [&](int block) { return base + kTiles + block % 2 * kTile; };
  // By a shuffle: operands' places are then reckoned where they are needed, in uniform registers;
  // all at once they do not fit.
  const auto base_again = [&] { return __shfl_sync(0xFFFFFFFFu, base, 0); };
  const auto give_back = [&](int block) {
    ArriveAsWarp(base + kEmpty + 8 * (block % 2), thread % 32);
  };
  const auto issue_scores = [&](int block) {
    const uint32_t here = base_again();
    const uint32_t q = OperandLow(here);
    const uint32_t k = OperandLow(here + kTiles + block % 2 * kTile);
    FenceSums(s);
#pragma unroll
    for (int step = 0; step < kLatentKeyDim / 16; ++step) {
      if (step % (kLatentKeyDim / 16 / kParts) == 0) {
        BarrierWait(base + kFull + 8 * (block % 2 * kParts + step / (kLatentKeyDim / 16 / kParts)),
                    block / 2 % 2);
        FenceProducts();
      }
      const uint32_t place = step / 4 * kPanelPlaces + step % 4 * kStepPlaces;
      Product64Shared(s, OperandAt(q + place), OperandAt(k + place), step > 0);
    }
    CommitProducts();
    FenceSums(s);
  };
  // O += P V; P of the other group's tile comes from shared memory.
  const auto issue_outputs = [&]<bool kIsMine>(int block) {
    const uint32_t here = base_again() + kTiles + block % 2 * kTile;
    const uint32_t v = OperandLow<true>(here + kGroup * 4 * kPanelBytes);
    const uint32_t other = OperandLow(here + kProbabilities);
    FenceSums(o);
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kAttentionBlock / 16; ++step) {
      if constexpr (kIsMine) {
        Product256(o, p + 4 * step, OperandAt(v + step * kRowsStepPlaces));
      } else {
        Product256Shared<0>(o, OperandAt(other + step * kStepPlaces),
                            OperandAt(v + step * kRowsStepPlaces));
      }
    }
    CommitProducts();
    FenceSums(o);
  };
  const auto softmax = [&](int block) {
    SegmentState row;
    if (block % kTilesPerSegment != 0) {
      row = states.Load(block - 1);
    } else if (block > 0) {
      before = states.Load(block - 1);
    }
    SoftmaxTile(s, row, visible, (work.first_block + block) * kAttentionBlock, c, alpha);
    RoundTile(s, p);
    states.Store(block, row, alpha);
    SyncSome(1 + kGroup, kGroupThreads);  // all have read the tile's last columns
    StoreProbabilities(p, tile_of(block) + kProbabilities);
    __syncwarp();
    ArriveAsWarp(base + kReady + 8 * kGroup, thread % 32);
  };
  const auto finish_outputs = [&](int block) {
    WaitForProducts<0>();
    FenceSums(o);
    give_back(block);
  };
  const auto begin_other = [&](int block) {
    BarrierWait(base + kReady + 8 * (1 - kGroup), block / 2 % 2);
    states.LoadAlpha(block, alpha);
    ScaleOutputs(o, alpha);
    issue_outputs.template operator()<false>(block);
  };
  if constexpr (kGroup == 0) {
    issue_scores(0);
    WaitForProducts<0>();
    FenceSums(s);
    softmax(0);
    issue_outputs.template operator()<true>(0);
    finish_outputs(0);
  }
#pragma unroll 1
  for (int block = 2 - kGroup; block < work.num_blocks; block += 2) {
    begin_other(block - 1);
    issue_scores(block);
    WaitForProducts<1>();
    FenceSums(o);
    give_back(block - 1);
    WaitForProducts<0>();
    FenceSums(s);
    softmax(block);
    if (kGroup == 0 && block % kTilesPerSegment == 0) {
      EndSegment<kGroup, kEnds>(o, before, totals, place, block / kTilesPerSegment - 1);
    } else {
      ScaleOutputs(o, alpha);
    }
    issue_outputs.template operator()<true>(block);
    finish_outputs(block);
    if (kGroup == 1 && block % kTilesPerSegment == kTilesPerSegment - 1 &&
        block + 1 < work.num_blocks) {
      before = states.Load(block);
      EndSegment<kGroup, kEnds>(o, before, totals, place, block / kTilesPerSegment);
    }
  }
  const int last = work.num_blocks - 1;
  if (last % 2 != kGroup) {
    begin_other(last);
    WaitForProducts<0>();
    FenceSums(o);
  }
  const SegmentState row = states.Load(last);
  if constexpr (kEnds == Ends::kLeft) {
    LeaveSegment<kGroup>(o, row, place, last / kTilesPerSegment);
  } else {
    if (has_totals) {
      MergeIntoTotals<Merge::kLast>(o, row, c, totals, place.mine);
    } else {
      MergeRow(row, 0, c, totals);
      MergeRow(row, 1, c, totals);
    }
    WriteRows<kGroup>(a, work, my_row, o, totals);
    SyncSome(3, kMultiplying);
    if (kGroup == 0 && thread == 0 && has_totals) atomicExch(scratch.slots + *word, 0u);
  }
}

// Of a row tile: CTAs, and segments of each but the last.
struct Shares {
  int ctas, segments;
};

template <Ends kEnds>
__global__ void __launch_bounds__(kThreads, 1)
    LatentKernel(const __grid_constant__ DeviceLatentAttentionArgs a,
                 const __grid_constant__ TileCopies copies, Shares shares, LatentScratch scratch) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  LetNextKernelStart();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      for (int part = 0; part < kParts; ++part) {
        BarrierInit(base + kFull + 8 * (i * kParts + part), 1);
      }
      BarrierInit(base + kEmpty + 8 * i, ArrivalsOf(kMultiplying / 32));
      BarrierInit(base + kReady + 8 * i, ArrivalsOf(kGroupThreads / 32));
    }
    FenceForCopies();
    if (copies.box_rows > 0) PrefetchMap(&copies.kv);
  }
  const int tiles = static_cast<int>(gridDim.x) / shares.ctas;
  // The longest rows first.
  const int tile = tiles - 1 - static_cast<int>(blockIdx.x) / shares.ctas;
  const int segment = static_cast<int>(blockIdx.x) % shares.ctas * shares.segments;
  LatentWork work = WorkOfTile(a, static_cast<int>(blockIdx.y), tile);
  if (segment >= work.num_segments) return EndWithoutWork();
  work.first_block = segment * kTilesPerSegment;
  // By a shuffle, so that the compiler sees that all threads have the same.
  work.num_blocks = __shfl_sync(
      0xFFFFFFFFu, min(shares.segments * kTilesPerSegment, work.num_blocks - work.first_block), 0);
  const int64_t tile_index = static_cast<int64_t>(blockIdx.y) * tiles + tile;
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    CopyTiles(a, work, copies, base);
  } else if (threadIdx.x < 2 * kGroupThreads) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    WaitForPreviousKernel();
    MultiplyTiles<0, kEnds>(a, work, scratch, tile_index, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    WaitForPreviousKernel();
    MultiplyTiles<1, kEnds>(a, work, scratch, tile_index, shared);
  }
}

// ---- host ----

struct Plan {
  int64_t tiles;  // of a sequence
  int64_t all_tiles;
  int segments, row_warps, num_slots;
  Shares shares;
};

Plan PlanOf(const DeviceLatentAttentionArgs& a) {
  const int64_t rows = int64_t{a.max_queries} * a.num_heads;
  Plan plan = {};
  plan.tiles = (rows + kLatentRows - 1) / kLatentRows;
  plan.all_tiles = plan.tiles * a.num_sequences;
  plan.segments = (a.max_keys + kAttentionSegment - 1) / kAttentionSegment;
  plan.row_warps = static_cast<int>(std::min<int64_t>(4, (rows + 15) / 16));
  plan.num_slots = NumMultiprocessors();
  // Tiles of keys one after the other; a CTA's start is worth two, the second kernel too.
  int64_t least = 0;
  for (int ctas = 1; ctas <= std::max(1, plan.segments); ++ctas) {
    const int segments = (plan.segments + ctas - 1) / ctas;
    const int64_t rounds = (plan.all_tiles * ctas + plan.num_slots - 1) / plan.num_slots;
    const int64_t cost = rounds * (segments * kTilesPerSegment + 2) + (ctas > 1 ? 2 : 0);
    if (ctas > 1 && cost >= least) continue;
    least = cost;
    plan.shares = {ctas, segments};
  }
  return plan;
}

int64_t SlotBytes(const Plan& plan) { return (int64_t{plan.num_slots} * 4 + 255) / 256 * 256; }

void CheckLatent(const DeviceLatentAttentionArgs& a) {
  const bool fits = a.num_heads > 0 && a.q_stride % 8 == 0 && a.kv_stride % 8 == 0 &&
                    a.kv_stride >= kLatentKeyDim &&
                    (a.block_size == 0 || std::has_single_bit(static_cast<unsigned>(a.block_size)));
  if (fits) return;
  throw Error(ErrorCode::kShape,
              {.where = "attention over a latent on the device",
               .what = "no kernel for this shape",
               .expected = "heads, strides in multiples of 8 and of at least 576 for keys, a power "
                           "of two as block size",
               .found = std::to_string(a.num_heads) + " heads, strides " +
                        std::to_string(a.q_stride) + " and " + std::to_string(a.kv_stride) +
                        ", blocks of " + std::to_string(a.block_size)});
}

}  // namespace

int64_t AttentionLatentSlots() { return NumMultiprocessors(); }

int64_t AttentionLatentScratchBytes(const DeviceLatentAttentionArgs& args) {
  const Plan plan = PlanOf(args);
  const int64_t of_walk = int64_t{plan.num_slots} * 2 * kLatentWords * kGroupThreads * 16;
  const int64_t of_split = plan.all_tiles * plan.segments * plan.row_warps * kLatentPartial * 4;
  return SlotBytes(plan) + (plan.shares.ctas > 1 ? of_split
                            : plan.segments > 1  ? of_walk
                                                 : int64_t{0});
}

void AttentionLatent(const DeviceLatentAttentionArgs& args, void* scratch, cudaStream_t stream,
                     LaunchOrder order) {
  CheckLatent(args);
  if (args.num_sequences == 0 || args.max_queries == 0) return;
  const Plan plan = PlanOf(args);
  TileCopies copies = {};
  copies.block_shift = BlockShift(args.block_size);
  copies.box_rows = BoxRows(args.block_size);
  copies.comes_once = plan.tiles <= 2;
  if (copies.box_rows > 0) {
    // How many rows there are is not known here; boxes stay within the sequences.
    copies.kv =
        BoxesOf({args.kv, int64_t{1} << 31, kLatentKeyDim, args.kv_stride}, copies.box_rows);
  }
  const LatentScratch parts = {
      .slots = static_cast<unsigned*>(scratch),
      .sums = reinterpret_cast<float*>(static_cast<uint8_t*>(scratch) + SlotBytes(plan)),
      .num_slots = plan.num_slots,
      .max_segments = plan.segments,
      .row_warps = plan.row_warps};
  const auto kernel = plan.shares.ctas > 1 ? LatentKernel<Ends::kLeft> : LatentKernel<Ends::kAdded>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
            "attention over a latent, shared memory");
  LaunchKernel({dim3(static_cast<unsigned>(plan.tiles * plan.shares.ctas), args.num_sequences),
                dim3(kThreads), kSharedBytes, stream, order},
               kernel, args, copies, plan.shares, parts);
  if (plan.shares.ctas > 1) MergeLatentSegments(args, plan.tiles, parts, stream);
}

}  // namespace quatrain::cuda
