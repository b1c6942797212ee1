// Plan: weights stand on the m64 side of wgmma, dequantised in registers from the kernel layout,
// which is that of the fragments; tokens on the n side, 32 to 128 of them.
//
//   one CTA = 1 to 3 warpgroups, 64 rows each, + a copying warp
//
//   copying warp ---codes of the CTA's rows, boxes of x for its tokens--->  [slot][slot]...
//                                                                                |
//   warpgroup: codes (LDS.128) -> BF16 A fragments of K64 (fma) ------ B in place -- 4 products
//
// The matrices of experts are taken tile by tile of their rows of x, sorted by expert.
//
// Every CTA reads all of its tokens' x. So the CTAs of a cluster bring a share of its rows each,
// and to all of them at once; a slot is free when all of them have used it. While the products of
// one K64 run, the fragments of the next are made. The first copies of codes are under way before
// griddepcontrol.wait.
#include <algorithm>
#include <limits>

#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/decode_format.cuh"
#include "kernels/cuda/linear_wide.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wide_product.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kUnitsOfWarp = 2;
constexpr int kRowsOfGroup = 64;
constexpr int kBoxColumns = 64;
constexpr int kBoxRowBytes = 128;
constexpr int kStepBytes = 32;       // of a row in a box
constexpr int kBarrierBytes = 1024;  // at the start of shared memory
constexpr int kSharedBudget = 226 << 10;
constexpr int kEnoughSlots = 4;
constexpr int kMostGroups = 3;
constexpr int kMostTokens = 128;

// A pair of units is what a warp holds: 16 rows of a matrix, or 8 of gate and the same 8 of up.
struct WideParameters {
  const uint8_t* weight;
  const BFloat16* bias;
  const BFloat16* residual;
  BFloat16* y;
  float* y_float;
  const int32_t* expert_begin;  // null: one matrix, whose rows of x are all
  int64_t expert_stride;        // bytes
  int64_t pair_stride;          // bytes from a warp's first unit to that of the next warp
  int64_t partner_offset;       // bytes from a warp's first unit to its second
  int num_experts;
  int num_pairs;
  int num_units;
  int is_gate_up;
  int out_features;  // of y
  int num_tokens;
  int num_chunks;
  int cluster;
  int stage_chunks;
  int num_slots;
  uint32_t unit_pitch;  // of a unit's codes in a slot
  uint32_t x_bytes;     // of a slot, before the codes
  uint32_t slot_bytes;
};

// Rows of x that a CTA multiplies with one matrix.
struct WideTile {
  int expert;
  int row_begin;
  int num_rows;  // 0: no work
};

// Tile `index` of those that cut every expert's rows by kTokens. By a whole warp; each lane looks
// at some neighbouring experts.
template <int kTokens>
__device__ __forceinline__ WideTile TileOfExperts(const WideParameters& p, int index) {
  const int lane = threadIdx.x % 32;
  const int each = (p.num_experts + 31) / 32;
  const int first = min(lane * each, p.num_experts);
  const int last = min(first + each, p.num_experts);
  int tiles = 0;
  for (int e = first; e < last; ++e) {
    tiles += (__ldcg(p.expert_begin + e + 1) - __ldcg(p.expert_begin + e) + kTokens - 1) / kTokens;
  }
  int up_to = tiles;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int before = __shfl_up_sync(0xFFFFFFFFu, up_to, distance);
    if (lane >= distance) up_to += before;
  }
  WideTile tile = {};
  int left = index - (up_to - tiles);
  const bool is_mine = left >= 0 && left < tiles;
  for (int e = first; is_mine && e < last; ++e) {
    const int begin = __ldcg(p.expert_begin + e);
    const int end = __ldcg(p.expert_begin + e + 1);
    const int of_expert = (end - begin + kTokens - 1) / kTokens;
    if (left >= 0 && left < of_expert) {
      tile = {e, begin + left * kTokens, min(kTokens, end - begin - left * kTokens)};
    }
    left -= of_expert;
  }
  const uint32_t owners = __ballot_sync(0xFFFFFFFFu, is_mine);
  const int owner = owners == 0 ? 0 : __ffs(static_cast<int>(owners)) - 1;
  tile.expert = __shfl_sync(0xFFFFFFFFu, tile.expert, owner);
  tile.row_begin = __shfl_sync(0xFFFFFFFFu, tile.row_begin, owner);
  tile.num_rows = __shfl_sync(0xFFFFFFFFu, tile.num_rows, owner);
  return tile;
}

template <int kTokens>
__device__ __forceinline__ WideTile TileOf(const WideParameters& p) {
  const int index = static_cast<int>(blockIdx.y);
  if (p.expert_begin != nullptr) return TileOfExperts<kTokens>(p, index);
  return {0, index * kTokens, min(kTokens, p.num_tokens - index * kTokens)};
}

// A box of x to the same place in every CTA of the cluster.
__device__ __forceinline__ void CopyBoxToAll(uint32_t destination, const void* map, int column,
                                             int row, uint32_t barrier, uint16_t ctas) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(destination),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(ctas)
      : "memory");
}

__device__ __forceinline__ uint32_t RankInCluster() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Together: all threads of all CTAs of the cluster have come here. Memory is ordered by the
// barriers in it.
__device__ __forceinline__ void ArriveInCluster() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void WaitForCluster() {
  asm volatile("barrier.cluster.wait;" ::: "memory");
}

// At the barrier that lies at the same place in another CTA of the cluster. Orders what this warp
// read before copies that its target starts after; a release for the whole cluster would be a fence
// of the device, which costs more than a stage.
__device__ __forceinline__ void ArriveAt(uint32_t barrier, int cta) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(cta)
      : "memory");
}

// The copying warp.
template <class Format, int kTokens>
__device__ __forceinline__ void CopyStages(const WideParameters& p, const CUtensorMap* x_map,
                                           uint32_t base, int num_units, const WideTile& tile) {
  const int lane = threadIdx.x % 32;
  const uint32_t full = base;
  const uint32_t empty = base + 8 * p.num_slots;
  const int rank = static_cast<int>(RankInCluster());
  const int rows_each = kTokens / p.cluster;
  const auto ctas = static_cast<uint16_t>((1 << p.cluster) - 1);
  const uint64_t policy = EvictFirstPolicy();
  // Past the end: the last pair or unit again; its sums are not stored.
  const int pair = min((static_cast<int>(blockIdx.x) * num_units + lane) / 2, p.num_pairs - 1);
  const bool is_partner = lane % 2 == 1 && 2 * pair + 1 < p.num_units;
  const uint8_t* source = p.weight + tile.expert * p.expert_stride + pair * p.pair_stride +
                          (is_partner ? p.partner_offset : 0);
  const int num_stages = (p.num_chunks + p.stage_chunks - 1) / p.stage_chunks;
  const auto chunks_of = [&](int stage) {
    return min(p.stage_chunks, p.num_chunks - stage * p.stage_chunks);
  };
  const auto slot_at = [&](int slot) { return base + kBarrierBytes + slot * p.slot_bytes; };
  const auto copy_codes = [&](int stage, int slot) {
    const int chunks = chunks_of(stage);
    if (lane == 0) {
      BarrierExpect(full + 8 * slot,
                    chunks * (num_units * Format::kChunkBytes + kTokens * kChunkXBytes));
    }
    __syncwarp();
    if (lane < num_units) {
      const uint32_t to = slot_at(slot) + p.x_bytes + lane * p.unit_pitch;
      const uint8_t* from = source + static_cast<int64_t>(stage) * p.unit_pitch;
      if (gridDim.y == 1) {
        CopyBulkOnce(to, from, chunks * Format::kChunkBytes, full + 8 * slot, policy);
      } else {
        CopyBulk(to, from, chunks * Format::kChunkBytes, full + 8 * slot);
      }
    }
  };
  const auto copy_x = [&](int stage, int slot) {
    if (lane < 2 * chunks_of(stage)) {
      CopyBoxToAll(slot_at(slot) + (lane * kTokens + rank * rows_each) * kBoxRowBytes, x_map,
                   (stage * p.stage_chunks * 2 + lane) * kBoxColumns,
                   tile.row_begin + rank * rows_each, full + 8 * slot, ctas);
    }
  };
  const int first = min(p.num_slots, num_stages);
  for (int stage = 0; stage < first; ++stage) copy_codes(stage, stage);
  WaitForCluster();
  WaitForPreviousKernel();
  for (int stage = 0; stage < first; ++stage) copy_x(stage, stage);
  int slot = 0;
  uint32_t parity = 0;
  for (int stage = first; stage < num_stages; ++stage) {
    BarrierWait(empty + 8 * slot, parity);
    copy_codes(stage, slot);
    copy_x(stage, slot);
    if (++slot == p.num_slots) {
      slot = 0;
      parity ^= 1;
    }
  }
}

// The fragments of K64 (half of a chunk) for a warp's 16 rows: four steps of four registers.
template <class Format, int kHalf>
__device__ __forceinline__ void MakeFragments(const typename Format::Chunk (&codes)[kUnitsOfWarp],
                                              GroupFactors (&factors)[kUnitsOfWarp],
                                              uint32_t (&a)[4][4]) {
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t upper[4], lower[4];
    Format::Weights(codes[0], 2 * kHalf + pair, &factors[0], upper);
    Format::Weights(codes[1], 2 * kHalf + pair, &factors[1], lower);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      a[2 * pair + step][0] = upper[2 * step];
      a[2 * pair + step][1] = lower[2 * step];
      a[2 * pair + step][2] = upper[2 * step + 1];
      a[2 * pair + step][3] = lower[2 * step + 1];
    }
  }
}

// Keeps what the compiler does with the accumulators out of the pipeline of products.
template <int kTiles>
__device__ __forceinline__ void FenceSums(float (&d)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
}

template <int kTokens>
__device__ __forceinline__ void IssueProducts(float (&d)[kTokens / 8][4], const uint32_t (&a)[4][4],
                                              uint32_t box) {
  const uint32_t place = OperandPlace(box);
  FenceProducts();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    WideProduct<kTokens>(d, a[step], SwizzledOperand(place + OperandPlace(step * kStepBytes)));
  }
  CommitProducts();
}

// A warpgroup's chains over the whole of K.
template <class Format, int kTokens>
__device__ __forceinline__ void WalkStages(const WideParameters& p, uint32_t base,
                                           float (&d)[kTokens / 8][4]) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const uint32_t full = base;
  const uint32_t empty = base + 8 * p.num_slots;
  constexpr uint32_t kBoxBytes = kTokens * kBoxRowBytes;
  uint32_t a[2][4][4];
  typename Format::Chunk codes[kUnitsOfWarp];
  GroupFactors factors[kUnitsOfWarp];
  int slot = p.num_slots - 1;
  int in_stage = p.stage_chunks;  // chunks of the stage before the current one
  uint32_t parity = 1;
  uint32_t box = 0, codes_at = 0, used = 0;
  FenceSums(d);
#pragma unroll 1
  for (int chunk = 0; chunk < p.num_chunks; ++chunk) {
    const bool is_new = in_stage == p.stage_chunks;
    if (is_new) {
      used = empty + 8 * slot;
      if (++slot == p.num_slots) {
        slot = 0;
        parity ^= 1;
      }
      BarrierWait(full + 8 * slot, parity);
      box = base + kBarrierBytes + slot * p.slot_bytes;
      codes_at = box + p.x_bytes + kUnitsOfWarp * warp * p.unit_pitch;
      in_stage = 0;
    }
    Format::Load(codes_at, lane, &codes[0]);
    Format::Load(codes_at + p.unit_pitch, lane, &codes[1]);
    MakeFragments<Format, 0>(codes, factors, a[0]);
    IssueProducts<kTokens>(d, a[0], box);
    WaitForProducts<1>();
    // Everything of the stage before has been used.
    if (is_new && chunk > 0) {
      __syncwarp();
      if (lane < p.cluster) ArriveAt(used, lane);
    }
    MakeFragments<Format, 1>(codes, factors, a[1]);
    IssueProducts<kTokens>(d, a[1], box + kBoxBytes);
    WaitForProducts<1>();
    box += 2 * kBoxBytes;
    codes_at += Format::kChunkBytes;
    ++in_stage;
  }
  WaitForProducts<0>();
  FenceSums(d);
}

__device__ __forceinline__ void StoreOne(const WideParameters& p, int64_t row, int n, float total) {
  const int64_t at = row * p.out_features + n;
  if (p.bias != nullptr) total = __fadd_rn(total, ToFloat(p.bias[n]));
  if (p.y_float != nullptr) {
    p.y_float[at] = total;
    return;
  }
  BFloat16 value = ToBFloat16(total);
  if (p.residual != nullptr) {
    value = ToBFloat16(__fadd_rn(ToFloat(p.residual[at]), ToFloat(value)));
  }
  p.y[at] = value;
}

// The sums of a warp's pair of units.
template <class Format, int kTokens>
__device__ __forceinline__ void StorePair(const WideParameters& p, const WideTile& tile, int pair,
                                          const float (&d)[kTokens / 8][4]) {
  const int lane = threadIdx.x % 32;
  if (pair >= p.num_pairs) return;
#pragma unroll
  for (int t = 0; t < kTokens / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = t * 8 + lane % 4 * 2 + i;
      if (token >= tile.num_rows) continue;
      const int64_t row = tile.row_begin + token;
      const float upper = d[t][i] * Format::kUnscale;
      const float lower = d[t][i + 2] * Format::kUnscale;
      if (p.is_gate_up) {
        p.y[row * p.out_features + pair * 8 + lane / 4] =
            ToBFloat16(SwiGlu(ToFloat(ToBFloat16(upper)), ToFloat(ToBFloat16(lower))));
        continue;
      }
      const int n = pair * 16 + lane / 4;
      if (n < p.out_features) StoreOne(p, row, n, upper);
      if (n + 8 < p.out_features) StoreOne(p, row, n + 8, lower);
    }
  }
}

template <class Format, int kTokens>
__global__ void __launch_bounds__(128 * kMostGroups + 32, 1)
    WideKernel(const __grid_constant__ WideParameters p,
               const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  const int warp = threadIdx.x / 32;
  const int num_warps = static_cast<int>(blockDim.x) / 32 - 1;
  // The list of experts may be what the kernel before writes.
  if (p.expert_begin != nullptr) WaitForPreviousKernel();
  LetNextKernelStart();
  const WideTile tile = TileOf<kTokens>(p);
  if (tile.num_rows <= 0) return;  // so do all CTAs of the cluster
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.num_slots; ++i) {
      BarrierInit(base + 8 * i, 1);
      BarrierInit(base + 8 * (p.num_slots + i), num_warps * p.cluster);
    }
    FenceForCopies();
  }
  __syncthreads();
  ArriveInCluster();
  if (warp == num_warps) {
    CopyStages<Format, kTokens>(p, &x_map, base, kUnitsOfWarp * num_warps, tile);
  } else {
    WaitForCluster();
    float d[kTokens / 8][4] = {};
    WalkStages<Format, kTokens>(p, base, d);
    StorePair<Format, kTokens>(p, tile, static_cast<int>(blockIdx.x) * num_warps + warp, d);
  }
  // No CTA leaves while another may copy to it or arrive at its barriers.
  __syncwarp();
  ArriveInCluster();
  WaitForCluster();
}

// What a launch multiplies: a matrix, or those of all experts.
struct WideWork {
  PackedShape shape;  // of one matrix
  WideParameters parameters;
  const BFloat16* x;
  int64_t num_rows;  // of x
  int64_t x_stride;
  int64_t num_tiles;  // of rows, at most
};

template <class Format, int kTokens>
void Launch(const WideWork& work, const WidePlan& plan, cudaStream_t stream, LaunchOrder order) {
  QT_CHECK(plan.num_warpgroups >= 1 && plan.num_warpgroups <= kMostGroups, "{} warpgroups",
           plan.num_warpgroups);
  WideParameters p = work.parameters;
  p.num_units = static_cast<int>(NumUnits(work.shape));
  p.num_pairs = (p.num_units + 1) / 2;
  p.num_chunks = static_cast<int>(NumChunks(work.shape));
  p.cluster = plan.cluster;
  const int units = plan.num_warpgroups * kRowsOfGroup / static_cast<int>(kUnitRows);
  // Two chunks a copy, unless that leaves too few on their way.
  for (p.stage_chunks = 2; p.stage_chunks >= 1; --p.stage_chunks) {
    p.unit_pitch = p.stage_chunks * Format::kChunkBytes;
    p.x_bytes = p.stage_chunks * kTokens * kChunkXBytes;
    p.slot_bytes = (p.x_bytes + units * p.unit_pitch + 1023) / 1024 * 1024;
    p.num_slots = (kSharedBudget - kBarrierBytes) / static_cast<int>(p.slot_bytes);
    if (p.num_slots >= kEnoughSlots || p.stage_chunks == 1) break;
  }
  const int stages = (p.num_chunks + p.stage_chunks - 1) / p.stage_chunks;
  p.num_slots = std::min(p.num_slots, stages);
  QT_CHECK(p.num_slots >= 2 || stages == 1, "no room for {} tokens", kTokens);
  const CUtensorMap x_map = BoxesOf({work.x, work.num_rows, work.shape.in_features, work.x_stride},
                                    kTokens / plan.cluster);
  const auto kernel = WideKernel<Format, kTokens>;
  const size_t shared_bytes = kBarrierBytes + static_cast<size_t>(p.num_slots) * p.slot_bytes;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory of linear_wide");
  const int ctas = (p.num_units + units - 1) / units;
  const int rounded = (ctas + plan.cluster - 1) / plan.cluster * plan.cluster;
  LaunchKernel({.grid = dim3(static_cast<unsigned>(rounded), static_cast<unsigned>(work.num_tiles)),
                .block = dim3(static_cast<unsigned>(128 * plan.num_warpgroups + 32)),
                .shared_bytes = shared_bytes,
                .stream = stream,
                .order = order,
                .cluster = static_cast<unsigned>(plan.cluster)},
               kernel, p, x_map);
}

template <class Format>
void LaunchFormat(const WideWork& work, const WidePlan& plan, cudaStream_t stream,
                  LaunchOrder order) {
  switch (plan.tokens) {
    case 32:
      return Launch<Format, 32>(work, plan, stream, order);
    case 64:
      return Launch<Format, 64>(work, plan, stream, order);
    default:
      QT_CHECK(plan.tokens == kMostTokens, "{} tokens", plan.tokens);
      return Launch<Format, kMostTokens>(work, plan, stream, order);
  }
}

void LaunchScales(const WideWork& work, const WidePlan& plan, cudaStream_t stream,
                  LaunchOrder order) {
  QT_CHECK(plan.cluster == 1 || plan.cluster == 2 || plan.cluster == 4, "cluster of {}",
           plan.cluster);
  switch (ScalesPerChunk(work.shape)) {
    case 1:
      return LaunchFormat<CodeFormat<4, 1>>(work, plan, stream, order);
    case 2:
      return LaunchFormat<CodeFormat<4, 2>>(work, plan, stream, order);
    default:
      return LaunchFormat<CodeFormat<4, 4>>(work, plan, stream, order);
  }
}

// Warpgroups that leave the least idle when `tiles` tiles of tokens meet `groups` x 64 rows; of
// equal ones the most, which read x the fewest times. Two CTAs of a cluster always find
// neighbouring multiprocessors; four may leave some of them idle.
WidePlan PlanFor(int tokens, int64_t groups, int64_t tiles, int num_multiprocessors) {
  WidePlan plan;
  plan.tokens = tokens;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int each = 1; each <= kMostGroups; ++each) {
    const int64_t ctas = (groups + each - 1) / each * tiles;
    const int64_t cost = (ctas + num_multiprocessors - 1) / num_multiprocessors * each;
    if (cost <= least) {
      least = cost;
      plan.num_warpgroups = each;
    }
  }
  plan.cluster = (groups + plan.num_warpgroups - 1) / plan.num_warpgroups >= 2 ? 2 : 1;
  return plan;
}

}  // namespace

bool IsWide(const LinearDecodeArgs& args) {
  return args.type == WeightType::kInt4 &&
         NumSegments(args.shape.out_features, args.shape.in_features) == 1;
}

WidePlan PlanLinearWide(const LinearDecodeArgs& args, int num_multiprocessors) {
  const int64_t m = args.num_tokens;
  const int tokens = m <= 32 ? 32 : m <= 64 ? 64 : kMostTokens;
  return PlanFor(tokens, (args.shape.out_features + kRowsOfGroup - 1) / kRowsOfGroup,
                 (m + tokens - 1) / tokens, num_multiprocessors);
}

void LinearWide(const LinearDecodeArgs& args, const WidePlan& plan, cudaStream_t stream,
                LaunchOrder order) {
  QT_CHECK(IsWide(args), "no wide kernel for such a weight");
  if (args.num_tokens == 0) return;
  WideWork work = {};
  work.shape = args.shape;
  work.x = args.x;
  work.num_rows = args.num_tokens;
  work.x_stride = args.x_stride == 0 ? args.shape.in_features : args.x_stride;
  work.num_tiles = (args.num_tokens + plan.tokens - 1) / plan.tokens;
  WideParameters& p = work.parameters;
  p.weight = static_cast<const uint8_t*>(args.weight);
  p.bias = args.bias;
  p.residual = args.residual;
  p.y = args.y;
  p.y_float = args.y_float;
  p.pair_stride = 2 * UnitBytes(args.shape);
  p.partner_offset = UnitBytes(args.shape);
  p.out_features = static_cast<int>(args.shape.out_features);
  p.num_tokens = static_cast<int>(args.num_tokens);
  LaunchScales(work, plan, stream, order);
}

}  // namespace quatrain::cuda
