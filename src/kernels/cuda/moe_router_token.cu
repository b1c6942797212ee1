// The router of a single token: one cluster, whose CTAs send their logits to a warp of the first.
//
// CTA b computes the logits of experts 16 b .. 16 b + 15, whose weights it holds whole before x is
// there: two warps walk the chains, one copies. The warp that routes takes the old list back, lets
// the next kernel start and rehearses, which brings its instructions near; then it waits for the
// logits in its own shared memory.
#include <algorithm>

#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/moe_route.cuh"
#include "kernels/cuda/moe_router_token.h"

namespace quatrain::cuda {
namespace {

constexpr int kChainWarps = 2;  // of a CTA, 8 experts each
constexpr int kThreads = 32 * (kChainWarps + 2);
constexpr int kRows = kChainWarps * static_cast<int>(kUnitRows);
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

// Shared memory: rows of weights, then x, with zeros up to whole pairs of steps, and room for what
// is read ahead.
constexpr int kPairInputs = 32;
constexpr int kPairBytes = 2 * kPairInputs;
constexpr int kAhead = 4;  // pairs
struct TokenLayout {
  int pairs;
  QT_HOST_DEVICE explicit TokenLayout(int64_t hidden)
      : pairs(static_cast<int>((hidden + kPairInputs - 1) / kPairInputs)) {}
  QT_HOST_DEVICE int Pitch() const { return pairs * kPairBytes + 16; }  // no bank conflicts
  QT_HOST_DEVICE int XOffset() const { return kRows * Pitch(); }
  QT_HOST_DEVICE int Bytes() const { return XOffset() + (pairs + kAhead) * kPairBytes; }
};

// The same variable of the cluster's first CTA.
__device__ __forceinline__ uint32_t OfFirstCta(const void* pointer) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(address) : "r"(SharedAddress(pointer)));
  return address;
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

// One warp: the chains of 8 experts, in its lanes l % 4 == 0 that of expert l / 4.
__device__ __forceinline__ float WalkChains(const TokenLayout& layout, uint32_t weights, uint32_t x,
                                            int lane) {
  uint32_t w_at = weights + lane % 8 * layout.Pitch() + 16 * (lane / 8);
  uint32_t x_at = x + 16 * (lane / 8);
  uint32_t w[kAhead][4], b[kAhead][4];
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    LoadMatrices(w_at + i * kPairBytes, w[i]);
    LoadMatrices(x_at + i * kPairBytes, b[i]);
  }
  int left = layout.pairs;
#pragma unroll 1
  for (; left >= kAhead; left -= kAhead) {
    w_at += kAhead * kPairBytes;
    x_at += kAhead * kPairBytes;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      ChainStep(sums, w[i][0], 0, w[i][1], 0, b[i]);
      ChainStep(sums, w[i][2], 0, w[i][3], 0, b[i] + 2);
      LoadMatrices(w_at + i * kPairBytes, w[i]);
      LoadMatrices(x_at + i * kPairBytes, b[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i >= left) continue;
    ChainStep(sums, w[i][0], 0, w[i][1], 0, b[i]);
    ChainStep(sums, w[i][2], 0, w[i][3], 0, b[i] + 2);
  }
  return sums[0];
}

// To the first CTA.
__device__ __forceinline__ void SendLogit(const Arrived* arrived, int expert, float logit) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                   OfFirstCta(&arrived->logits[expert])),
               "r"(__float_as_uint(logit)), "r"(OfFirstCta(&arrived->barrier))
               : "memory");
}

// Lane l has slot l and its expert: a row and a tile for each, by expert. is_there: 1, or 0 for a
// rehearsal, whose tiles nobody takes.
__device__ __forceinline__ void SortSlots(const RouterParameters& p, int expert, int lane,
                                          int is_there) {
  const bool is_slot = lane < p.num_slots;
  int row = 0;
  int begin[kPerLane] = {};  // of experts lane, lane + 32, ...
#pragma unroll 8
  for (int i = 0; i < p.num_slots; ++i) {
    const int other = __shfl_sync(0xFFFFFFFFu, expert, i);
    row += other < expert || (other == expert && i < lane) ? 1 : 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) begin[j] += other < 32 * j + lane ? 1 : 0;
  }
  if (is_slot) WriteTile(p.routing.tiles + row, {expert, row, 1, is_there});
  if (lane == 0) WriteNumTiles(p, is_there * p.num_slots);
  if (is_slot) {
    p.routing.slot_row[lane] = row;
    p.routing.row_token[row] = 0;
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (32 * j + lane < p.num_experts) p.routing.expert_begin[32 * j + lane] = begin[j];
  }
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
  if (warp == kChainWarps) {
    if (lane == 0) {
      BarrierInit(weight_full, 1);
      BarrierInit(x_full, 1);
    }
    ClearEnds(linear, base, lane);
    FenceForCopies();
  } else if (warp == kChainWarps + 1 && blockIdx.x == 0) {
    if (lane == 0) {
      const uint32_t barrier = SharedAddress(&arrived.barrier);
      BarrierInit(barrier, 1);
      FenceForCopies();
      BarrierExpect(barrier, 4 * p.num_experts);
    }
  }
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (warp == kChainWarps + 1) {
    if (blockIdx.x == 0) RouteToken(p, &arrived, lane);
    return;
  }
  // The first CTA's warps leave this to the one that routes.
  if (blockIdx.x > 0) LetNextKernelStart();
  if (warp == kChainWarps) {
    const int rows = max(0, min(kRows, p.num_experts - first));
    return CopyOperands(linear, rows, base, weight_full, x_full, lane);
  }
  const TokenLayout layout(linear.hidden);
  BarrierWait(weight_full, 0);
  BarrierWait(x_full, 0);
  const int first_row = warp * static_cast<int>(kUnitRows);
  const float logit =
      WalkChains(layout, base + first_row * layout.Pitch(), base + layout.XOffset(), lane);
  const int expert = first + first_row + lane / 4;
  if (lane % 4 == 0 && expert < p.num_experts) {
    SendLogit(&arrived, expert, logit);
    p.logits[expert] = logit;
  }
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
