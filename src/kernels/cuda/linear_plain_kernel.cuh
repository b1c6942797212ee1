// The linear over BF16 weights: tokens on the m64 side of wgmma, rows of the matrix on the n side,
// 16 to 128 of them, so that small matrices, too, fill all multiprocessors.
//
//   one CTA = 1 or 2 warpgroups, 64 tokens each, + two copying warps
//
//   one ----boxes of the tile's rows of the matrix, K64 each------->  [slot][slot]...
//   other --boxes of x for its tokens------------------------------>  [slot][slot]...
//                                                                         |
//   warpgroup: both in place -> 4 products a K64, one chain over all of K
//
// A tile is a block of rows and up to 128 tokens; a CTA takes every gridDim.x-th, and the copying
// warps run ahead into the next one. The first copies of weights are under way before
// griddepcontrol.wait. Where there are fewer than 64 tokens, the products of the others are made of
// whatever lies behind the box, and not stored. Outputs leave as boxes, by way of shared memory.
//
// Two CTAs may share the weights, as a cluster: the same rows, and each its own tokens. They bring
// slots of weights in turn, to both at once, so that the L2 gives each weight once; a slot is free
// when both have used it.
#pragma once

#include "kernels/bfloat16.h"
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_plain.h"
#include "kernels/cuda/linear_wide_stream.cuh"
#include "kernels/cuda/plain_product.cuh"

namespace quatrain::cuda {

inline constexpr int kTokensOfGroup = 64;
inline constexpr int kMostWarpgroups = 2;
inline constexpr int kTokensOfWarp = 16;

// How outputs leave: one by one or, where y, N and what is added allow it, as boxes of a warp's 16
// tokens by way of shared memory.
enum class StorePart { kOne, kBox };

struct PlainParameters {
  const BFloat16* bias;
  const BFloat16* residual;
  BFloat16* y;
  float* y_float;
  int out_features;
  int num_tokens;
  StorePart part;
  int is_in_row;  // boxes of a slot come in one copy
  int num_boxes;  // of K
  int num_tiles;
  int token_tiles;
  int box_rows;   // tokens of a CTA's tile, in a box of x
  int last_rows;  // the same of the last ones: rows that are not there take longer than others
  int x_slots;
  int weight_slots;
  uint32_t staging_at;  // of the warps' outputs in shared memory
  uint32_t weights_at;  // the first slot of them in shared memory
};

struct PlainMaps {
  CUtensorMap weight, x, last_x, y;  // last_x: of last_rows
};

// The tiles of a CTA or, with kCtas of 2, of a cluster of two, whose second one has the tokens
// behind those of the first.
template <int kCtas>
struct PlainTiles {
  const PlainParameters& p;
  int rows;  // of a CTA's tile

  static __device__ __forceinline__ int Rank() { return static_cast<int>(blockIdx.x) % kCtas; }
  static __device__ __forceinline__ int First() { return static_cast<int>(blockIdx.x) / kCtas; }
  static __device__ __forceinline__ int Step() { return static_cast<int>(gridDim.x) / kCtas; }

  __device__ __forceinline__ int RowBegin(int index) const { return index / p.token_tiles * rows; }
  __device__ __forceinline__ int TokenBegin(int index) const {
    return (index % p.token_tiles * kCtas + Rank()) * p.box_rows;
  }
  __device__ __forceinline__ bool IsLast(int index) const {
    return TokenBegin(index) + p.box_rows >= p.num_tokens;
  }
};

// A slot of a ring to the copy engine: kBoxes boxes from `box` and `row` on.
template <int kBoxes>
struct SlotCopy {
  const CUtensorMap* map;
  int is_in_row;
  uint32_t box_bytes;

  __device__ __forceinline__ void Expect(uint32_t full) const {
    if (threadIdx.x % 32 == 0) BarrierExpect(full, kBoxes * box_bytes);
    __syncwarp();
  }
  // To this CTA or, with kCtas of 2, to both of the cluster.
  template <int kCtas>
  __device__ __forceinline__ void Issue(uint32_t to, int box, int row, uint32_t full) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane >= (is_in_row ? 1 : kBoxes)) return;
    const BoxPlace from = {is_in_row ? 0 : (box + lane) * kBoxColumns, row, is_in_row ? box : 0};
    if constexpr (kCtas == 1) {
      CopyBoxes(to + lane * box_bytes, map, from, full);
    } else {
      CopyBoxesToAll(to + lane * box_bytes, map, from, full, (1 << kCtas) - 1);
    }
  }
};

// The warp that copies weights.
template <int kBoxes, int kCtas>
__device__ __forceinline__ void CopyWeights(const PlainTiles<kCtas>& tiles, const CUtensorMap* map,
                                            uint32_t base) {
  const PlainParameters& p = tiles.p;
  const SlotCopy<kBoxes> copy = {map, p.is_in_row,
                                 static_cast<uint32_t>(tiles.rows) * kBoxRowBytes};
  const WideBarriers barriers(base, p);
  WideSlot slot = {0, 1};
  int turn = 0;  // the CTA that brings the next slot
  for (int index = tiles.First(); index < p.num_tiles; index += tiles.Step()) {
    const int row = tiles.RowBegin(index);
    for (int box = 0; box < p.num_boxes; box += kBoxes) {
      const uint32_t full = barriers.weight_full + 8 * slot.index;
      BarrierWait(barriers.weight_empty + 8 * slot.index, slot.parity);
      copy.Expect(full);
      if (turn == tiles.Rank()) {
        copy.template Issue<kCtas>(base + p.weights_at + slot.index * kBoxes * copy.box_bytes, box,
                                   row, full);
      }
      turn = (turn + 1) % kCtas;
      slot.Advance(p.weight_slots);
    }
  }
}

// The warp that copies x.
template <int kBoxes, int kCtas>
__device__ __forceinline__ void CopyTokens(const PlainTiles<kCtas>& tiles, const PlainMaps& maps,
                                           uint32_t base) {
  const PlainParameters& p = tiles.p;
  const uint32_t slot_bytes = kBoxes * p.box_rows * kBoxRowBytes;
  const WideBarriers barriers(base, p);
  WideSlot slot = {0, 1};
  for (int index = tiles.First(); index < p.num_tiles; index += tiles.Step()) {
    const int token = tiles.TokenBegin(index);
    const bool is_last = tiles.IsLast(index);
    const SlotCopy<kBoxes> copy = {
        is_last ? &maps.last_x : &maps.x, p.is_in_row,
        static_cast<uint32_t>(is_last ? p.last_rows : p.box_rows) * kBoxRowBytes};
    for (int box = 0; box < p.num_boxes; box += kBoxes) {
      const uint32_t full = barriers.x_full + 8 * slot.index;
      BarrierWait(barriers.x_empty + 8 * slot.index, slot.parity);
      copy.Expect(full);
      copy.template Issue<1>(base + kBarrierBytes + slot.index * slot_bytes, box, token, full);
      slot.Advance(p.x_slots);
    }
  }
}

// Lower half of an operand's descriptor; what is added to it is added to its place.
__device__ __forceinline__ uint32_t LowOfOperand(uint32_t address) {
  return static_cast<uint32_t>(SwizzledOperand(OperandPlace(address)));
}

// A warpgroup's chains.
template <int kRows, int kBoxes, int kCtas>
struct PlainWalk {
  static constexpr uint32_t kWeightBox = kRows * kBoxRowBytes;

  const PlainParameters& p;
  const uint32_t base;
  const WideBarriers barriers;
  const uint32_t group_offset;
  const uint32_t x_slot_bytes;
  uint32_t x_box = 0;
  WideSlot x_slot = {0, 0}, weight_slot = {0, 0};
  uint32_t x_used = 0, weight_used = 0;  // barriers of slots whose products may still run

  __device__ PlainWalk(const PlainParameters& parameters, uint32_t shared, int group)
      : p(parameters),
        base(shared),
        barriers(shared, parameters),
        group_offset(group * kTokensOfGroup * kBoxRowBytes),
        x_slot_bytes(kBoxes * parameters.box_rows * kBoxRowBytes) {}

  __device__ __forceinline__ void GiveBack(int lane) const {
    __syncwarp();
    ArriveAsWarp(x_used, lane);
    if constexpr (kCtas == 1) {
      ArriveAsWarp(weight_used, lane);
    } else {
      ArriveAtAll(weight_used, kCtas, lane);
    }
  }
  __device__ __forceinline__ void Multiply(uint32_t x, uint32_t weights,
                                           float (&d)[kRows / 8][4]) const {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      constexpr uint32_t kStep = kStepBytes >> 4;
      WideProductOfShared<kRows>(d, OperandAt(x + step * kStep), OperandAt(weights + step * kStep));
    }
  }
  // The products of the next slots' first boxes, kSome of them in a group; then gives back the
  // slots before.
  template <int kSome>
  __device__ __forceinline__ void WalkSlot(int boxes, int lane, float (&d)[kRows / 8][4]) {
    BarrierWaitBoth(barriers.x_full + 8 * x_slot.index, x_slot.parity,
                    barriers.weight_full + 8 * weight_slot.index, weight_slot.parity);
    uint32_t x = LowOfOperand(base + kBarrierBytes + x_slot.index * x_slot_bytes + group_offset);
    uint32_t weights = LowOfOperand(base + p.weights_at + weight_slot.index * kBoxes * kWeightBox);
#pragma unroll 1
    for (int done = 0; done < boxes; done += kSome) {
      FenceProducts();
#pragma unroll
      for (int i = 0; i < kSome; ++i) {
        Multiply(x + OperandPlace(i * x_box), weights + OperandPlace(i * kWeightBox), d);
      }
      CommitProducts();
      x += OperandPlace(kSome * x_box);
      weights += OperandPlace(kSome * kWeightBox);
    }
    WaitForProducts<1>();
    // Everything of the slots before has been used.
    if (x_used != 0) GiveBack(lane);
    x_used = barriers.x_empty + 8 * x_slot.index;
    weight_used = barriers.weight_empty + 8 * weight_slot.index;
    x_slot.Advance(p.x_slots);
    weight_slot.Advance(p.weight_slots);
  }
  // Over the whole of K, with boxes of `rows` tokens.
  __device__ __forceinline__ void Run(int rows, float (&d)[kRows / 8][4]) {
    x_box = rows * kBoxRowBytes;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    FenceSums(d);
    int left = p.num_boxes;
#pragma unroll 1
    for (; left >= kBoxes; left -= kBoxes) WalkSlot<kBoxes>(kBoxes, lane, d);
    if (left > 0) WalkSlot<1>(left, lane, d);
    WaitForProducts<0>();
    GiveBack(lane);
    x_used = 0;
    FenceSums(d);
  }
};

// Columns of a box of outputs; banks are met evenly by these widths, or by a swizzle.
template <int kRows>
inline constexpr int kStoreColumns = kRows == 96 || kRows == 128 ? kRows / 2 : kRows;

// Where eight columns `part` of a staged row of kColumns stand: as the box's swizzle has them.
template <int kColumns>
__device__ __forceinline__ uint32_t StagedPlace(int row, int part) {
  if constexpr (kColumns == 64) return row * 128 + (part ^ row % 8) * 16;
  if constexpr (kColumns == 32) return row * 64 + (part ^ row / 2 % 4) * 16;
  if constexpr (kColumns == 16) return row * 32 + (part ^ row / 4 % 2) * 16;
  return row * 2 * kColumns + part * 16;
}

// Two 8x8 matrices of BF16; lane l gives the address of row l % 8 of matrix l / 8 % 2.
__device__ __forceinline__ void StoreTwoMatrices(uint32_t address, uint32_t first,
                                                 uint32_t second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(address), "r"(first),
               "r"(second)
               : "memory");
}

// A box of staged outputs to y.
__device__ __forceinline__ void StoreBox(const void* map, int column, int row, uint32_t source) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
      "r"(column), "r"(row), "r"(source)
      : "memory");
}
__device__ __forceinline__ void CommitStores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until this thread's boxes have left shared memory.
__device__ __forceinline__ void AwaitStores() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// The sums of a warp, 16 tokens from `token` on and kRows outputs from `row` on: lane 4 t + c has
// tokens t and t + 8, columns 2 c and 2 c + 1 of each eight.
template <int kRows>
struct WarpSums {
  static constexpr int kParts = kRows / 8;

  const PlainParameters& p;
  int token, row;
  float (&d)[kParts][4];

  __device__ __forceinline__ int Lane() const { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ int Column(int part) const { return row + 8 * part + Lane() % 4 * 2; }
  __device__ __forceinline__ int Token(int half) const { return token + 8 * half + Lane() / 4; }

  __device__ __forceinline__ void StoreEach() const {
#pragma unroll
    for (int i = 0; i < 4 * kParts; ++i) {
      const int m = Token(i / 2 % 2);
      const int n = Column(i / 4) + i % 2;
      if (m < p.num_tokens && n < p.out_features) {
        StoreOne(p, static_cast<int64_t>(m) * p.out_features + n, n, d[i / 4][i % 4]);
      }
    }
  }
  __device__ __forceinline__ void AddBias() const {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (Column(i) >= p.out_features) break;
      const uint32_t bias = *reinterpret_cast<const uint32_t*>(p.bias + Column(i));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        d[i][2 * half] = AddRn(d[i][2 * half], LowOfPair(bias));
        d[i][2 * half + 1] = AddRn(d[i][2 * half + 1], HighOfPair(bias));
      }
    }
  }
  __device__ __forceinline__ void AddResidual(uint32_t (&pairs)[kParts][2]) const {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (Column(i) >= p.out_features) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = Token(half);
        if (m >= p.num_tokens) continue;
        const uint32_t old = *reinterpret_cast<const uint32_t*>(
            p.residual + static_cast<int64_t>(m) * p.out_features + Column(i));
        uint32_t& pair = pairs[i][half];
        pair = RoundPair(ResidualSum(LowOfPair(old), LowOfPair(pair)),
                         ResidualSum(HighOfPair(old), HighOfPair(pair)));
      }
    }
  }
  // By way of `staging`, the warp's own.
  __device__ __forceinline__ void StoreBoxes(const CUtensorMap* map, uint32_t staging) const {
    constexpr int kColumns = kStoreColumns<kRows>;
    constexpr uint32_t kBytes = kTokensOfWarp * kColumns * 2;
    if (p.bias != nullptr) AddBias();
    uint32_t pairs[kParts][2];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      pairs[i][0] = RoundPair(d[i][0], d[i][1]);
      pairs[i][1] = RoundPair(d[i][2], d[i][3]);
    }
    if (p.residual != nullptr) AddResidual(pairs);
    const int lane = Lane();
    if (lane == 0) AwaitStores();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const uint32_t to = staging + 8 * i / kColumns * kBytes;
      StoreTwoMatrices(to + StagedPlace<kColumns>(lane % 16, i % (kColumns / 8)), pairs[i][0],
                       pairs[i][1]);
    }
    FenceBeforeCopies();
    __syncwarp();
    if (lane > 0) return;
#pragma unroll
    for (int first = 0; first < kRows; first += kColumns) {
      StoreBox(map, row + first, token, staging + first / kColumns * kBytes);
    }
    CommitStores();
  }
};

template <int kRows, int kBoxes, int kCtas>
__global__ void __launch_bounds__(128 * kMostWarpgroups + kCopyingThreads, 1)
    PlainKernel(const __grid_constant__ PlainParameters p, const __grid_constant__ PlainMaps maps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  // The same for a whole warp, which the compiler then knows.
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const int num_warps = (static_cast<int>(blockDim.x) - kCopyingThreads) / 32;
  const PlainTiles<kCtas> tiles = {p, kRows};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  LetNextKernelStart();
  // By one thread: set up by 32 lanes, they cost a launch up to 0.9 us (measured, one fence or 32).
  if (threadIdx.x == 0) {
    const WideBarriers barriers(base, p);
    for (int i = 0; i < p.x_slots; ++i) {
      BarrierInit(barriers.x_full + 8 * i, 1);
      BarrierInit(barriers.x_empty + 8 * i, ArrivalsOf(num_warps));
    }
    for (int i = 0; i < p.weight_slots; ++i) {
      BarrierInit(barriers.weight_full + 8 * i, 1);
      BarrierInit(barriers.weight_empty + 8 * i, ArrivalsOf(num_warps * kCtas));
    }
    FenceForCopies();
  } else if (warp == num_warps && lane == 0) {
    PrefetchMap(&maps.weight);
  } else if (warp == num_warps + 1 && lane == 0) {
    PrefetchMap(&maps.x);
    PrefetchMap(&maps.last_x);
    if (p.part == StorePart::kBox) PrefetchMap(&maps.y);
  }
  __syncthreads();
  if constexpr (kCtas > 1) {
    ArriveInCluster();
    WaitForCluster();
  }
  if (warp == num_warps) {
    CopyWeights<kBoxes>(tiles, &maps.weight, base);
  } else if (warp == num_warps + 1) {
    WaitForPreviousKernel();
    CopyTokens<kBoxes>(tiles, maps, base);
  } else {
    PlainWalk<kRows, kBoxes, kCtas> walk(p, base, warp / 4);
    const uint32_t staging = base + p.staging_at + warp * (kTokensOfWarp * kRows * 2);
#pragma unroll 1
    for (int index = tiles.First(); index < p.num_tiles; index += tiles.Step()) {
      float d[kRows / 8][4] = {};
      walk.Run(tiles.IsLast(index) ? p.last_rows : p.box_rows, d);
      const int token = tiles.TokenBegin(index) + warp * kTokensOfWarp;
      if (warp * kTokensOfWarp >= p.box_rows || token >= p.num_tokens) continue;
      const WarpSums<kRows> sums = {p, token, tiles.RowBegin(index), d};
      if (p.part == StorePart::kBox) {
        sums.StoreBoxes(&maps.y, staging);
      } else {
        sums.StoreEach();
      }
    }
    AwaitStores();
  }
  if constexpr (kCtas > 1) {
    // No CTA leaves while the other may copy to it or arrive at its barriers.
    __syncwarp();
    ArriveInCluster();
    WaitForCluster();
  }
}

}  // namespace quatrain::cuda
