// Plan: dW = dy^T x with both operands as they lie in memory, rows of the batch being the dimension
// that is summed over, so both are transposed by the tensor core (their descriptors say so).
//
//   two CTAs side by side = one tile of 2 x 128 rows (N) by 256 columns (K) of an expert's dW; they
//   share what they read of x: each brings half of it for both
//
//   copying warp --boxes of 64 rows x 64 columns: 2 of dy, 4 of x--> [slot] x 3
//                                                                       |
//   2 warpgroups of 64 x 256 sums each: wgmma m64n256k16 ---------------+
//      old sums --copied beside the products--> 8 rows a warp in shared memory, + sums --> dW
//      or, for many rows:                       8 rows a warp in shared memory, added in the L2
//
// A CTA stays and takes tile after tile; copies of the next tile run while sums are stored. Old
// sums come and new ones go as whole rows of a tile, 1 KB, by the copy engine. Adding in the L2
// takes more of the memory's time and less of the tensor cores'. Rows of an expert end anywhere:
// rows after them, the next expert's, are cleared in the last slot. Old and new sums pass once and
// are the first out of the L2, which keeps dy and x.
#include <algorithm>

#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/linear_wide_stream.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/weight_grad.h"
#include "kernels/cuda/wide_product.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kSumWarps = 8;
constexpr int kSumThreads = 32 * kSumWarps;
constexpr int kThreads = kSumThreads + 128;  // the last warpgroup copies
constexpr int kCtas = 2;                     // of a cluster
constexpr int kTileRows = 128;               // of dW, a CTA
constexpr int kTileColumns = 256;
constexpr int kSlotRows = 64;  // of dy and x
constexpr int kStepRows = 16;
constexpr int kBoxWidth = 64;
constexpr int kBoxBytes = kSlotRows * 2 * kBoxWidth;
constexpr int kDyBoxes = kTileRows / kBoxWidth;
constexpr int kXBoxes = kTileColumns / kBoxWidth;
constexpr int kBoxes = kDyBoxes + kXBoxes;
constexpr int kSlots = 3;
constexpr int kSumRows = 8;                       // of a warp in shared memory, half of its sums
constexpr int kSumPitch = 4 * kTileColumns + 32;  // bytes of a row of sums; no bank conflicts
constexpr int kSumBytes = kSumRows * kSumPitch;   // of a warp
constexpr int kSlotsAt = kBarrierBytes;
constexpr int kSumsAt = kSlotsAt + kSlots * kBoxes * kBoxBytes;
constexpr int kSharedBytes = kSumsAt + kSumWarps * kSumBytes;
static_assert(kSharedBytes <= 227 << 10);
constexpr int kBand = 8;  // tiles of N beside one another that share columns of x in the L2

// How a tile's sums meet the old ones.
enum class OldSums { kNone, kFetched, kInL2 };
// Rows of an expert from which on the L2 adds. Measured on an H100.
constexpr int kFewestRowsForL2 = 1024;

struct GradParameters {
  const int32_t* expert_begin;
  int num_rows;
  int num_tiles;  // of clusters
  int tiles_of_expert;
  int row_tiles, column_tiles;  // of an expert
  int out_features, in_features;
  int is_added;
  float* dweight;
};

struct GradMaps {
  CUtensorMap dy, x;
};

// What a cluster sums at a time: rows [begin, end) of dy and x.
struct GradTile {
  int expert;
  int row, column;  // of dW, of this CTA
  int begin, end;

  __device__ GradTile(const GradParameters& p, int index, int rank) {
    expert = index / p.tiles_of_expert;
    const int in_expert = index - expert * p.tiles_of_expert;
    const int band = in_expert / (kBand * p.column_tiles);
    const int in_band = in_expert - band * kBand * p.column_tiles;
    const int height = min(kBand, p.row_tiles - band * kBand);
    column = in_band / height * kTileColumns;
    row = ((band * kBand + in_band % height) * kCtas + rank) * kTileRows;
    begin = p.expert_begin == nullptr ? 0 : __ldcg(p.expert_begin + expert);
    end = p.expert_begin == nullptr ? p.num_rows : __ldcg(p.expert_begin + expert + 1);
  }
};

struct GradRing {
  uint32_t base;
  int slot = 0;
  uint32_t parity = 0;

  __device__ uint32_t Full() const { return base + 8 * slot; }
  __device__ uint32_t Empty() const { return base + 8 * (kSlots + slot); }
  __device__ uint32_t Boxes() const { return base + kSlotsAt + slot * (kBoxes * kBoxBytes); }
  __device__ void Advance() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// The copying warp: lanes 0 and 1 bring dy, 2 and 3 this CTA's half of x to both CTAs.
__device__ __forceinline__ void CopyRows(const GradParameters& p, const GradMaps& maps,
                                         uint32_t base, int rank) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  GradRing ring{base};
  for (int index = static_cast<int>(blockIdx.x) / kCtas; index < p.num_tiles;
       index += static_cast<int>(gridDim.x) / kCtas) {
    const GradTile tile(p, index, rank);
    for (int row = tile.begin; row < tile.end; row += kSlotRows) {
      BarrierWait(ring.Empty(), ring.parity ^ 1);
      if (lane == 0) BarrierExpect(ring.Full(), kBoxes * kBoxBytes);
      __syncwarp();
      if (lane < kDyBoxes) {
        CopyBox(ring.Boxes() + lane * kBoxBytes, &maps.dy, tile.row + lane * kBoxWidth, row,
                ring.Full());
      } else if (lane < kDyBoxes + kXBoxes / kCtas) {
        const int box = rank * (kXBoxes / kCtas) + lane - kDyBoxes;
        CopyBoxToAll(ring.Boxes() + (kDyBoxes + box) * kBoxBytes, &maps.x,
                     tile.column + box * kBoxWidth, row, ring.Full(), (1 << kCtas) - 1);
      }
      ring.Advance();
    }
  }
}

// Descriptor of boxes whose rows are the steps of the sum: the next 64 columns lie a box further.
__device__ __forceinline__ uint64_t RowsOperand(uint32_t place) {
  constexpr uint32_t kNextColumns = kBoxBytes >> 4;
  return OperandAt(place | kNextColumns << 16);
}

// Rows from `count` on of every box, by all warps that sum; ends with their barrier.
__device__ __forceinline__ void ClearAfter(uint32_t boxes, int count) {
  const int parts = (kSlotRows - count) * 8;  // of 16 bytes, a box
  for (int i = static_cast<int>(threadIdx.x); i < kBoxes * parts; i += kSumThreads) {
    StoreShared16(boxes + i / parts * kBoxBytes + count * 128 + i % parts * 16, uint4{});
  }
  FenceOperands();
  SyncSome(1, kSumThreads);
}

// A warp's 16 rows of a tile, of which eight at a time pass through shared memory.
struct WarpRows {
  float* first;       // the first row in dW
  int64_t stride;     // elements from a row to the next
  int bytes;          // of a row, inside dW
  int num_rows;       // inside dW
  uint32_t corner;    // in shared memory
  uint32_t old_full;  // barrier of the first eight old rows

  __device__ WarpRows(const GradParameters& p, const GradTile& tile, uint32_t base) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int row = tile.row + warp * 2 * kSumRows;
    stride = p.in_features;
    first = p.dweight + (static_cast<int64_t>(tile.expert) * p.out_features + row) * stride +
            tile.column;
    bytes = 4 * min(kTileColumns, p.in_features - tile.column);
    num_rows = max(0, min(2 * kSumRows, p.out_features - row));
    corner = base + kSumsAt + warp * kSumBytes;
    old_full = base + 8 * (2 * kSlots + warp);
  }
  // The memory is free: the sums before have left it.
  __device__ void AwaitRoom() const {
    if (threadIdx.x % 32 < kSumRows) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    __syncwarp();
  }
  // The first eight old rows to shared memory, the others to the L2.
  __device__ void FetchOld() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    AwaitRoom();
    if (lane == 0) BarrierExpect(old_full, min(num_rows, kSumRows) * bytes);
    __syncwarp();
    if (lane >= num_rows) return;
    const float* row = first + lane * stride;
    if (lane < kSumRows) {
      CopyBulkOnce(corner + lane * kSumPitch, row, bytes, old_full, EvictFirstPolicy());
    } else {
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(row), "r"(bytes) : "memory");
    }
  }
  // Eight rows from shared memory to dW, or added to it.
  __device__ void Store(int half, bool is_reduced) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    FenceBeforeCopies();
    __syncwarp();
    if (lane < kSumRows && half * kSumRows + lane < num_rows) {
      float* const row = first + (half * kSumRows + lane) * stride;
      const uint32_t from = corner + lane * kSumPitch;
      const uint64_t policy = EvictFirstPolicy();
      if (is_reduced) {
        asm volatile(
            "cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.f32 [%0], [%1], "
            "%2, %3;" ::"l"(row),
            "r"(from), "r"(bytes), "l"(policy)
            : "memory");
      } else {
        asm volatile(
            "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(
                row),
            "r"(from), "r"(bytes), "l"(policy)
            : "memory");
      }
    }
    if (lane < kSumRows) asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }
};

// A warpgroup's chains over the rows of a tile. Old sums are asked for after the second slot: those
// of the tile before have left by then.
__device__ __forceinline__ void SumRows(const GradTile& tile, const WarpRows& sums,
                                        bool fetches_old, GradRing& ring, float (&d)[32][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = static_cast<int>(threadIdx.x) / 128;
  uint32_t before = 0;  // barrier of the slot whose products may still run
  const int fetches_at = tile.end - tile.begin > kSlotRows ? tile.begin + kSlotRows : tile.begin;
  FenceSums(d);
  for (int row = tile.begin; row < tile.end; row += kSlotRows) {
    BarrierWait(ring.Full(), ring.parity);
    const int count = tile.end - row;
    if (count < kSlotRows) ClearAfter(ring.Boxes(), count);
    const uint32_t dy = OperandPlace(ring.Boxes() + group * kBoxBytes);
    const uint32_t x = OperandPlace(ring.Boxes() + kDyBoxes * kBoxBytes);
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kSlotRows / kStepRows; ++step) {
      const uint32_t at = step * (kStepRows * 128 >> 4);
      Product256Shared<1>(&d[0][0], RowsOperand(dy + at), RowsOperand(x + at));
    }
    CommitProducts();
    WaitForProducts<1>();
    if (before != 0) ArriveAtAll(before, kCtas, lane);
    before = ring.Empty();
    ring.Advance();
    if (fetches_old && row == fetches_at) sums.FetchOld();
  }
  WaitForProducts<0>();
  if (before != 0) ArriveAtAll(before, kCtas, lane);
  FenceSums(d);
}

// Old sums, if any, plus the chains, by way of the warp's corner of shared memory. N is a multiple
// of 8: eight rows lie in dW or none of them. Lane 4 r + t has columns 2 t and 2 t + 1 of each 8,
// rows r and r + 8.
__device__ __forceinline__ void StoreSums(const WarpRows& sums, OldSums kind,
                                          const float (&d)[32][4]) {
  const bool is_fetched = kind == OldSums::kFetched;
  const bool is_reduced = kind == OldSums::kInL2;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t at = sums.corner + lane / 4 * kSumPitch + lane % 4 * 8;
#pragma unroll
  for (int i = 0; i < kTileColumns / 8; ++i) {
    float2 old = make_float2(0.0f, 0.0f);
    if (is_fetched) {
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(old.x), "=f"(old.y)
                   : "r"(at + i * 32));
    }
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at + i * 32),
                 "f"(__fadd_rn(old.x, d[i][0])), "f"(__fadd_rn(old.y, d[i][1]))
                 : "memory");
  }
  sums.Store(0, is_reduced);
  // The second eight rows' old sums come while the first leave.
  float2 old[kTileColumns / 8] = {};
  if (is_fetched && sums.num_rows > kSumRows) {
    const float* row = sums.first + (kSumRows + lane / 4) * sums.stride + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kTileColumns / 8; ++i) {
      if (i * 32 < sums.bytes) old[i] = __ldcs(reinterpret_cast<const float2*>(row + i * 8));
    }
  }
  sums.AwaitRoom();
#pragma unroll
  for (int i = 0; i < kTileColumns / 8; ++i) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at + i * 32),
                 "f"(__fadd_rn(old[i].x, d[i][2])), "f"(__fadd_rn(old[i].y, d[i][3]))
                 : "memory");
  }
  sums.Store(1, is_reduced);
}

__global__ void __launch_bounds__(kThreads, 1)
    WeightGradKernel(const __grid_constant__ GradParameters p,
                     const __grid_constant__ GradMaps maps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const int rank = static_cast<int>(RankInCluster());
  LetNextKernelStart();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      BarrierInit(base + 8 * i, 1);
      BarrierInit(base + 8 * (kSlots + i), ArrivalsOf(kSumWarps * kCtas));
    }
    for (int i = 0; i < kSumWarps; ++i) BarrierInit(base + 8 * (2 * kSlots + i), 1);
    FenceForCopies();
  }
  __syncthreads();
  ArriveInCluster();
  WaitForCluster();
  WaitForPreviousKernel();
  if (warp >= kSumWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == kSumWarps) CopyRows(p, maps, base, rank);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    GradRing ring{base};
    uint32_t old_parity = 0;
    const bool is_added = p.is_added != 0;
    for (int index = static_cast<int>(blockIdx.x) / kCtas; index < p.num_tiles;
         index += static_cast<int>(gridDim.x) / kCtas) {
      const GradTile tile(p, index, rank);
      if (tile.begin == tile.end && is_added) continue;
      const WarpRows sums(p, tile, base);
      float d[32][4] = {};
      const OldSums kind = !is_added                                  ? OldSums::kNone
                           : tile.end - tile.begin < kFewestRowsForL2 ? OldSums::kFetched
                                                                      : OldSums::kInL2;
      SumRows(tile, sums, kind == OldSums::kFetched, ring, d);
      if (kind == OldSums::kFetched) {
        BarrierWait(sums.old_full, old_parity);
        old_parity ^= 1;
      } else {
        sums.AwaitRoom();
      }
      StoreSums(sums, kind, d);
    }
    if (threadIdx.x % 32 < kSumRows) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
  // No CTA leaves while another may copy to it or arrive at its barriers.
  __syncwarp();
  ArriveInCluster();
  WaitForCluster();
}

int TilesOf(int64_t size, int64_t tile) { return static_cast<int>((size + tile - 1) / tile); }

}  // namespace

void WeightGrad(const WeightGradArgs& args, cudaStream_t stream, LaunchOrder order) {
  const int64_t n = args.out_features;
  const int64_t k = args.in_features;
  const bool is_known = n > 0 && k > 0 && n % 8 == 0 && k % 8 == 0 && args.num_experts > 0 &&
                        (args.num_experts == 1 || args.expert_begin != nullptr) &&
                        args.num_experts * n < int64_t{1} << 31;
  if (!is_known) {
    throw Error(ErrorCode::kShape,
                ErrorParts{.where = "gradient of weights",
                           .expected = "N and K multiples of 8, experts with their rows",
                           .found = fmt::format("N {}, K {}, {} experts", n, k, args.num_experts)});
  }
  if (args.num_rows == 0) {
    if (args.old == OldGradient::kReplaced) {
      CheckCuda(cudaMemsetAsync(args.dweight, 0, args.num_experts * n * k * sizeof(float), stream),
                "gradient of weights");
    }
    return;
  }
  GradParameters p = {};
  p.expert_begin = args.expert_begin;
  p.num_rows = static_cast<int>(args.num_rows);
  p.row_tiles = TilesOf(n, kCtas * kTileRows);
  p.column_tiles = TilesOf(k, kTileColumns);
  p.tiles_of_expert = p.row_tiles * p.column_tiles;
  p.num_tiles = static_cast<int>(args.num_experts) * p.tiles_of_expert;
  p.out_features = static_cast<int>(n);
  p.in_features = static_cast<int>(k);
  p.dweight = args.dweight;
  p.is_added = args.old == OldGradient::kAdded ? 1 : 0;
  GradMaps maps;
  maps.dy = BoxesOf({args.dy, args.num_rows, n, n}, kSlotRows);
  maps.x = BoxesOf({args.x, args.num_rows, k, k}, kSlotRows);
  CheckCuda(cudaFuncSetAttribute(WeightGradKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kSharedBytes),
            "shared memory of weight_grad");
  const int clusters = std::min(p.num_tiles, NumMultiprocessors() / kCtas);
  LaunchKernel({.grid = dim3(static_cast<unsigned>(kCtas * clusters)),
                .block = dim3(kThreads),
                .shared_bytes = kSharedBytes,
                .stream = stream,
                .order = order,
                .cluster = kCtas},
               WeightGradKernel, p, maps);
}

}  // namespace quatrain::cuda
