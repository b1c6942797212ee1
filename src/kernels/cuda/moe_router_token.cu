// The router of a single token: one cluster, whose CTAs send their logits to a warp of the first.
//
// CTA b computes the logits of experts 16 b .. 16 b + 15 with the decode engine. The warp that
// routes takes the old list back, lets the next kernel start and rehearses, which brings its
// instructions near; then it waits for the logits in its own shared memory.
#include <algorithm>

#include "kernels/cuda/linear_decode_kernel.cuh"
#include "kernels/cuda/moe_route.cuh"
#include "kernels/cuda/moe_router_token.h"

namespace quatrain::cuda {
namespace {

constexpr int kChainWarps = 2;  // of a CTA, 8 experts each
constexpr int kThreads = 32 * (kChainWarps + 3);
constexpr int kMostCtas = 8;    // a portable cluster
constexpr int kFewestCtas = 2;  // st.async wants a cluster of more than one
constexpr int kPerLane = 4;     // experts of a lane of the warp that routes
constexpr int kMostExperts = kMostCtas * kChainWarps * static_cast<int>(kUnitRows);
static_assert(kMostExperts <= 32 * kPerLane);

using TokenLinear = DenseWork<BFloat16Format, 1, 1, false>;

// In the shared memory of every CTA; those of the first count.
struct Arrived {
  float logits[kMostExperts];
  uint64_t barrier;
};

// The same variable of the cluster's first CTA.
__device__ __forceinline__ uint32_t OfFirstCta(const void* pointer) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(address) : "r"(SharedAddress(pointer)));
  return address;
}

struct TokenRouterWork : TokenLinear {
  uint32_t logits_to;  // of the first CTA
  uint32_t barrier;    // likewise

  __device__ __forceinline__ void Store(int round, int group, int lane,
                                        const float (&sums)[1][1][4]) const {
    const int64_t expert = Group(round, group) * kUnitRows + lane / 4;
    if (lane % 4 == 0 && expert < out_features) {
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
              logits_to + 4 * static_cast<uint32_t>(expert)),
          "r"(__float_as_uint(sums[0][0][0])), "r"(barrier)
          : "memory");
    }
    TokenLinear::Store(round, group, lane, sums);
  }
};

__device__ __forceinline__ void WaitForLogits(uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
      "@done bra DONE;\n"
      "bra WAIT;\n"
      "DONE:\n"
      "}\n" ::"r"(barrier)
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
      WaitForLogits(SharedAddress(&arrived->barrier));
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

__global__ void __launch_bounds__(kThreads)
    TokenRouterKernel(const __grid_constant__ StreamLayout layout,
                      const __grid_constant__ TokenLinear linear,
                      const __grid_constant__ RouterParameters p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ Arrived arrived;
  const int lane = threadIdx.x % 32;
  const bool routes = threadIdx.x / 32 == kChainWarps + 2;
  if (routes && blockIdx.x == 0) {
    const uint32_t barrier = SharedAddress(&arrived.barrier);
    if (lane == 0) {
      BarrierInit(barrier, 1);
      FenceForCopies();
      BarrierExpect(barrier, 4 * p.num_experts);
    }
    __syncwarp();
  }
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (routes) {
    __syncthreads();
    if (blockIdx.x == 0) RouteToken(p, &arrived, lane);
    return;
  }
  // The first CTA's warps leave this to the one that routes.
  if (blockIdx.x > 0) LetNextKernelStart();
  TokenRouterWork work = {linear, OfFirstCta(arrived.logits), OfFirstCta(&arrived.barrier)};
  work.first_group = static_cast<int>(blockIdx.x) * kChainWarps;
  work.group_count = max(0, min(kChainWarps, linear.group_count - work.first_group));
  work.num_rounds = 1;
  RunStream<BFloat16Format, 1, 1>(layout, work, shared);
}

}  // namespace

bool RouteOneToken(const MoeRouterArgs& args, cudaStream_t stream, LaunchOrder order) {
  const RouterConfig& config = args.config;
  if (config.num_experts > kMostExperts) return false;
  const int64_t units = (config.num_experts + kUnitRows - 1) / kUnitRows;
  TokenLinear linear = {};
  linear.weight = reinterpret_cast<const uint8_t*>(args.weight_ED);
  linear.x = args.x;
  linear.y_float = args.logits_TE;
  linear.x_stride = args.hidden;
  linear.stream_stride = 2 * args.hidden;
  linear.num_streams = linear.out_features = static_cast<int>(config.num_experts);
  linear.num_tokens = 1;
  linear.num_groups = kChainWarps;
  linear.group_count = static_cast<int>(units);
  StreamLayout layout;
  layout.num_warps = kChainWarps;
  layout.segment_inputs = layout.in_features = static_cast<int>(args.hidden);
  layout.x_rows = 1;
  CutSharedMemory({.chunk_bytes = BFloat16Format::kChunkBytes,
                   .padding = BFloat16Format::kPadding,
                   .num_streams = BFloat16Format::kStreamsPerUnit,
                   .budget = kHalfMultiprocessor - (5 << 10),
                   .num_rounds = 1},
                  &layout);
  const RouterParameters p = {static_cast<int>(config.num_experts),
                              static_cast<int>(config.num_experts_per_tok),
                              config.norm_topk_prob ? 1 : 0,
                              1,
                              args.replayed_ids,
                              args.logits_TE,
                              args.routing,
                              nullptr,
                              nullptr};
  CheckCuda(cudaFuncSetAttribute(TokenRouterKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(layout.shared_bytes)),
            "shared memory of a token's router");
  // Or else the next kernel's CTAs find no room beside these.
  CheckCuda(cudaFuncSetAttribute(TokenRouterKernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared),
            "shared memory of a token's router");
  const auto num_ctas = static_cast<unsigned>(
      std::max<int64_t>(kFewestCtas, (units + kChainWarps - 1) / kChainWarps));
  LaunchKernel({.grid = dim3(num_ctas),
                .block = dim3(kThreads),
                .shared_bytes = layout.shared_bytes,
                .stream = stream,
                .order = order,
                .cluster = num_ctas},
               TokenRouterKernel, layout, linear, p);
  return true;
}

}  // namespace quatrain::cuda
