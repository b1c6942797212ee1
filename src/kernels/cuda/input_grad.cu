// Plan: dX = dY W' where the sum goes over N and codes lie along K. Weights stand on the m64 side
// of wgmma as rows of W'^T, turned while they are codes: a 16-bit half of the kernel layout holds
// four codes of one row of W, so one transposing load of 8x8 halves turns four 8x8 blocks of
// weights.
//
//   one CTA = 2 warpgroups, 128 columns (K) of the matrix each, + a copying warp
//
//   copying warp --boxes: N128 of 256 columns of codes, their scales, dY of the tile--> [slot] x 4
//                                                                                          |
//   warpgroup: codes (ldmatrix.trans) -> BF16 A fragments of N32 (fma) -- B in place -- 4 products
//
// A warp's columns are those of one 16-byte part t of a unit's rows: 32 p + 8 j + 2 t + h for word
// p of the part, nibble j and half h. Lane 4 g + i has p = g / 2 and h = g % 2 of them, for rows 2
// i and 2 i + 1 of the unit, each with its own scale. Parts lie in shared memory at t ^ r / 2 of
// row r, so that the eight rows of a transposing load meet all banks. While the products of one N32
// run, the fragments of the next are made.
//
// A tile is up to 128 rows of dY of one expert and 256 columns; a CTA takes every gridDim.x-th. The
// copying warp runs ahead into the next tile while the sums of this one are stored.
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/expert_rows.cuh"
#include "kernels/cuda/input_grad.h"
#include "kernels/cuda/linear_wide_stream.cuh"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp_arrival.cuh"
#include "kernels/cuda/wide_product.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kSumWarps = 8;
constexpr int kGroupThreads = 128;
constexpr int kThreads = 32 * kSumWarps + kGroupThreads;  // the last warpgroup copies
constexpr int kChunksOfTile = 2;                          // K128, one a warpgroup
constexpr int kUnitsOfSlot = 16;                          // N128
constexpr int kUnitsAtOnce = 4;                           // N32
constexpr int kPieceBytes = 512;                          // codes of a unit in a chunk
constexpr int kCodeBytes = kUnitsOfSlot * kChunksOfTile * kPieceBytes;
constexpr int kStagedRows = 16;  // of dX, that pass through shared memory at once
constexpr int kStagedRowBytes = 2 * kChunkInputs;
constexpr int kStagingBytes = kStagedRows * kStagedRowBytes;  // of a warpgroup; it has two

struct GradParameters {
  BFloat16* dx;
  ExpertRows rows;  // blocks: pairs of chunks
  int units_of_expert;
  int in_features;
  int num_steps;  // slots over N
  int num_slots;
  uint32_t staging_at;  // in shared memory
  uint32_t slots_at;
  uint32_t slot_bytes;
};

struct GradMaps {
  CUtensorMap dy, codes, scales;
};

template <int kScales>
constexpr int kScaleBytes = kUnitsOfSlot* kChunksOfTile* static_cast<int>(kUnitRows) * 2 * kScales;
template <int kTokens>
constexpr int kDyBytes = kTokens* kChunkXBytes;

__device__ __forceinline__ void CopyCodes(uint32_t destination, const void* map, int chunk,
                                          int unit, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %2, %3, %4}], [%5];" ::"r"(destination),
      "l"(map), "r"(0), "r"(chunk), "r"(unit), "r"(barrier)
      : "memory");
}

// The copying warp: lanes 0 and 1 bring dY, 2 codes, 3 scales.
template <int kScales, int kTokens>
__device__ __forceinline__ void CopySlots(const GradParameters& p, const GradMaps& maps,
                                          const ExpertTiles<kTokens>& tiles, uint32_t base) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int num_tiles = tiles.NumTiles(p.rows);
  WideSlot slot = {0, 1};
  for (int index = static_cast<int>(blockIdx.x); index < num_tiles;
       index += static_cast<int>(gridDim.x)) {
    const RowsTile tile = tiles.Tile(p.rows, index);
    const int chunk = tile.block * kChunksOfTile;
#pragma unroll 1
    for (int step = 0; step < p.num_steps; ++step) {
      const uint32_t full = base + 8 * slot.index;
      BarrierWait(full + 8 * p.num_slots, slot.parity);
      if (lane == 0) BarrierExpect(full, kDyBytes<kTokens> + kCodeBytes + kScaleBytes<kScales>);
      __syncwarp();
      const uint32_t at = base + p.slots_at + slot.index * p.slot_bytes;
      const int unit = tile.expert * p.units_of_expert + step * kUnitsOfSlot;
      if (lane < 2) {
        CopyBox(at + lane * kTokens * kBoxRowBytes, &maps.dy, (2 * step + lane) * kBoxColumns,
                tile.row_begin, full);
      } else if (lane == 2) {
        CopyCodes(at + kDyBytes<kTokens>, &maps.codes, chunk, unit, full);
      } else if (lane == 3) {
        CopyBoxes(at + kDyBytes<kTokens> + kCodeBytes, &maps.scales, {0, chunk, unit}, full);
      }
      slot.Advance(p.num_slots);
    }
  }
}

// A lane's scales: those of rows 2 i and 2 i + 1 of a unit, of the group of its columns.
template <int kScales>
struct LaneScales {
  uint32_t at;        // in a unit's chunk
  uint32_t selector;  // of the group's half in a word

  __device__ explicit LaneScales(int lane) {
    const int group = lane / 4 * kScales / 8;
    at = lane % 4 * (4 * kScales) + group / 2 * 4;
    selector = kScales == 1 ? 0x3210 : group % 2 == 0 ? 0x5410 : 0x7632;
  }
  __device__ __forceinline__ uint32_t Load(uint32_t scales) const {
    const uint32_t word = LoadShared4(scales + at);
    if constexpr (kScales == 1) return word;
    return __byte_perm(word, LoadShared4(scales + at + 2 * kScales), selector);
  }
};

// A fragment of A for each half of a warpgroup's 128 columns: nibbles 0 and 1, 2 and 3.
using HalfFragments = uint32_t[2][4];

// Fragments of two steps over N from four units.
template <int kScales>
__device__ __forceinline__ void MakeFragments(const uint32_t (&words)[4],
                                              const uint32_t (&scales)[4], HalfFragments (&a)[2]) {
#pragma unroll
  for (int unit = 0; unit < kUnitsAtOnce; ++unit) {
    uint32_t weights[4];
    WeightsOfInt4Word(words[unit], FactorsOf<4>(scales[unit]), weights);
#pragma unroll
    for (int nibble = 0; nibble < 4; ++nibble) {
      a[unit / 2][nibble / 2][unit % 2 * 2 + nibble % 2] = weights[nibble];
    }
  }
}

template <int kTokens>
using Sums = float[2][kTokens / 8][4];

template <int kTokens>
__device__ __forceinline__ void FenceBothSums(Sums<kTokens>& d) {
  FenceSums(d[0]);
  FenceSums(d[1]);
}

// A warpgroup's chains over the whole of N; slot is left at the one after the last.
template <int kScales, int kTokens>
__device__ __forceinline__ void SumOverRows(const GradParameters& p, uint32_t base, WideSlot& slot,
                                            Sums<kTokens>& d) {
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int part = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = lane % 8;
  const uint32_t my_codes = kDyBytes<kTokens> + (lane / 8 * kChunksOfTile + group) * kPieceBytes +
                            row * 64 + (part ^ row / 2) * 16;
  constexpr int kUnitScaleBytes = static_cast<int>(kUnitRows) * 2 * kScales;
  const LaneScales<kScales> lane_scales(lane);
  const uint32_t my_scales = kDyBytes<kTokens> + kCodeBytes + group * kUnitScaleBytes;
  HalfFragments a[2][2];
  uint32_t before = 0;  // barrier of the slot whose products may still run
  FenceBothSums<kTokens>(d);
#pragma unroll 1
  for (int step = 0; step < p.num_steps; ++step) {
    const uint32_t full = base + 8 * slot.index;
    const uint32_t at = base + p.slots_at + slot.index * p.slot_bytes;
    BarrierWait(full, slot.parity);
#pragma unroll
    for (int i = 0; i < kUnitsOfSlot / kUnitsAtOnce; ++i) {
      uint32_t words[4], scales[4];
      LoadTransposed(at + my_codes + i * (kUnitsAtOnce * kChunksOfTile * kPieceBytes), words);
#pragma unroll
      for (int unit = 0; unit < kUnitsAtOnce; ++unit) {
        scales[unit] = lane_scales.Load(
            at + my_scales + (i * kUnitsAtOnce + unit) * (kChunksOfTile * kUnitScaleBytes));
      }
      HalfFragments(&now)[2] = a[i % 2];
      MakeFragments<kScales>(words, scales, now);
      const uint32_t box = OperandPlace(at + i / 2 * (kTokens * kBoxRowBytes));
      FenceProducts();
#pragma unroll
      for (int k16 = 0; k16 < 2; ++k16) {
        const uint64_t dy = SwizzledOperand(box + OperandPlace((i % 2 * 2 + k16) * kStepBytes));
#pragma unroll
        for (int half = 0; half < 2; ++half) WideProduct<kTokens>(d[half], now[k16][half], dy);
      }
      CommitProducts();
      WaitForProducts<1>();
      if (i == 0 && step > 0) ArriveAsWarp(before, lane);
    }
    before = full + 8 * p.num_slots;
    slot.Advance(p.num_slots);
  }
  WaitForProducts<0>();
  ArriveAsWarp(before, lane);
  FenceBothSums<kTokens>(d);
}

// Where part t of nibble j stands in a staged row, in 16-byte parts: the eight rows of a matrix
// that is stored, and the words of two rows that are read at once, meet all banks.
__device__ __forceinline__ int StagedPart(int row, int nibble, int part) {
  return (nibble * 4 + part) ^ ((row / 2 % 2) * 4 + (row % 2) * 2 + ((row / 4 ^ nibble / 2) & 1));
}

// A warpgroup's sums to dX, kStagedRows rows at a time by its own corner of shared memory; `buffer`
// goes on from tile to tile.
template <int kTokens>
__device__ __forceinline__ void StoreSums(const GradParameters& p, const RowsTile& tile,
                                          uint32_t corner, int& buffer, const Sums<kTokens>& d) {
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int lane = thread % 32;
  const int column =
      (tile.block * kChunksOfTile + group) * static_cast<int>(kChunkInputs) + thread % 16 * 8;
  BFloat16* const dx = p.dx + static_cast<int64_t>(tile.row_begin) * p.in_features + column;
  const int to_row = lane % 8;
  const uint32_t to = to_row * kStagedRowBytes + StagedPart(to_row, lane / 8, thread / 32) * 16;
#pragma unroll
  for (int i = 0; i < kTokens / kStagedRows; ++i) {
    if (i * kStagedRows >= tile.num_rows) break;
    const uint32_t staged = corner + buffer * kStagingBytes;
    buffer ^= 1;
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
      uint32_t sums[4];
#pragma unroll
      for (int nibble = 0; nibble < 4; ++nibble) {
        const float(&s)[4] = d[nibble / 2][2 * i + eight];
        sums[nibble] =
            RoundPair(s[nibble % 2 * 2] * kCodeUnscale, s[nibble % 2 * 2 + 1] * kCodeUnscale);
      }
      StoreTransposed(staged + eight * (8 * kStagedRowBytes) + to, sums);
    }
    SyncSome(1 + group, kGroupThreads);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = half * 8 + thread / 16;
      if (i * kStagedRows + row >= tile.num_rows || column >= p.in_features) continue;
      uint32_t words[4];
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        words[part] = LoadShared4(staged + row * kStagedRowBytes +
                                  StagedPart(row, thread % 4, part) * 16 + thread / 4 % 4 * 4);
      }
      *reinterpret_cast<uint4*>(dx + static_cast<int64_t>(i * kStagedRows + row) * p.in_features) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

template <int kScales, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    InputGradKernel(const __grid_constant__ GradParameters p,
                    const __grid_constant__ GradMaps maps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const ExpertTiles<kTokens> tiles =
      StartOverExperts<kTokens>(shared, p.num_slots, kSumWarps, p.rows);
  if (warp >= kSumWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == kSumWarps) CopySlots<kScales, kTokens>(p, maps, tiles, base);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int num_tiles = tiles.NumTiles(p.rows);
    const uint32_t corner = base + p.staging_at + warp / 4 * (2 * kStagingBytes);
    WideSlot slot = {0, 0};
    int buffer = 0;
#pragma unroll 1
    for (int index = static_cast<int>(blockIdx.x); index < num_tiles;
         index += static_cast<int>(gridDim.x)) {
      Sums<kTokens> d = {};
      SumOverRows<kScales, kTokens>(p, base, slot, d);
      StoreSums<kTokens>(p, tiles.Tile(p.rows, index), corner, buffer, d);
    }
  }
}

template <int kScales, int kTokens>
void Launch(const InputGradArgs& args, GradParameters p, cudaStream_t stream, LaunchOrder order) {
  p.slot_bytes = AlignedTo1024(kDyBytes<kTokens> + kCodeBytes + kScaleBytes<kScales>);
  p.staging_at = EndOfTiles(p.rows);
  p.slots_at = p.staging_at + kChunksOfTile * 2 * kStagingBytes;
  p.num_slots = (kSharedBudget - static_cast<int>(p.slots_at)) / static_cast<int>(p.slot_bytes);
  QT_CHECK(p.num_slots >= 2, "no room for {} experts", p.rows.num_experts);
  const PackedShape& shape = args.shape;
  const DeviceUnits units{.data = args.weight,
                          .num_units = args.num_experts * NumUnits(shape),
                          .unit_bytes = UnitBytes(shape),
                          .chunk_bytes = ChunkBytes(shape)};
  constexpr UnitBox kBox{.units = kUnitsOfSlot, .chunks = kChunksOfTile};
  GradMaps maps;
  maps.dy = BoxesOf({args.dy, args.num_rows, shape.out_features, shape.out_features}, kTokens);
  maps.codes = CodeBoxesOf(units, kBox);
  maps.scales = ScaleBoxesOf(units, kBox);
  const auto kernel = InputGradKernel<kScales, kTokens>;
  const uint32_t shared_bytes = p.slots_at + p.num_slots * p.slot_bytes;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory of the gradient of inputs");
  LaunchKernel({.grid = dim3(CtasFor<kTokens>(p.rows)),
                .block = dim3(kThreads),
                .shared_bytes = shared_bytes,
                .stream = stream,
                .order = order},
               kernel, p, maps);
}

// Rows of a tile: as few as an expert has, and of one matrix those that leave the least idle.
int TokensFor(const InputGradArgs& args, int blocks) {
  const int64_t each = (args.num_rows + args.num_experts - 1) / args.num_experts;
  int best = kMostTokens;
  int64_t least = -1;
  for (int tokens = kMostTokens; tokens >= 32; tokens /= 2) {
    const int64_t tiles = (each + tokens - 1) / tokens * args.num_experts * blocks;
    const int64_t waves = (tiles + NumMultiprocessors() - 1) / NumMultiprocessors();
    // A tile takes the time of 16 rows besides.
    const int64_t cost = waves * (tokens + 16);
    if (least < 0 || cost < least) {
      least = cost;
      best = tokens;
    }
  }
  return best;
}

template <int kScales>
void LaunchTokens(const InputGradArgs& args, const GradParameters& p, cudaStream_t stream,
                  LaunchOrder order) {
  switch (TokensFor(args, p.rows.blocks)) {
    case 32:
      return Launch<kScales, 32>(args, p, stream, order);
    case 64:
      return Launch<kScales, 64>(args, p, stream, order);
    default:
      return Launch<kScales, kMostTokens>(args, p, stream, order);
  }
}

}  // namespace

void InputGrad(const InputGradArgs& args, cudaStream_t stream, LaunchOrder order) {
  const PackedShape& s = args.shape;
  CheckPackedShape(s);
  if (s.num_bits != 4 || s.out_features % 8 != 0 || args.num_experts < 1 ||
      (args.num_experts > 1 && args.expert_begin == nullptr)) {
    throw Error(ErrorCode::kShape,
                ErrorParts{.where = "gradient of inputs",
                           .expected = "INT4 codes, N a multiple of 8, experts with their rows",
                           .found = fmt::format("{} bits, N {}, {} experts", s.num_bits,
                                                s.out_features, args.num_experts)});
  }
  if (args.num_rows == 0) return;
  GradParameters p = {};
  p.dx = args.dx;
  p.rows.begin = args.expert_begin;
  p.rows.num_experts = static_cast<int>(args.num_experts);
  p.rows.num_rows = static_cast<int>(args.num_rows);
  p.rows.blocks = static_cast<int>((NumChunks(s) + kChunksOfTile - 1) / kChunksOfTile);
  p.units_of_expert = static_cast<int>(NumUnits(s));
  p.in_features = static_cast<int>(s.in_features);
  p.num_steps = static_cast<int>((NumUnits(s) + kUnitsOfSlot - 1) / kUnitsOfSlot);
  switch (ScalesPerChunk(s)) {
    case 1:
      return LaunchTokens<1>(args, p, stream, order);
    case 2:
      return LaunchTokens<2>(args, p, stream, order);
    default:
      return LaunchTokens<4>(args, p, stream, order);
  }
}

}  // namespace quatrain::cuda
