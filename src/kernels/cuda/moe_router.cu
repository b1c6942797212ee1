// Router, top-k and the work list in one launch.
//
// CTAs (b, t) compute the logits of 16 experts for 16 tokens with the decode engine. The last CTA
// of a tile of tokens chooses their experts; the last CTA of all sorts the rows. "Last" is found by
// counting arrivals; which CTA that is changes nothing.
//
// The kernel after this one may read the work list while this one runs: one more CTA takes the old
// list back before it lets that kernel start, and tiles are written as a whole.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/linear_decode_kernel.cuh"
#include "kernels/cuda/moe_route.cuh"
#include "kernels/cuda/moe_router_token.h"

namespace quatrain::cuda {
namespace {

constexpr int kTokensPerTile = 16;
constexpr int kRouterWarps = 2;  // chain warps of a CTA, 8 experts each
constexpr int kRouterThreads = 32 * (kRouterWarps + 2);
constexpr int kMessagesAt = 2;  // among the counters, of 8 bytes each
constexpr int kStagedIds = 4096;
constexpr int kSortWarps = kRouterThreads / 32;

template <int kTokenTiles>
using RouterLinear = DenseWork<BFloat16Format, 1, kTokenTiles, false>;

// A single token's logits reach the warp that chooses as messages, without a counter: the logit and
// a mark that it is there, in one word.
__device__ __forceinline__ void SendLogit(uint64_t* message, float logit) {
  const uint64_t word = uint64_t{1} << 32 | __float_as_uint(logit);
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(message), "l"(word) : "memory");
}

template <int kTokenTiles>
struct RouterWork : RouterLinear<kTokenTiles> {
  uint64_t* messages;

  __device__ __forceinline__ void Store(int round, int group, int lane,
                                        const float (&sums)[1][kTokenTiles][4]) const {
    RouterLinear<kTokenTiles>::Store(round, group, lane, sums);
    const int64_t expert = this->Group(round, group) * kUnitRows + lane / 4;
    if (messages != nullptr && lane % 4 == 0 && expert < this->out_features) {
      SendLogit(messages + expert, sums[0][0][0]);
    }
  }
};

// True in every thread of the CTA that arrives last of `count`; all writes of the others are
// visible to it. Leaves *counter at zero.
__device__ bool IsLastOf(int32_t* counter, int count, int32_t* shared_flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const bool is_last = atomicAdd(counter, 1) == count - 1;
    if (is_last) *counter = 0;
    __threadfence();
    *shared_flag = is_last ? 1 : 0;
  }
  __syncthreads();
  return *shared_flag != 0;
}

// The whole CTA: takes the list of the call before back, whose readers are done by then. The next
// kernel may start after it.
__device__ void TakeListBack(const RouterParameters& p) {
  WaitForPreviousKernel();
  const int64_t rows = static_cast<int64_t>(p.num_tokens) * p.num_slots;
  const int64_t most = MaxMoeTiles(rows, p.num_experts);
  for (int64_t i = threadIdx.x; i < most; i += kRouterThreads) {
    WriteTile(p.routing.tiles + i, {0, 0, 0, 0});
  }
  if (threadIdx.x == 0) WriteNumTiles(p, 0);
  __threadfence();
  __syncthreads();
}

template <int kPerLane>
__device__ __forceinline__ LaneLogits<kPerLane> LoadLogits(const RouterParameters& p,
                                                           const float* logits, int lane) {
  LaneLogits<kPerLane> out;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = lane * kPerLane + i;
    out.value[i] = expert < p.num_experts ? __ldcg(logits + expert) : -INFINITY;
  }
  return out;
}

template <int kPerLane>
__device__ void RouteToken(const RouterParameters& p, int64_t token, int lane) {
  const float* row = p.logits + token * p.num_experts;
  const LaneLogits<kPerLane> logits = LoadLogits<kPerLane>(p, row, lane);
  const int my_id = ChooseExperts(p, token, logits, lane);
  WeighExperts(p, token, logits, my_id, __ldcg(row + my_id), lane);
}

// Calls `route` with how many experts of a row of logits a lane holds, as a constant.
template <class Route>
__device__ __forceinline__ void WithWidthOf(int num_experts, const Route& route) {
  if (num_experts <= 128) {
    route(std::integral_constant<int, 4>());
  } else if (num_experts <= 512) {
    route(std::integral_constant<int, 16>());
  } else {
    route(std::integral_constant<int, 32>());
  }
}

// One warp, at most 32 rows: lane l has row l of [T, S] and its expert. The tiles come first:
// others wait for them. is_there: 1, or 0 for a rehearsal, whose tiles nobody takes.
template <int kPerLane>
__device__ __forceinline__ void SortFewRows(const RouterParameters& p, int expert, int lane,
                                            int is_there) {
  const int num_rows = p.num_tokens * p.num_slots;
  const bool is_row = lane < num_rows;
  if (!is_row) expert = kMaxRouterExperts;
  // The readers of a single token's list count on a tile for each row, even where ids repeat.
  const bool is_alone = p.num_tokens == 1;
  const uint32_t peers = __match_any_sync(0xFFFFFFFFu, expert);
  const int rank = __popc(peers & ((1u << lane) - 1u));
  const int rows = is_alone ? 1 : __popc(peers);
  const bool has_tiles = is_row && (is_alone || rank == 0);
  const int tiles = has_tiles ? (rows + kMoeTileRows - 1) / kMoeTileRows : 0;
  int first_row = 0;
  int first_tile = 0;
  int all_tiles = 0;
  int begin[kPerLane] = {};  // of experts lane, lane + 32, ...
  for (int i = 0; i < num_rows; ++i) {
    const int other = __shfl_sync(0xFFFFFFFFu, expert, i);
    const int its_tiles = __shfl_sync(0xFFFFFFFFu, tiles, i);
    first_row += other < expert ? 1 : 0;
    first_tile += other < expert ? its_tiles : 0;
    all_tiles += its_tiles;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) begin[j] += other < 32 * j + lane ? 1 : 0;
  }
  const int row = first_row + rank;
  if (is_alone) first_tile = row;
  for (int i = 0; i < tiles; ++i) {
    WriteTile(
        p.routing.tiles + first_tile + i,
        {expert, row + i * kMoeTileRows, min(kMoeTileRows, rows - i * kMoeTileRows), is_there});
  }
  if (lane == 0) WriteNumTiles(p, is_there * all_tiles);
  if (is_row) {
    p.routing.slot_row[lane] = row;
    p.routing.row_token[row] = lane / p.num_slots;
  }
  WriteExpertBegins(p, begin, lane);
  if (lane == 0) p.routing.expert_begin[p.num_experts] = num_rows;
}

// 0 if it is not there yet.
__device__ __forceinline__ uint64_t LoadMessage(const uint64_t* message) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(word) : "l"(message) : "memory");
  return word;
}

// Waits for the logits of this lane.
template <int kPerLane>
__device__ __forceinline__ LaneLogits<kPerLane> ReceiveLogits(const RouterParameters& p, int lane) {
  const int mine = min(max(p.num_experts - lane * kPerLane, 0), kPerLane);
  LaneLogits<kPerLane> logits;
  for (bool is_whole = false; !is_whole;) {
    is_whole = true;
    uint64_t words[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      words[i] = i < mine ? LoadMessage(p.messages + lane * kPerLane + i) : 0;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      is_whole = is_whole && (i >= mine || words[i] != 0);
      logits.value[i] = i < mine ? __uint_as_float(static_cast<uint32_t>(words[i])) : -INFINITY;
    }
  }
  __syncwarp();
  return logits;
}

// One warp; leaves the messages at zero. It rehearses once before the logits are there, which
// brings the instructions near; what that writes is written over.
template <int kPerLane>
__device__ void RouteOnlyToken(const RouterParameters& p, int lane) {
  LaneLogits<kPerLane> logits = {};
#pragma unroll 1
  for (int is_there = 0; is_there < 2; ++is_there) {
    asm volatile("" : "+r"(is_there));  // one loop, not two copies
    if (is_there != 0) {
      logits = ReceiveLogits<kPerLane>(p, lane);
    }
    const int my_id = ChooseExperts(p, 0, logits, lane);
    SortFewRows<kPerLane>(p, my_id, lane, is_there);
    float z = 0.0f;
    for (int slot = 0; slot < p.num_slots; ++slot) {
      const int id = __shfl_sync(0xFFFFFFFFu, my_id, slot);
      float of_owner = 0.0f;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) of_owner = id % kPerLane == i ? logits.value[i] : of_owner;
      of_owner = __shfl_sync(0xFFFFFFFFu, of_owner, id / kPerLane);
      if (lane == slot) z = of_owner;
    }
    WeighExperts(p, 0, logits, my_id, z, lane);
  }
  for (int i = lane; i < p.num_experts; i += 32) p.messages[i] = 0;
}

// Bytes that SortRows takes.
int64_t SortBytes(int64_t num_experts) { return 4 * (kStagedIds + kSortWarps * num_experts); }

// What a warp of SortRows has: its share of the rows; the shares follow each other.
struct SortShare {
  int32_t* count;  // [E], in shared memory: its rows of each expert, then where its next one goes
  int32_t* ids;    // the first kStagedIds of all rows, in shared memory
  int begin, end;
};

// One warp: how many of its rows each expert has.
__device__ __forceinline__ void CountRows(const RouterParameters& p, const SortShare& share,
                                          int lane) {
  for (int i = lane; i < p.num_experts; i += 32) share.count[i] = 0;
  __syncwarp();
#pragma unroll 4
  for (int i = share.begin + lane; i < share.end; i += 32) {
    const int32_t id = __ldcg(p.routing.ids + i);
    if (i < kStagedIds) share.ids[i] = id;
    atomicAdd(&share.count[id], 1);
  }
}

// One warp, for all: where each expert's rows begin, where each warp's of them, and the tiles.
__device__ __forceinline__ void PlaceExperts(const RouterParameters& p, int32_t* count, int lane) {
  int row = 0;
  int tile = 0;
  for (int first = 0; first < p.num_experts; first += 32) {
    const int expert = first + lane;
    int rows = 0;
    for (int w = 0; w < kSortWarps && expert < p.num_experts; ++w) {
      rows += count[w * p.num_experts + expert];
    }
    const int tiles = (rows + kMoeTileRows - 1) / kMoeTileRows;
    int rows_up_to = rows;
    int tiles_up_to = tiles;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int r = __shfl_up_sync(0xFFFFFFFFu, rows_up_to, distance);
      const int t = __shfl_up_sync(0xFFFFFFFFu, tiles_up_to, distance);
      if (lane >= distance) {
        rows_up_to += r;
        tiles_up_to += t;
      }
    }
    const int first_row = row + rows_up_to - rows;
    const int first_tile = tile + tiles_up_to - tiles;
    if (expert < p.num_experts) p.routing.expert_begin[expert] = first_row;
    int next = first_row;
    for (int w = 0; w < kSortWarps && expert < p.num_experts; ++w) {
      const int of_warp = count[w * p.num_experts + expert];
      count[w * p.num_experts + expert] = next;
      next += of_warp;
    }
    for (int i = 0; i < tiles; ++i) {
      WriteTile(p.routing.tiles + first_tile + i, {expert, first_row + i * kMoeTileRows,
                                                   min(kMoeTileRows, rows - i * kMoeTileRows), 1});
    }
    row += __shfl_sync(0xFFFFFFFFu, rows_up_to, 31);
    tile += __shfl_sync(0xFFFFFFFFu, tiles_up_to, 31);
  }
  if (lane == 0) {
    p.routing.expert_begin[p.num_experts] = row;
    WriteNumTiles(p, tile);
  }
}

// One warp: its rows in order; those of one expert among 32 are ranked by lane.
__device__ __forceinline__ void PlaceRows(const RouterParameters& p, const SortShare& share,
                                          int lane) {
  for (int first = share.begin; first < share.end; first += 32) {
    const int slot = first + lane;
    int expert = -1;
    if (slot < share.end) {
      expert = slot < kStagedIds ? share.ids[slot] : __ldcg(p.routing.ids + slot);
    }
    const uint32_t peers = __match_any_sync(0xFFFFFFFFu, expert);
    const int rank = __popc(peers & ((1u << lane) - 1u));
    int at = 0;
    if (expert >= 0) at = share.count[expert] + rank;
    __syncwarp();
    if (expert >= 0) {
      if (rank == 0) share.count[expert] += __popc(peers);
      p.routing.slot_row[slot] = at;
      p.routing.row_token[at] = slot / p.num_slots;
    }
    __syncwarp();
  }
}

// The whole CTA: rows by (expert, token, slot) and the tiles of each expert, in `memory`.
__device__ void SortRows(const RouterParameters& p, int32_t* memory) {
  const int num_rows = p.num_tokens * p.num_slots;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int rows_each = (num_rows + 32 * kSortWarps - 1) / (32 * kSortWarps) * 32;
  const int begin = min(warp * rows_each, num_rows);
  const SortShare share = {memory + warp * p.num_experts, memory + kSortWarps * p.num_experts,
                           begin, min(begin + rows_each, num_rows)};
  CountRows(p, share, lane);
  __syncthreads();
  if (warp == 0) PlaceExperts(p, memory, lane);
  __syncthreads();
  PlaceRows(p, share, lane);
}

template <int kTokenTiles>
__global__ void __launch_bounds__(kRouterThreads)
    RouterKernel(const __grid_constant__ StreamLayout layout,
                 const __grid_constant__ RouterLinear<kTokenTiles> linear,
                 const __grid_constant__ RouterParameters p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ int32_t flag;
  const int first_token = blockIdx.y * kTokensPerTile;
  const int num_tokens = min(kTokensPerTile, p.num_tokens - first_token);
  const int num_linear = gridDim.x - 1;  // CTAs that compute logits
  if (blockIdx.x == num_linear) {
    if (blockIdx.y > 0) return;
    TakeListBack(p);
    LetNextKernelStart();
    if (p.messages != nullptr && threadIdx.x < 32) {
      WithWidthOf(p.num_experts, [&p](auto width) {
        RouteOnlyToken<width.value>(p, static_cast<int>(threadIdx.x));
      });
    }
  } else {
    LetNextKernelStart();
    RouterWork<kTokenTiles> work = {linear, p.messages};
    work.x += first_token * work.x_stride;
    work.y_float += static_cast<int64_t>(first_token) * p.num_experts;
    work.num_tokens = num_tokens;
    work.first_group = static_cast<int>(blockIdx.x) * kRouterWarps;
    work.group_count = min(kRouterWarps, linear.group_count - work.first_group);
    work.num_rounds = 1;
    RunStream<BFloat16Format, 1, kTokenTiles>(layout, work, shared);
  }
  if (p.messages != nullptr) return;
  const int arrivals = blockIdx.y == 0 ? num_linear + 1 : num_linear;
  if (!IsLastOf(p.counters + 1 + blockIdx.y, arrivals, &flag)) return;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int num_rows = p.num_tokens * p.num_slots;
  for (int i = warp; i < num_tokens; i += kRouterThreads / 32) {
    WithWidthOf(p.num_experts,
                [&](auto width) { RouteToken<width.value>(p, first_token + i, lane); });
  }
  if (gridDim.y > 1) {
    if (!IsLastOf(p.counters, gridDim.y, &flag)) return;
  } else {
    __threadfence_block();
    __syncthreads();
  }
  if (num_rows > 32) return SortRows(p, reinterpret_cast<int32_t*>(shared + layout.x_offset));
  if (warp == 0) {
    const int expert = lane < num_rows ? __ldcg(p.routing.ids + lane) : 0;
    WithWidthOf(p.num_experts, [&](auto width) { SortFewRows<width.value>(p, expert, lane, 1); });
  }
}

[[noreturn]] void ThrowShape(const char* where, const std::string& expected,
                             const std::string& found) {
  throw Error(ErrorCode::kShape, ErrorParts{.where = where, .expected = expected, .found = found});
}

template <int kTokenTiles>
void LaunchRouter(const MoeRouterArgs& args, cudaStream_t stream, LaunchOrder order) {
  const RouterConfig& config = args.config;
  RouterLinear<kTokenTiles> linear = {};
  const int64_t units = (config.num_experts + kUnitRows - 1) / kUnitRows;
  const int num_ctas = static_cast<int>((units + kRouterWarps - 1) / kRouterWarps);
  linear.weight = reinterpret_cast<const uint8_t*>(args.weight_ED);
  linear.x = args.x;
  linear.y_float = args.logits_TE;
  linear.x_stride = args.hidden;
  linear.stream_stride = 2 * args.hidden;
  linear.num_streams = linear.out_features = static_cast<int>(config.num_experts);
  linear.num_groups = kRouterWarps;
  linear.group_count = static_cast<int>(units);
  StreamLayout layout;
  layout.num_warps = kRouterWarps;
  layout.segment_inputs = layout.in_features = static_cast<int>(args.hidden);
  layout.x_rows = static_cast<int>(std::min<int64_t>(kTokensPerTile, args.num_tokens));
  CutSharedMemory({.chunk_bytes = BFloat16Format::kChunkBytes,
                   .padding = BFloat16Format::kPadding,
                   .num_streams = BFloat16Format::kStreamsPerUnit,
                   .budget = kHalfMultiprocessor - (5 << 10),
                   .num_rounds = 1},
                  &layout);
  // The ids are sorted where activations and weights lay, never where the barriers lie: memory of a
  // barrier that has not been invalidated must not be used for anything else.
  layout.shared_bytes = std::max(
      layout.shared_bytes, layout.x_offset + static_cast<uint32_t>(SortBytes(config.num_experts)));
  const RouterParameters p = {
      static_cast<int>(config.num_experts),
      static_cast<int>(config.num_experts_per_tok),
      config.norm_topk_prob ? 1 : 0,
      static_cast<int>(args.num_tokens),
      args.replayed_ids,
      args.logits_TE,
      args.routing,
      args.counters,
      args.num_tokens == 1 ? reinterpret_cast<uint64_t*>(args.counters + kMessagesAt) : nullptr};
  const auto kernel = RouterKernel<kTokenTiles>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(layout.shared_bytes)),
            "shared memory of the router");
  const auto tiles = static_cast<unsigned>((args.num_tokens + kTokensPerTile - 1) / kTokensPerTile);
  LaunchKernel({.grid = dim3(static_cast<unsigned>(num_ctas + 1), tiles),
                .block = dim3(kRouterThreads),
                .shared_bytes = layout.shared_bytes,
                .stream = stream,
                .order = order},
               kernel, layout, linear, p);
}

}  // namespace

int64_t RouterCounters(int64_t num_tokens) {
  return std::max<int64_t>(1 + (num_tokens + kTokensPerTile - 1) / kTokensPerTile,
                           kMessagesAt + 2 * kMaxRouterExperts);
}

void MoeRouter(const MoeRouterArgs& args, cudaStream_t stream, LaunchOrder order) {
  const RouterConfig& config = args.config;
  if (config.num_experts < 1 || config.num_experts > kMaxRouterExperts ||
      config.num_experts_per_tok < 1 || config.num_experts_per_tok > kMaxRouterSlots ||
      config.num_experts_per_tok > config.num_experts || args.hidden <= 0 || args.hidden % 8 != 0) {
    ThrowShape("router",
               "1 to 1024 experts, 1 to 32 a token, a hidden size that is a multiple of 8",
               fmt::format("{} experts, {} a token, hidden size {}", config.num_experts,
                           config.num_experts_per_tok, args.hidden));
  }
  if (args.num_tokens == 0) return;
  if (args.num_tokens == 1 && RouteOneToken(args, stream, order)) return;
  if (args.num_tokens <= 8) return LaunchRouter<1>(args, stream, order);
  LaunchRouter<2>(args, stream, order);
}

}  // namespace quatrain::cuda
