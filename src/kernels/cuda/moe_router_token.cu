// The router of a single token: one cluster, whose CTAs send their logits to a warp of the first.
//
// CTA b computes the logits of experts 16 b .. 16 b + 15, whose weights it holds whole before x is
// there: one warp walks the chains, one copies. The warp that routes takes the old list back, lets
// the next kernel start and rehearses, which brings its instructions near; then it waits for the
// logits in its own shared memory.
#include <algorithm>

#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/moe_route.cuh"
#include "kernels/cuda/moe_router_token.h"

namespace quatrain::cuda {
namespace {

constexpr int kRows = 16;  // of a CTA
// Warps of a CTA: the first walks chains.
constexpr int kCopyWarp = 1;
constexpr int kRouteWarp = 2;
constexpr int kThreads = 32 * 3;
constexpr int kMostCtas = 8;    // a portable cluster
constexpr int kFewestCtas = 2;  // st.async wants a cluster of more than one
constexpr int kPerLane = 4;     // experts of a lane of the warp that routes
constexpr int kMostExperts = kMostCtas * kRows;
static_assert(kMostExperts <= 32 * kPerLane);

// In the shared memory of every CTA; those of the first count.
struct Arrived {
  float logits[kMostExperts];
  uint64_t barrier;
};

struct TokenLinear {
  const BFloat16* weight;
  const BFloat16* x;
  int hidden;
};

// Shared memory: rows of weights, then x, with zeros up to whole walks, and room for the one that
// is read ahead.
constexpr int kPairInputs = 32;  // of two steps
constexpr int kPairBytes = 2 * kPairInputs;
constexpr int kAhead = 4;  // pairs of a walk
constexpr int kWalkInputs = kAhead * kPairInputs;
struct TokenLayout {
  int pairs;
  QT_HOST_DEVICE explicit TokenLayout(int64_t hidden)
      : pairs(static_cast<int>((hidden + kWalkInputs - 1) / kWalkInputs * kAhead)) {}
  QT_HOST_DEVICE int Pitch() const { return pairs * kPairBytes + 16; }  // no bank conflicts
  QT_HOST_DEVICE int XOffset() const { return kRows * Pitch(); }
  QT_HOST_DEVICE int Bytes() const { return XOffset() + (pairs + kAhead) * kPairBytes; }
};

// The same variable of the cluster's first CTA.
__device__ __forceinline__ uint32_t OfFirstCta(const void* pointer) {
  return SharedOf(SharedAddress(pointer), 0);
}

// One warp: the rows of this CTA, then x.
__device__ __forceinline__ void CopyOperands(const TokenLinear& linear, int rows, uint32_t base,
                                             uint32_t weight_full, uint32_t x_full, int lane) {
  const TokenLayout layout(linear.hidden);
  const int bytes = 2 * linear.hidden;
  if (lane == 0) {
    BarrierExpect(weight_full, rows * bytes);
    BarrierExpect(x_full, bytes);
  }
  __syncwarp();
  const int64_t first = int64_t{blockIdx.x} * kRows;
  if (lane < rows) {
    CopyBulk(base + lane * layout.Pitch(), linear.weight + (first + lane) * linear.hidden, bytes,
             weight_full);
  }
  WaitForPreviousKernel();
  if (lane == 0) CopyBulk(base + layout.XOffset(), linear.x, bytes, x_full);
}

// One warp: zeros behind each row of weights and x.
__device__ __forceinline__ void ClearEnds(const TokenLinear& linear, uint32_t base, int lane) {
  const TokenLayout layout(linear.hidden);
  const int bytes = 2 * linear.hidden;
  const int end = layout.pairs * kPairBytes;
  for (int row = 0; row <= kRows; ++row) {
    ClearShared(base + row * layout.Pitch() + bytes, end - bytes, lane);
  }
}

// One warp: the chains of 16 experts. Lane l gets the sums of experts l / 4 and l / 4 + 8.
__device__ __forceinline__ float2 WalkChains(const TokenLayout& layout, uint32_t base, int lane) {
  uint32_t w_at = base + lane % kRows * layout.Pitch() + 16 * (lane / kRows);
  uint32_t x_at = base + layout.XOffset() + 16 * (lane / 8);
  struct Operands {
    uint32_t w[kAhead][2][4], x[kAhead][4];
  };
  float sums[4] = {};
  const auto load = [&](Operands* o) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      LoadMatrices(w_at + i * kPairBytes, o->w[i][0]);
      LoadMatrices(w_at + i * kPairBytes + kPairBytes / 2, o->w[i][1]);
      LoadMatrices(x_at + i * kPairBytes, o->x[i]);
    }
    w_at += kAhead * kPairBytes;
    x_at += kAhead * kPairBytes;
  };
  const auto walk = [&](const Operands& o) {
#pragma unroll
    for (int i = 0; i < 2 * kAhead; ++i) {
      const uint32_t* a = o.w[i / 2][i % 2];
      ChainStep(sums, a[0], a[1], a[2], a[3], o.x[i / 2] + i % 2 * 2);
    }
  };
  // Loads are asked for a walk ahead, all at once: a step that waits for one waits for those before
  // it, too.
  Operands now, next;
  load(&now);
#pragma unroll 1
  for (int left = layout.pairs; left > 0; left -= 2 * kAhead) {
    load(&next);
    walk(now);
    if (left == kAhead) break;
    load(&now);
    walk(next);
  }
  return make_float2(sums[0], sums[2]);
}

// To the first CTA, and to the caller.
__device__ __forceinline__ void SendLogit(const RouterParameters& p, const Arrived* arrived,
                                          int expert, float logit) {
  Give(OfFirstCta(&arrived->logits[expert]), logit, OfFirstCta(&arrived->barrier));
  p.logits[expert] = logit;
}

// Lane l has slot l and its expert: a row and a tile for each, by expert. is_there: 1, or 0 for a
// rehearsal, whose tiles nobody takes.
__device__ __forceinline__ void SortSlots(const RouterParameters& p, int expert, int lane,
                                          int is_there) {
  const bool is_slot = lane < p.num_slots;
  int row = 0;
#pragma unroll 8
  for (int i = 0; i < p.num_slots; ++i) {
    const int other = __shfl_sync(0xFFFFFFFFu, expert, i);
    row += other < expert || (other == expert && i < lane) ? 1 : 0;
  }
  // First what others wait for.
  if (is_slot) WriteTile(p.routing.tiles + row, {expert, row, 1, is_there});
  if (lane == 0) WriteNumTiles(p, is_there * p.num_slots);
  int begin[kPerLane] = {};  // of experts lane, lane + 32, ...
#pragma unroll 8
  for (int i = 0; i < p.num_slots; ++i) {
    const int other = __shfl_sync(0xFFFFFFFFu, expert, i);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) begin[j] += other < 32 * j + lane ? 1 : 0;
  }
  if (is_slot) {
    p.routing.slot_row[lane] = row;
    p.routing.row_token[row] = 0;
  }
  WriteExpertBegins(p, begin, lane);
  if (lane == 0) p.routing.expert_begin[p.num_experts] = p.num_slots;
}

// The warp that routes.
__device__ void RouteToken(const RouterParameters& p, Arrived* arrived, int lane) {
  WaitForPreviousKernel();
  if (lane < p.num_slots) WriteTile(p.routing.tiles + lane, {0, 0, 0, 0});
  if (lane == 0) WriteNumTiles(p, 0);
  __threadfence();
  __syncwarp();
  LetNextKernelStart();
  LaneLogits<kPerLane> logits = {};
#pragma unroll 1
  for (int is_there = 0; is_there < 2; ++is_there) {
    asm volatile("" : "+r"(is_there));  // one loop, not two copies
    if (is_there != 0) {
      BarrierWaitForCluster(SharedAddress(&arrived->barrier));
      __syncwarp();  // tiles of the first pass were stored by other lanes
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int expert = lane * kPerLane + i;
        logits.value[i] = expert < p.num_experts ? arrived->logits[expert] : -INFINITY;
      }
    }
    const int my_id = ChooseExperts(p, 0, logits, lane);
    SortSlots(p, my_id, lane, is_there);
    const float z = is_there != 0 ? arrived->logits[my_id] : 0.0f;
    WeighExperts(p, 0, logits, my_id, z, lane);
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    TokenRouterKernel(const __grid_constant__ TokenLinear linear,
                      const __grid_constant__ RouterParameters p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ Arrived arrived;
  __shared__ uint64_t barriers[2];
  const uint32_t base = SharedAddress(shared);
  const uint32_t weight_full = SharedAddress(&barriers[0]);
  const uint32_t x_full = SharedAddress(&barriers[1]);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = static_cast<int>(blockIdx.x) * kRows;
  if (warp == kCopyWarp) {
    if (lane == 0) {
      BarrierInit(weight_full, 1);
      BarrierInit(x_full, 1);
    }
    ClearEnds(linear, base, lane);
    FenceForCopies();
  } else if (warp == kRouteWarp && blockIdx.x == 0) {
    if (lane == 0) {
      const uint32_t barrier = SharedAddress(&arrived.barrier);
      BarrierInit(barrier, 1);
      FenceForCopies();
      BarrierExpect(barrier, 4 * p.num_experts);
    }
  }
  __syncwarp();
  SyncCluster();
  if (warp == kRouteWarp) {
    if (blockIdx.x == 0) RouteToken(p, &arrived, lane);
    return;
  }
  // The first CTA's warps leave this to the one that routes.
  if (blockIdx.x > 0) LetNextKernelStart();
  if (warp == kCopyWarp) {
    const int rows = max(0, min(kRows, p.num_experts - first));
    return CopyOperands(linear, rows, base, weight_full, x_full, lane);
  }
  const TokenLayout layout(linear.hidden);
  BarrierWait(weight_full, 0);
  BarrierWait(x_full, 0);
  const float2 sums = WalkChains(layout, base, lane);
  const int expert = first + lane / 4;
  if (lane % 4 != 0) return;
  if (expert < p.num_experts) SendLogit(p, &arrived, expert, sums.x);
  if (expert + 8 < p.num_experts) SendLogit(p, &arrived, expert + 8, sums.y);
}

}  // namespace

bool RouteOneToken(const MoeRouterArgs& args, cudaStream_t stream, LaunchOrder order) {
  const RouterConfig& config = args.config;
  constexpr int kMostBytes = 220 << 10;
  const TokenLayout layout(args.hidden);
  if (config.num_experts > kMostExperts || layout.Bytes() > kMostBytes) return false;
  const auto num_experts = static_cast<int>(config.num_experts);
  const TokenLinear linear = {args.weight_ED, args.x, static_cast<int>(args.hidden)};
  const RouterParameters p = {num_experts,
                              static_cast<int>(config.num_experts_per_tok),
                              config.norm_topk_prob ? 1 : 0,
                              1,
                              args.replayed_ids,
                              args.logits_TE,
                              args.routing,
                              nullptr,
                              nullptr};
  CheckCuda(cudaFuncSetAttribute(TokenRouterKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 layout.Bytes()),
            "shared memory of a token's router");
  // Or else the next kernel's CTAs find no room beside these.
  CheckCuda(cudaFuncSetAttribute(TokenRouterKernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared),
            "shared memory of a token's router");
  const auto num_ctas =
      static_cast<unsigned>(std::max(kFewestCtas, (num_experts + kRows - 1) / kRows));
  LaunchKernel({.grid = dim3(num_ctas),
                .block = dim3(kThreads),
                .shared_bytes = static_cast<size_t>(layout.Bytes()),
                .stream = stream,
                .order = order,
                .cluster = num_ctas},
               TokenRouterKernel, linear, p);
  return true;
}

}  // namespace quatrain::cuda
