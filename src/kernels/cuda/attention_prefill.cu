// Plan: two warpgroups (one for head_dim 256, whose outputs leave no room for more) own 64 queries
// each of one head; a warp of another brings the keys, in tiles of 64, through a ring. While a
// warpgroup works on the softmax of a tile, the tensor cores have its next scores and its last
// products with V to do, and those of the other warpgroup:
//
//   issue S(b+1) = Q K(b+1)   softmax S(b)   wait for O(b-1)   O = O alpha, round P(b)
//   issue O += P(b) V(b)      wait for S(b+1)
//
// Q lies in registers, for head_dim 256 in shared memory; P goes from the accumulators' layout to
// the operand's without a move. Every 512 keys (O, m, t) is merged into the row's total in shared
// memory.
//
// Whole tiles come by the copy engine, a box a page and panel; the last one, if it is not whole, by
// ordinary loads with zeros past the end, since a stale page may hold NaN.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp_arrival.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kGroupThreads = 128;
template <int kHeadDim>
constexpr int kGroups = kHeadDim == 256 ? 1 : 2;
template <int kHeadDim>
constexpr int kThreads = kGroups<kHeadDim>* kGroupThreads;  // that multiply
template <int kHeadDim>
constexpr int kStages = kHeadDim == 256 ? 2 : 4;

// How tiles are copied.
struct TileCopies {
  CUtensorMap k, v;
  int box_rows;  // 0: no boxes
  int block_shift;
};

// Shared memory: tiles of k, tiles of v, q of head_dim 256, totals, barriers.
template <int kHeadDim>
struct Layout {
  static constexpr int kValues = kStages<kHeadDim> * kTileBytes<kHeadDim>;
  static constexpr int kQueries = 2 * kValues;
  static constexpr int kTotals = kQueries + (kHeadDim == 256 ? kTileBytes<kHeadDim> : 0);
  static constexpr int kBarriers = kTotals + kHeadDim / 2 * kThreads<kHeadDim> * 4;
  static constexpr int kBytes = kBarriers + 4 * kStages<kHeadDim> * 8;
};

enum class Tensor { kKeys, kValues };

// Barriers of a tensor's ring.
template <int kHeadDim>
struct Ring {
  static constexpr int kStages = quatrain::cuda::kStages<kHeadDim>;
  uint32_t full, empty;
  static __device__ Ring Of(uint32_t base, Tensor tensor) {
    const uint32_t first =
        base + Layout<kHeadDim>::kBarriers + (tensor == Tensor::kValues ? 16 * kStages : 0);
    return {first, first + 8 * kStages};
  }
  __device__ __forceinline__ void WaitForTile(uint32_t block) const {
    BarrierWait(full + block % kStages * 8, block / kStages % 2);
  }
  __device__ __forceinline__ void WaitForRoom(uint32_t block) const {
    if (block >= kStages) BarrierWait(empty + block % kStages * 8, block / kStages % 2 ^ 1);
  }
  __device__ __forceinline__ void GiveBack(uint32_t block) const {
    ArriveAsWarp(empty + block % kStages * 8, static_cast<int>(threadIdx.x) % 32);
  }
};

// What a CTA works on.
struct CtaWork {
  AttentionSequence seq;
  int first_query, head, kv_head, num_blocks;
};

// The copying warp's share of a tile: boxes, or 16-byte parts with zeros past the end.
template <int kHeadDim>
__device__ __forceinline__ void CopyTileOf(const DeviceAttentionArgs& a, const CtaWork& work,
                                           const TileCopies& copies, Tensor tensor, int block,
                                           uint32_t tile, uint32_t full) {
  constexpr int kPanels = kHeadDim / 64;
  const int lane = threadIdx.x % 32;
  const int num_keys = static_cast<int>(work.seq.num_keys);
  const KeyRows keys = {work.seq.block_table, work.seq.kv_begin, copies.block_shift, num_keys};
  const int first = block * kAttentionBlock;
  if (copies.box_rows > 0 && first + kAttentionBlock <= num_keys) {
    ExpectAsWarp(full, kTileBytes<kHeadDim>, lane);
    __syncwarp();
    const int part = lane / kPanels * copies.box_rows;
    if (part < kAttentionBlock) {
      CopyBox(tile + lane % kPanels * kPanelBytes + part * 128,
              tensor == Tensor::kKeys ? &copies.k : &copies.v,
              work.kv_head * kHeadDim + lane % kPanels * 64, keys.RowOf(first + part), full);
    }
    return;
  }
  const BFloat16* base =
      (tensor == Tensor::kKeys ? a.k : a.v) + static_cast<int64_t>(work.kv_head) * kHeadDim;
#pragma unroll 1
  for (int i = lane; i < kTileBytes<kHeadDim> / 16; i += 32) {
    const int row = i / (kHeadDim / 8);
    const int chunk = i % (kHeadDim / 8);
    const int64_t source = keys.RowOf(first + row);
    uint4 part = {};
    if (source >= 0)
      part = *reinterpret_cast<const uint4*>(base + source * a.kv_stride + 8 * chunk);
    StoreShared16(tile + PlaceInTile(row, chunk), part);
  }
  FenceOperands();
  __syncwarp();
  ArriveAsWarp(full, lane);
}

template <int kHeadDim>
__device__ __forceinline__ void CopyTiles(const DeviceAttentionArgs& a, const CtaWork& work,
                                          const TileCopies& copies, uint32_t base) {
  const auto k = Ring<kHeadDim>::Of(base, Tensor::kKeys);
  const auto v = Ring<kHeadDim>::Of(base, Tensor::kValues);
  const auto copy = [&](const Ring<kHeadDim>& ring, Tensor tensor, int block) {
    const int slot = block % kStages<kHeadDim>;
    ring.WaitForRoom(block);
    CopyTileOf<kHeadDim>(a, work, copies, tensor, block,
                         base + slot * kTileBytes<kHeadDim> +
                             (tensor == Tensor::kValues ? Layout<kHeadDim>::kValues : 0),
                         ring.full + 8 * slot);
  };
  // Scores are a tile ahead of outputs; where rings are short, keys are too.
  constexpr int kAhead = kStages<kHeadDim> == 2 ? 1 : 0;
  if (kAhead > 0) copy(k, Tensor::kKeys, 0);
#pragma unroll 1
  for (int block = 0; block < work.num_blocks; ++block) {
    if (block + kAhead < work.num_blocks) copy(k, Tensor::kKeys, block + kAhead);
    copy(v, Tensor::kValues, block);
  }
}

// A thread's queries as operands, and the keys that its two rows may see.
template <int kHeadDim>
struct MyQueries {
  uint32_t q[kHeadDim / 16][4];
  int visible[2];

  __device__ __forceinline__ MyQueries(const DeviceAttentionArgs& a, const CtaWork& work, int query,
                                       uint32_t /*place*/) {
    LoadQueries<kHeadDim>(a, work.seq, query, work.head, q, visible);
  }
  // s = Q K of the tile at `keys`.
  __device__ __forceinline__ void IssueScores(float (&s)[32], uint32_t keys) const {
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      Product64<0>(s, q[step], OperandAt(keys + step / 4 * kPanelPlaces + step % 4 * kStepPlaces),
                   step > 0);
    }
  }
};
// In shared memory, as tiles of keys are; by all threads of the one warpgroup.
template <>
struct MyQueries<256> {
  uint32_t queries;
  int visible[2];

  __device__ __forceinline__ MyQueries(const DeviceAttentionArgs& a, const CtaWork& work, int query,
                                       uint32_t place)
      : queries(OperandLow(place)) {
    constexpr int kChunks = 256 / 8;
    const int num_queries = static_cast<int>(work.seq.num_queries);
    for (int r = 0; r < 2; ++r) {
      const int mine = query + 8 * r;
      visible[r] =
          mine < num_queries ? static_cast<int>(work.seq.num_keys) - num_queries + mine + 1 : 0;
    }
    const BFloat16* const base = a.q + static_cast<int64_t>(work.head) * 256;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x) - kGroupThreads; i < kQueryRows * kChunks;
         i += kGroupThreads) {
      const int row = i / kChunks;
      const int64_t token = work.seq.q_begin + min(work.first_query + row, num_queries - 1);
      const uint4 part =
          *reinterpret_cast<const uint4*>(base + token * a.q_stride + i % kChunks * 8);
      StoreShared16(place + PlaceInTile(row, i % kChunks), part);
    }
    FenceOperands();
    SyncSome(1, kGroupThreads);
  }
  __device__ __forceinline__ void IssueScores(float (&s)[32], uint32_t keys) const {
    uint32_t mine = queries;
    asm volatile("" : "+r"(mine));  // sixteen places kept over the loop would take 32 registers
#pragma unroll
    for (int step = 0; step < 256 / 16; ++step) {
      const uint32_t place = step / 4 * kPanelPlaces + step % 4 * kStepPlaces;
      Product64Shared(s, OperandAt(mine + place), OperandAt(keys + place), step > 0);
    }
  }
};

// A warpgroup's products with the tiles of both rings.
template <int kHeadDim>
struct TileProducts {
  static constexpr int kTile = kTileBytes<kHeadDim>;
  uint32_t base;
  Ring<kHeadDim> k, v;

  __device__ __forceinline__ explicit TileProducts(uint32_t begin)
      : base(begin),
        k(Ring<kHeadDim>::Of(begin, Tensor::kKeys)),
        v(Ring<kHeadDim>::Of(begin, Tensor::kValues)) {}

  // s = Q K, left in flight.
  __device__ __forceinline__ void IssueScores(const MyQueries<kHeadDim>& q, uint32_t block,
                                              float (&s)[32]) const {
    k.WaitForTile(block);
    const uint32_t place = OperandLow(base + block % kStages<kHeadDim> * kTile);
    FenceSums(s);
    FenceProducts();
    q.IssueScores(s, place);
    CommitProducts();
  }
  // O += P V, left in flight.
  __device__ __forceinline__ void IssueOutputs(const uint32_t (&p)[16], uint32_t block,
                                               float (&o)[kHeadDim / 2]) const {
    v.WaitForTile(block);
    const uint32_t place = OperandLow<(kHeadDim > 64)>(base + Layout<kHeadDim>::kValues +
                                                       block % kStages<kHeadDim> * kTile);
    FenceSums(o);
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kAttentionBlock / 16; ++step) {
      const uint64_t values = OperandAt(place + step * kRowsStepPlaces);
      if constexpr (kHeadDim == 256) {
        Product256(o, p + 4 * step, values);
      } else if constexpr (kHeadDim == 128) {
        Product128(o, p + 4 * step, values);
      } else {
        Product64<1>(o, p + 4 * step, values, 1);
      }
    }
    CommitProducts();
    FenceSums(o);
  }
};

// What a thread's two rows have come to.
template <int kHeadDim>
struct RowSums {
  OutputTotals<kThreads<kHeadDim>, kHeadDim / 2> outputs;
  RowTotals totals;
  SegmentState row;
  float o[kHeadDim / 2] = {};
  uint32_t p[16];

  // Softmax of a tile, then O += P V of it, left in flight. kPending: groups that may be in flight
  // beside those of the tile before.
  template <int kPending>
  __device__ __forceinline__ void AddTile(const TileProducts<kHeadDim>& products,
                                          const int (&visible)[2], float c, uint32_t block,
                                          float (&s)[32]) {
    const bool begins_segment = block % kTilesPerSegment == 0;
    const SegmentState before = row;
    if (begins_segment) row = SegmentState{};
    float alpha[2];
    SoftmaxTile(s, row, visible, static_cast<int>(block) * kAttentionBlock, c, alpha);
    FenceSums(s);
    // The waits stand in branches of their own: in one block with the softmax the compiler moves
    // them before it.
    if (begins_segment) {
      WaitForProducts<kPending>();
      FenceSums(o);
      MergeRows(o, before, c, totals, outputs);
    } else {
      WaitForProducts<kPending>();
      FenceSums(o);
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) o[i] = MulRn(o[i], alpha[i / 2 % 2]);
    }
    if (block > 0) products.v.GiveBack(block - 1);
    RoundTile(s, p);
    products.IssueOutputs(p, block, o);
  }
};

template <int kHeadDim>
__device__ __forceinline__ void MultiplyTiles(const DeviceAttentionArgs& a, const CtaWork& work,
                                              uint8_t* shared) {
  const uint32_t base = SharedAddress(shared);
  const TileProducts<kHeadDim> products(base);
  const int thread = static_cast<int>(threadIdx.x) - kGroupThreads;
  const int my_query = work.first_query + thread / 32 * 16 + thread % 32 / 4;
  RowSums<kHeadDim> sums = {.outputs = {shared + Layout<kHeadDim>::kTotals, thread}};
  const float c = MulRn(a.scale, kLog2E);
  const MyQueries<kHeadDim> q(a, work, my_query, base + Layout<kHeadDim>::kQueries);
  const auto middle_tile = [&](uint32_t block, float(&mine)[32], float(&next)[32]) {
    products.IssueScores(q, block + 1, next);
    sums.template AddTile<1>(products, q.visible, c, block, mine);
    WaitForProducts<1>();
    FenceSums(next);
    products.k.GiveBack(block + 1);
  };
  float s[2][32];
  products.IssueScores(q, 0, s[0]);
  WaitForProducts<0>();
  FenceSums(s[0]);
  products.k.GiveBack(0);
  const auto num_blocks = static_cast<uint32_t>(work.num_blocks);
  uint32_t block = 0;
#pragma unroll 1
  for (; block + 2 < num_blocks; block += 2) {
    middle_tile(block, s[0], s[1]);
    middle_tile(block + 1, s[1], s[0]);
  }
  if (block + 2 == num_blocks) {
    middle_tile(block, s[0], s[1]);
#pragma unroll
    for (int i = 0; i < 32; ++i) s[0][i] = s[1][i];
    ++block;
  }
  sums.template AddTile<0>(products, q.visible, c, block, s[0]);
  WaitForProducts<0>();
  FenceSums(sums.o);
  MergeRows(sums.o, sums.row, c, sums.totals, sums.outputs);
  WriteRows<kHeadDim, kThreads<kHeadDim>>(a, work.seq, my_query, work.head, sums.totals,
                                          sums.outputs);
}

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads<kHeadDim> + kGroupThreads, 1)
    PrefillKernel(const __grid_constant__ DeviceAttentionArgs a,
                  const __grid_constant__ TileCopies copies) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  LetNextKernelStart();
  if (threadIdx.x == 0) {
    for (const Tensor tensor : {Tensor::kKeys, Tensor::kValues}) {
      const auto ring = Ring<kHeadDim>::Of(base, tensor);
      for (int i = 0; i < kStages<kHeadDim>; ++i) {
        BarrierInit(ring.full + 8 * i, ArrivalsOf(1));
        BarrierInit(ring.empty + 8 * i, ArrivalsOf(kThreads<kHeadDim> / 32));
      }
    }
    FenceForCopies();
  }
  WaitForPreviousKernel();
  CtaWork work;
  work.seq = a.sequences[blockIdx.z];
  // The longest rows first.
  work.first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kGroups<kHeadDim> * kQueryRows;
  const int num_queries = static_cast<int>(work.seq.num_queries);
  if (work.first_query >= num_queries) return;
  work.head = static_cast<int>(blockIdx.x);
  work.kv_head = work.head / (a.num_heads / a.num_kv_heads);
  const int last_query = min(work.first_query + kGroups<kHeadDim> * kQueryRows, num_queries) - 1;
  // By a shuffle, so that the compiler sees that all threads have the same.
  work.num_blocks = __shfl_sync(
      0xFFFFFFFFu,
      (static_cast<int>(work.seq.num_keys) - num_queries + last_query + kAttentionBlock) /
          kAttentionBlock,
      0);
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    // One warpgroup beside this one has all registers that a thread can have.
    if constexpr (kHeadDim < 256) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x < 32) CopyTiles<kHeadDim>(a, work, copies, base);
  } else {
    if constexpr (kHeadDim < 256) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    MultiplyTiles<kHeadDim>(a, work, shared);
  }
}

template <int kHeadDim>
void Launch(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order) {
  TileCopies copies = {};
  copies.block_shift = BlockShift(args.block_size);
  copies.box_rows = BoxRows(args.block_size);
  if (copies.box_rows > 0) {
    // How many rows there are is not known here; boxes stay within the sequences.
    DeviceMatrix matrix = {args.k, int64_t{1} << 31,
                           static_cast<int64_t>(args.num_kv_heads) * kHeadDim, args.kv_stride};
    copies.k = BoxesOf(matrix, copies.box_rows);
    matrix.data = args.v;
    copies.v = BoxesOf(matrix, copies.box_rows);
  }
  constexpr int kShared = Layout<kHeadDim>::kBytes;
  const auto kernel = PrefillKernel<kHeadDim>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
            "attention, shared memory");
  constexpr int kTileQueries = kGroups<kHeadDim> * kQueryRows;
  const auto tiles = static_cast<unsigned>((args.max_queries + kTileQueries - 1) / kTileQueries);
  LaunchKernel({dim3(args.num_heads, tiles, args.num_sequences),
                dim3(kThreads<kHeadDim> + kGroupThreads), kShared, stream, order},
               kernel, args, copies);
}

}  // namespace

void AttentionPrefill(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckAttention(args);
  if (args.num_sequences == 0 || args.max_queries == 0) return;
  if (args.head_dim == 64) return Launch<64>(args, stream, order);
  if (args.head_dim == 128) return Launch<128>(args, stream, order);
  Launch<256>(args, stream, order);
}

}  // namespace quatrain::cuda
