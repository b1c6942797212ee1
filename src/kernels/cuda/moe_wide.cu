// Plan: the experts of many rows. Weights stand on the m64 side of wgmma, dequantised in registers
// from the kernel layout, which is that of the fragments; rows of x on the n side, 32 to 128 of
// them.
//
//   one CTA = 4 warpgroups, 64 rows of the matrix each, + a copying warp; one a multiprocessor
//
//   copying warp --boxes: 32 units of codes, x of the tile, K128 of both--> [slot][slot]...
//                                                                              |
//   warpgroup: codes (LDS.128) -> BF16 A fragments of K32 (fma) ---- B in place -- 2 products
//
// A tile is up to 128 rows of x of one expert and 256 rows of its matrix; a CTA takes every
// gridDim.x-th. The copying warp runs ahead into the next tile while the sums of this one are
// stored. While the products of one K32 run, the fragments of the next are made.
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/expert_rows.cuh"
#include "kernels/cuda/linear_wide_stream.cuh"
#include "kernels/cuda/moe_experts.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/warp_arrival.cuh"
#include "kernels/cuda/wide_product.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kChainWarps = 16;
constexpr int kThreads = 32 * (kChainWarps + 4);  // the last warpgroup copies
constexpr int kUnitsOfBox = 16;
constexpr int kUnitsOfTile = 2 * kUnitsOfBox;
constexpr int kPairsOfChunk = 4;      // of k16 steps
constexpr int kStagingOfWarp = 1024;  // two buffers

struct RowsParameters {
  BFloat16* y;
  ExpertRows rows;  // blocks: of 256 rows in a matrix
  int units_of_expert;
  int block_units;    // from the first box of a block to that of the next one
  int second_box;     // units from a block's first box to its second
  int warp_units;     // in a slot, from a warp's first unit to that of the next warp
  int partner_units;  // in a slot, from a warp's first unit to its second
  int num_pairs;      // of units, that is of warps' work, in a matrix
  int is_gate_up;
  int out_features;  // of y
  int num_chunks;
  int num_slots;
  uint32_t staging_at;  // in shared memory
  uint32_t slots_at;
  uint32_t slot_bytes;
};

struct RowsMaps {
  CUtensorMap x, codes;
};

template <int kTokens>
constexpr int kXBytes = kTokens* kChunkXBytes;

// The copying warp: lanes 0 and 1 bring x, 2 and 3 codes.
template <class Format, int kTokens>
__device__ __forceinline__ void CopyChunks(const RowsParameters& p, const RowsMaps& maps,
                                           const ExpertTiles<kTokens>& tiles, uint32_t base,
                                           int num_tiles) {
  constexpr uint32_t kBoxBytes = kUnitsOfBox * Format::kChunkBytes;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int side = lane % 2;
  WideSlot slot = {0, 1};
  for (int index = static_cast<int>(blockIdx.x); index < num_tiles; index += gridDim.x) {
    const RowsTile tile = tiles.Tile(p.rows, index);
    const int unit =
        tile.expert * p.units_of_expert + tile.block * p.block_units + side * p.second_box;
#pragma unroll 1
    for (int chunk = 0; chunk < p.num_chunks; ++chunk) {
      const uint32_t full = base + 8 * slot.index;
      BarrierWait(full + 8 * p.num_slots, slot.parity);
      if (lane == 0) BarrierExpect(full, kXBytes<kTokens> + 2 * kBoxBytes);
      __syncwarp();
      const uint32_t at = base + p.slots_at + slot.index * p.slot_bytes;
      if (lane < 2) {
        CopyBox(at + side * kTokens * kBoxRowBytes, &maps.x, (2 * chunk + side) * kBoxColumns,
                tile.row_begin, full);
      } else if (lane < 4) {
        CopyBox(at + kXBytes<kTokens> + side * kBoxBytes, &maps.codes,
                chunk * (Format::kChunkBytes / 8), unit, full);
      }
      slot.Advance(p.num_slots);
    }
  }
}

// A warpgroup's chains over the whole of K; slot is left at the one after the last.
template <class Format, int kTokens>
__device__ __forceinline__ void WalkChunks(const RowsParameters& p, uint32_t base, WideSlot& slot,
                                           float (&d)[kTokens / 8][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t my_codes = kXBytes<kTokens> + warp * p.warp_units * Format::kChunkBytes;
  const uint32_t partner = p.partner_units * Format::kChunkBytes;
  uint32_t a[2][2][4];
  GroupFactors factors[2];
  FenceSums(d);
#pragma unroll 1
  for (int chunk = 0; chunk < p.num_chunks; ++chunk) {
    const uint32_t full = base + 8 * slot.index;
    const uint32_t x_at = base + p.slots_at + slot.index * p.slot_bytes;
    BarrierWait(full, slot.parity);
    typename Format::Chunk codes[2];
    Format::Load(x_at + my_codes, lane, &codes[0]);
    Format::Load(x_at + my_codes + partner, lane, &codes[1]);
#pragma unroll
    for (int pair = 0; pair < kPairsOfChunk; ++pair) {
      uint32_t upper[4], lower[4];
      Format::Weights(codes[0], pair, &factors[0], upper);
      Format::Weights(codes[1], pair, &factors[1], lower);
      uint32_t(&now)[2][4] = a[pair % 2];
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        now[step][0] = upper[2 * step];
        now[step][1] = lower[2 * step];
        now[step][2] = upper[2 * step + 1];
        now[step][3] = lower[2 * step + 1];
      }
      const uint32_t box = OperandPlace(x_at + pair / 2 * (kTokens * kBoxRowBytes));
      FenceProducts();
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        WideProduct<kTokens>(
            d, now[step], SwizzledOperand(box + OperandPlace((pair % 2 * 2 + step) * kStepBytes)));
      }
      CommitProducts();
      if (pair + 1 < kPairsOfChunk) WaitForProducts<1>();
    }
    // Other warpgroups keep the tensor cores busy meanwhile.
    WaitForProducts<0>();
    ArriveAsWarp(full + 8 * p.num_slots, lane);
    slot.Advance(p.num_slots);
  }
  FenceSums(d);
}

__device__ __forceinline__ float Rounded(float sum) {
  return RoundedToBFloat16(sum * kCodeUnscale);
}

// The sums of a warp's pair of units, by its corner of shared memory: 16 bytes of a row at a time.
template <int kTokens>
__device__ __forceinline__ void StorePair(const RowsParameters& p, const RowsTile& tile,
                                          uint32_t staging, const float (&d)[kTokens / 8][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int pair = tile.block * kChainWarps + warp;
  if (pair >= p.num_pairs) return;
  BFloat16* const y = p.y + static_cast<int64_t>(tile.row_begin) * p.out_features;
  const auto store = [&](int row, int column, uint32_t from) {
    if (row >= tile.num_rows) return;
    *reinterpret_cast<uint4*>(y + static_cast<int64_t>(row) * p.out_features + column) =
        LoadShared16(from);
  };
  if (p.is_gate_up) {
    // 32 rows of 8 columns at a time.
#pragma unroll
    for (int t = 0; t < kTokens / 8; t += 4) {
      if (t * 8 >= tile.num_rows) break;
      uint32_t h[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&s)[4] = d[t + i];
        h[i] =
            RoundPair(SwiGlu(Rounded(s[0]), Rounded(s[2])), SwiGlu(Rounded(s[1]), Rounded(s[3])));
      }
      const uint32_t buffer = staging + t / 4 % 2 * 512;
      StoreTransposed(buffer + lane * 16, h);
      __syncwarp();
      store(t * 8 + lane, pair * 8, buffer + lane * 16);
    }
    return;
  }
  // 16 rows of 16 columns at a time; halves swap places every four rows, for the banks.
  const int to_row = lane / 16 * 8 + lane % 8;
  const uint32_t to = to_row * 32 + (lane / 8 % 2 ^ to_row / 4 % 2) * 16;
  const int from_row = lane / 2;
  const uint32_t from = from_row * 32 + (lane % 2 ^ from_row / 4 % 2) * 16;
#pragma unroll
  for (int t = 0; t < kTokens / 8; t += 2) {
    if (t * 8 >= tile.num_rows) break;
    uint32_t sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&s)[4] = d[t + i / 2];
      sums[i] = RoundPair(s[i % 2 * 2] * kCodeUnscale, s[i % 2 * 2 + 1] * kCodeUnscale);
    }
    const uint32_t buffer = staging + t / 2 % 2 * 512;
    StoreTransposed(buffer + to, sums);
    __syncwarp();
    store(t * 8 + from_row, pair * 16 + lane % 2 * 8, buffer + from);
  }
}

template <class Format, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    ExpertRowsKernel(const __grid_constant__ RowsParameters p,
                     const __grid_constant__ RowsMaps maps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const ExpertTiles<kTokens> tiles =
      StartOverExperts<kTokens>(shared, p.num_slots, kChainWarps, p.rows);
  const int num_tiles = tiles.NumTiles(p.rows);
  if (warp >= kChainWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    if (warp == kChainWarps) CopyChunks<Format, kTokens>(p, maps, tiles, base, num_tiles);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
    WideSlot slot = {0, 0};
#pragma unroll 1
    for (int index = static_cast<int>(blockIdx.x); index < num_tiles; index += gridDim.x) {
      float d[kTokens / 8][4] = {};
      WalkChunks<Format, kTokens>(p, base, slot, d);
      StorePair<kTokens>(p, tiles.Tile(p.rows, index), base + p.staging_at + warp * kStagingOfWarp,
                         d);
    }
  }
}

// A launch: the experts' matrices and the rows of x.
struct RowsWork {
  PackedShape shape;  // of one expert
  RowsParameters parameters;
  const void* weight;
  const BFloat16* x;
  int64_t num_rows;
};

template <class Format, int kTokens>
void Launch(const RowsWork& work, cudaStream_t stream, LaunchOrder order) {
  RowsParameters p = work.parameters;
  p.slot_bytes = AlignedTo1024(kXBytes<kTokens> + kUnitsOfTile * Format::kChunkBytes);
  p.staging_at = EndOfTiles(p.rows);
  p.slots_at = p.staging_at + kChainWarps * kStagingOfWarp;
  p.num_slots = (kSharedBudget - static_cast<int>(p.slots_at)) / static_cast<int>(p.slot_bytes);
  QT_CHECK(p.num_slots >= 2, "no room for {} experts", p.rows.num_experts);
  RowsMaps maps;
  maps.x =
      BoxesOf({work.x, work.num_rows, work.shape.in_features, work.shape.in_features}, kTokens);
  maps.codes = BoxesOfUnits({.data = work.weight,
                             .num_units = p.rows.num_experts * NumUnits(work.shape),
                             .unit_bytes = UnitBytes(work.shape)},
                            kUnitsOfBox, Format::kChunkBytes);
  const auto kernel = ExpertRowsKernel<Format, kTokens>;
  const uint32_t shared_bytes = p.slots_at + p.num_slots * p.slot_bytes;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory of the experts");
  LaunchKernel({.grid = dim3(CtasFor<kTokens>(p.rows)),
                .block = dim3(kThreads),
                .shared_bytes = shared_bytes,
                .stream = stream,
                .order = order},
               kernel, p, maps);
}

template <class Format>
void LaunchTokens(const RowsWork& work, cudaStream_t stream, LaunchOrder order) {
  const int64_t experts = work.parameters.rows.num_experts;
  const int64_t each = (work.num_rows + experts - 1) / experts;
  if (each <= 32) return Launch<Format, 32>(work, stream, order);
  if (each <= 64) return Launch<Format, 64>(work, stream, order);
  Launch<Format, kMostTokens>(work, stream, order);
}

void LaunchExperts(const MoeExpertsArgs& args, bool is_gate_up, cudaStream_t stream,
                   LaunchOrder order) {
  const PackedShape& s = args.shape;
  CheckExpertShape(s, "experts for many rows");
  RowsWork work = {};
  work.shape = s;
  work.weight = args.weight;
  work.x = args.x;
  work.num_rows = args.num_tokens * args.num_slots;
  if (work.num_rows == 0) return;
  RowsParameters& p = work.parameters;
  p.y = args.y;
  p.num_pairs = static_cast<int>(s.out_features / 16);
  p.rows = {.begin = args.routing.expert_begin,
            .num_experts = static_cast<int>(args.num_experts),
            .num_rows = static_cast<int>(work.num_rows),
            .blocks = (p.num_pairs + kChainWarps - 1) / kChainWarps};
  QT_CHECK(p.rows.begin != nullptr || p.rows.num_experts == 1, "{} experts", p.rows.num_experts);
  p.units_of_expert = static_cast<int>(NumUnits(s));
  p.num_chunks = static_cast<int>(NumChunks(s));
  p.is_gate_up = is_gate_up ? 1 : 0;
  // A warp's two units: 8 rows of gate and the same 8 of up, or 16 rows.
  p.block_units = is_gate_up ? kUnitsOfBox : kUnitsOfTile;
  p.second_box = is_gate_up ? p.num_pairs : kUnitsOfBox;
  p.warp_units = is_gate_up ? 1 : 2;
  p.partner_units = is_gate_up ? kUnitsOfBox : 1;
  p.out_features = static_cast<int>(is_gate_up ? s.out_features / 2 : s.out_features);
  switch (ScalesPerChunk(s)) {
    case 1:
      return LaunchTokens<CodeFormat<4, 1>>(work, stream, order);
    case 2:
      return LaunchTokens<CodeFormat<4, 2>>(work, stream, order);
    default:
      return LaunchTokens<CodeFormat<4, 4>>(work, stream, order);
  }
}

}  // namespace

void MoeGateUpOfRows(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order) {
  LaunchExperts(args, true, stream, order);
}

void MoeDownOfRows(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order) {
  LaunchExperts(args, false, stream, order);
}

}  // namespace quatrain::cuda
