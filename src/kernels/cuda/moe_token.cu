// The experts of a single token: all a CTA needs is on its way at once.
//
// gate_up: the pairs of units (8 rows of gate, the same 8 of up) of all slots follow each other; a
// CTA takes a few, a pair a warp. down: a CTA takes 16 outputs of all slots, a slot a warp, so that
// it can combine them. Weights are asked for as soon as their tile is there: in gate_up by a warp
// beside the chain warps, so that few read the list while it is written, and the first parts of all
// come before the next; in down by each for itself.
//
// x of gate_up does not wait for the router, which lets this kernel start when it has itself seen
// the kernel before it end; that one, or one before it, wrote x. gate_up lets down start at once:
// what a multiprocessor asks of memory is served in order, so that once gate_up's weights are on
// their way a CTA that starts waits 2 us and more for its tile. down's x waits for gate_up.
#include <algorithm>

#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/decode_stream.cuh"
#include "kernels/cuda/moe_experts.h"
#include "kernels/cuda/moe_tile.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kUnits = 2;           // of a warp
constexpr int kCombineBarrier = 1;  // 0 is that of __syncthreads

// CTAs go where most of their kind still fit. So two of gate_up's, each of a few warps, come to a
// multiprocessor, and one of down's beside them: of that much shared memory no second one fits even
// where only one of gate_up's is, but one beside one of the next call.
constexpr int kGateUpCtas = 2;
constexpr uint32_t kDownBytes = 88 << 10;

struct TokenParameters {
  const uint8_t* weight;
  const BFloat16* x;
  BFloat16* y;
  int64_t expert_stride;  // bytes
  int64_t unit_bytes;
  int num_pairs;  // of one expert
  int num_slots;
  int y_stride;  // elements
  const MoeTile* tiles;
  MoeCombineArgs combine;  // of down; out null: none
};

// One half of a word in both places. Multiplications read it so, which costs no move.
__device__ __forceinline__ uint32_t RepeatHalf(uint32_t word, bool is_high) {
  uint32_t pair;
  if (is_high) {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {high, high};\n}\n"
        : "=r"(pair)
        : "r"(word));
  } else {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {low, low};\n}\n"
        : "=r"(pair)
        : "r"(word));
  }
  return pair;
}

// INT4 codes, with an instruction less a group than for the other kernels: .2 us of a layer on an
// H100, where the wide linear took 5 % longer so.
template <int kScales>
struct TokenFormat : CodeFormat<4, kScales> {
  using Chunk = typename CodeFormat<4, kScales>::Chunk;
  static __device__ __forceinline__ void Weights(const Chunk& chunk, int pair,
                                                 GroupFactors* factors, uint32_t* b) {
    if (pair * kScales % 4 == 0) {
      const int group = pair * kScales / 4;
      *factors = FactorsOf<4>(RepeatHalf(chunk.scales[group / 2], group % 2 == 1));
    }
    const uint4& c = chunk.codes[0];
    WeightsOfInt4Word(pair == 0 ? c.x : pair == 1 ? c.y : pair == 2 ? c.z : c.w, *factors, b);
  }
};

// What the chain warps of both kernels tell the engine.
struct OneRound {
  static constexpr bool kIsTiled = false;
  static constexpr int num_rounds = 1;
  __device__ __forceinline__ bool Has(int, int) const { return true; }
  __device__ __forceinline__ bool HasNewX(int) const { return true; }
};

template <class Format>
struct GateUpOfToken : OneRound {
  const TokenParameters& p;
  const int* const kept_row;  // of [S], in shared memory
  const int pair;             // of its expert

  __device__ GateUpOfToken(const TokenParameters& parameters, const int* row, int pair_)
      : p(parameters), kept_row(row), pair(pair_) {}
  __device__ __forceinline__ void Store(int, int, int lane, const float (&sums)[1][1][4]) const {
    // Nobody reads the old y any more.
    WaitForPreviousKernel();
    if (lane % 4 != 0) return;
    const BFloat16 gate = ToBFloat16(sums[0][0][0] * Format::kUnscale);
    const BFloat16 up = ToBFloat16(sums[0][0][2] * Format::kUnscale);
    const BFloat16 h = ToBFloat16(SwiGlu(ToFloat(gate), ToFloat(up)));
    p.y[static_cast<int64_t>(*kept_row) * p.y_stride + pair * 8 + lane / 4] = h;
  }
};

template <class Format>
struct DownOfToken : OneRound {
  const TokenParameters& p;
  float (*const combined)[16];  // in shared memory: [row][output of this CTA]
  int row;                      // of [S]

  __device__ DownOfToken(const TokenParameters& parameters, float (*rows)[16], int row_)
      : p(parameters), combined(rows), row(row_) {}
  __device__ __forceinline__ void Store(int, int, int lane, const float (&sums)[1][1][4]) const {
    if (lane % 4 != 0) return;
    const BFloat16 first = ToBFloat16(sums[0][0][0] * Format::kUnscale);
    const BFloat16 second = ToBFloat16(sums[0][0][2] * Format::kUnscale);
    BFloat16* const y = p.y + static_cast<int64_t>(row) * p.y_stride + blockIdx.x * 16;
    y[lane / 4] = first;
    y[lane / 4 + 8] = second;
    combined[row][lane / 4] = ToFloat(first);
    combined[row][lane / 4 + 8] = ToFloat(second);
  }
};

// One warp: all barriers. gate_up's x comes in one copy, which the first barrier awaits. Nobody
// waits for weights to be given back: weight_empty, which counts `arrivals`, is where a warp of
// down awaits its row of x.
__device__ __forceinline__ void InitBarriers(const StreamLayout& layout, uint32_t base,
                                             int arrivals, int lane) {
  const StreamBarriers x(base, layout, 0);
  for (int i = lane; i < layout.num_stages; i += 32) {
    BarrierInit(x.x_full + 8 * i, 1);
    BarrierInit(x.x_empty + 8 * i, ArrivalsOf(layout.num_warps));
  }
  for (int i = lane; i < layout.num_warps * layout.num_stages; i += 32) {
    const StreamBarriers barriers(base, layout, i / layout.num_stages);
    BarrierInit(barriers.weight_full + 8 * (i % layout.num_stages), 1);
    BarrierInit(barriers.weight_empty + 8 * (i % layout.num_stages), arrivals);
  }
  FenceForCopies();
}

// Where a chain warp's units lie: each in one piece.
template <class Format>
__device__ __forceinline__ uint32_t WeightsOf(const StreamLayout& layout, uint32_t base, int warp) {
  return base + layout.weight_offset + warp * kUnits * layout.stream_pitch;
}

// Lane 2 w has the source of chain warp w's first unit, lane 2 w + 1 of its second; others have
// null. A chain warp that asks for its own counts its lanes from 2 w on.
template <class Format>
__device__ __forceinline__ void CopyWeights(const StreamLayout& layout, uint32_t base, int lane,
                                            const uint8_t* source) {
  const int warp = lane / kUnits;
  const StreamBarriers barriers(base, layout, warp);
  const uint64_t policy = EvictFirstPolicy();
  const int stage_bytes = layout.stage_chunks * Format::kChunkBytes;
  int left = Format::StreamBytes(layout.in_features);
  uint32_t to = WeightsOf<Format>(layout, base, warp) + lane % kUnits * layout.stream_pitch;
  for (int stage = 0; stage < layout.num_stages; ++stage) {
    const int bytes = min(stage_bytes, left);
    const uint32_t full = barriers.weight_full + 8 * stage;
    if (source != nullptr && lane % kUnits == 0) BarrierExpect(full, kUnits * bytes);
    __syncwarp();
    if (source != nullptr) CopyBulkOnce(to, source + stage * stage_bytes, bytes, full, policy);
    left -= bytes;
    to += bytes;
  }
}

// One thread: x of gate_up.
__device__ __forceinline__ void CopyX(const StreamLayout& layout, uint32_t base,
                                      const BFloat16* x) {
  const StreamBarriers barriers(base, layout, 0);
  const uint32_t bytes = 2 * layout.in_features;
  for (int stage = 1; stage < layout.num_stages; ++stage)
    BarrierArrive(barriers.x_full + 8 * stage);
  BarrierExpect(barriers.x_full, bytes);
  CopyBulk(base + layout.x_offset, x, bytes, barriers.x_full);
}

template <class Format>
__global__ void __launch_bounds__(32 * (kMaxChainWarps + 1), 1)
    GateUpOfTokenKernel(const __grid_constant__ StreamLayout layout,
                        const __grid_constant__ TokenParameters p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ int rows[kMaxChainWarps];
  const uint32_t base = SharedAddress(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int all = p.num_slots * p.num_pairs;
  const int first = static_cast<int>(blockIdx.x) * layout.num_warps;
  if (warp == layout.num_warps) InitBarriers(layout, base, ArrivalsOf(1), lane);
  __syncthreads();
  if (warp == layout.num_warps) {
    if (lane == 0) CopyX(layout, base, p.x);
    LetNextKernelStart();
    const int index = first + lane / kUnits;
    const uint8_t* source = nullptr;
    if (lane < kUnits * layout.num_warps && index < all) {
      const int slot = index / p.num_pairs;
      const int64_t unit = index - slot * p.num_pairs + lane % kUnits * p.num_pairs;
      source = p.weight + unit * p.unit_bytes;
      const int4 tile = WaitForTile(p.tiles + slot);
      source += tile.x * p.expert_stride;
      // The chain warp sees it when it sees its weights.
      if (lane % kUnits == 0) rows[lane / kUnits] = tile.y;
    }
    __syncwarp();
    CopyWeights<Format>(layout, base, lane, source);
    return;
  }
  if (first + warp >= all) return;
  using Work = GateUpOfToken<Format>;
  const Work work(p, rows + warp, (first + warp) % p.num_pairs);
  ChainWarp<Format, kUnits, 1, Work> chain(layout, work, base, warp, lane);
  chain.weights_at = WeightsOf<Format>(layout, base, warp) + 16 * lane;
  chain.slot_bytes = layout.stage_chunks * Format::kChunkBytes;
  chain.Run();
}

// All chunks of a warp of down, which lie there; one more is read, and not used.
template <class Chain>
__device__ __forceinline__ void WalkChunks(int chunks, Chain* chain) {
  typename Chain::Codes codes[2];
  typename Chain::Operands operands[2];
  chain->now_w = chain->weights_at;
  chain->now_x = 0;
  chain->LoadCodes(0, &codes[0]);
  chain->MakeOperands(codes[0], 0, &operands[0]);
#pragma unroll 1
  for (; chunks > 0; chunks -= 2) {
    chain->WalkChunk(codes[0], &codes[1], operands);
    if (chunks == 1) return;
    chain->WalkChunk(codes[1], &codes[0], operands);
  }
}

// One warp, a lane an output: the chain over slots ascending.
__device__ __forceinline__ void CombineRows(const TokenParameters& p, const float (*rows)[16],
                                            int row_of_slot, float weight_of_slot, float residual,
                                            int lane) {
  float y[kMaxChainWarps], weight[kMaxChainWarps];
#pragma unroll
  for (int slot = 0; slot < kMaxChainWarps; ++slot) {
    y[slot] = rows[__shfl_sync(0xFFFFFFFFu, row_of_slot, slot)][lane % 16];
    weight[slot] = __shfl_sync(0xFFFFFFFFu, weight_of_slot, slot);
  }
  float sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kMaxChainWarps; ++slot) {
    if (slot < p.num_slots) sum = CombineStep(weight[slot], y[slot], sum);
  }
  BFloat16 out = ToBFloat16(sum);
  if (p.combine.residual != nullptr) out = ToBFloat16(ResidualSum(residual, ToFloat(out)));
  if (lane < 16) p.combine.out[blockIdx.x * 16 + lane] = out;
}

template <class Format>
__global__ void __launch_bounds__(32 * kMaxChainWarps, 1)
    DownOfTokenKernel(const __grid_constant__ StreamLayout layout,
                      const __grid_constant__ TokenParameters p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ float rows[kMaxChainWarps][16];
  const uint32_t base = SharedAddress(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp == 0) InitBarriers(layout, base, 1, lane);
  __syncthreads();
  // Every slot has its own tile, of one row. Few instructions: while memory is busy, fetching them
  // takes longer than what they do.
  const uint8_t* source = nullptr;
  if (lane < kUnits) {
    source = p.weight + (int64_t{blockIdx.x} * kUnits + lane) * p.unit_bytes +
             WaitForTile(p.tiles + warp).x * p.expert_stride;
  }
  CopyWeights<Format>(layout, base, warp * kUnits + lane, source);
  LetNextKernelStart();
  using Work = DownOfToken<Format>;
  const Work work(p, rows, warp);
  ChainWarp<Format, kUnits, 1, Work> chain(layout, work, base, warp, lane);
  const int x_bytes = 2 * layout.in_features;
  const int x_offset = warp * (x_bytes + kChunkXBytes);  // and a chunk that is read ahead
  const uint32_t x_full = chain.barriers.weight_empty;
  chain.weights_at = WeightsOf<Format>(layout, base, warp) + 16 * lane;
  chain.x_address[0] += x_offset;
  WaitForPreviousKernel();
  if (lane == 0) {
    BarrierExpect(x_full, x_bytes);
    CopyBulk(base + layout.x_offset + x_offset,
             p.x + static_cast<int64_t>(warp) * layout.in_features, x_bytes, x_full);
  }
  const bool combines = p.combine.out != nullptr && warp == 0;
  int row_of_slot = 0;
  float weight_of_slot = 0.0f;
  float residual = 0.0f;
  if (combines && lane < p.num_slots) {
    row_of_slot = __ldcg(p.combine.routing.slot_row + lane);
    weight_of_slot = __ldcg(p.combine.routing.weights + lane);
  }
  if (combines && p.combine.residual != nullptr && lane < 16) {
    residual = ToFloat(p.combine.residual[blockIdx.x * 16 + lane]);
  }
#pragma unroll
  for (float& sum : chain.sums[0][0]) sum = 0.0f;
  BarrierWait(chain.barriers.weight_full, 0);
  BarrierWait(x_full, 0);
  WalkChunks(layout.in_features / static_cast<int>(kChunkInputs), &chain);
  work.Store(0, 0, lane, chain.sums);
  if (p.combine.out == nullptr) return;
  SyncSome(kCombineBarrier, 32 * p.num_slots);
  if (combines) CombineRows(p, rows, row_of_slot, weight_of_slot, residual, lane);
}

// Weights and x of one round, all of them at once, behind each unit and row room for the chunks
// that are read ahead. A unit of gate_up comes in four copies: on an H100 two, three, four, six and
// eight took gate_up 6.4, 6.5, 6.9, 7.5 and 8.0 us and the layer, which waits for the chain over
// the last one, 14.7, 14.4, 14.3, 15.2 and 14.8.
struct Round {
  int chunk_bytes = 0;
  int num_stages = 1;
  int x_rows = 1;
  int chunks_ahead = 0;
};
// 0 where they do not fit, else the bytes.
uint32_t HoldRound(const Round& round, StreamLayout* layout) {
  // Static shared memory is padded to the alignment of what follows it.
  constexpr uint32_t kMost = (227 << 10) - 1024;
  const auto align = [](uint32_t at) { return (at + 127) / 128 * 128; };
  StreamLayout& l = *layout;
  const int chunks = static_cast<int>((l.in_features + kChunkInputs - 1) / kChunkInputs);
  l.stage_chunks = (chunks + round.num_stages - 1) / round.num_stages;
  l.num_stages = l.weight_slots = l.x_slots = (chunks + l.stage_chunks - 1) / l.stage_chunks;
  l.x_is_resident = 1;
  l.stream_pitch = (l.num_stages * l.stage_chunks + round.chunks_ahead) * round.chunk_bytes;
  l.x_rows = 1;  // for the engine: a warp sees one, in slots that follow each other
  l.x_pitch = l.stage_chunks * kChunkXBytes;
  l.x_offset = align(16 * (l.x_slots + l.num_warps * l.weight_slots));
  l.weight_offset =
      align(l.x_offset + round.x_rows * (2 * l.in_features + round.chunks_ahead * kChunkXBytes));
  l.shared_bytes = l.weight_offset + l.num_warps * kUnits * l.stream_pitch;
  return l.shared_bytes <= kMost ? l.shared_bytes : 0;
}

struct TokenLaunch {
  StreamLayout layout;
  TokenParameters parameters;
  unsigned num_ctas = 0;
  unsigned num_threads = 0;
  cudaStream_t stream = nullptr;
  LaunchOrder order = LaunchOrder::kAfterPrevious;
};

void Start(const TokenLaunch& launch, uint32_t shared_bytes,
           void (*kernel)(StreamLayout, TokenParameters)) {
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory of a token's experts");
  // Or else the next kernel's CTAs find no room beside these.
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared),
            "shared memory of a token's experts");
  LaunchKernel({.grid = dim3(launch.num_ctas),
                .block = dim3(launch.num_threads),
                .shared_bytes = shared_bytes,
                .stream = launch.stream,
                .order = launch.order},
               kernel, launch.layout, launch.parameters);
}

TokenLaunch LaunchOf(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order) {
  const PackedShape& s = args.shape;
  TokenLaunch launch;
  launch.layout.segment_inputs = launch.layout.in_features = static_cast<int>(s.in_features);
  launch.parameters = {.weight = static_cast<const uint8_t*>(args.weight),
                       .x = args.x,
                       .y = args.y,
                       .expert_stride = PackedBytes(s),
                       .unit_bytes = UnitBytes(s),
                       .num_pairs = static_cast<int>(s.out_features / 16),
                       .num_slots = static_cast<int>(args.num_slots),
                       .y_stride = 0,
                       .tiles = args.routing.tiles,
                       .combine = {}};
  launch.stream = stream;
  launch.order = order;
  return launch;
}

template <int kScales>
bool StartGateUp(TokenLaunch* launch) {
  using Format = TokenFormat<kScales>;
  const uint32_t bytes =
      HoldRound({.chunk_bytes = Format::kChunkBytes, .num_stages = 4}, &launch->layout);
  if (bytes == 0) return false;
  Start(*launch, bytes, GateUpOfTokenKernel<Format>);
  return true;
}

template <int kScales>
bool StartDown(TokenLaunch* launch) {
  using Format = TokenFormat<kScales>;
  const uint32_t bytes = HoldRound({.chunk_bytes = Format::kChunkBytes,
                                    .x_rows = launch->parameters.num_slots,
                                    .chunks_ahead = 1},
                                   &launch->layout);
  if (bytes == 0) return false;
  Start(*launch, std::max(bytes, kDownBytes), DownOfTokenKernel<Format>);
  return true;
}

}  // namespace

bool GateUpOfOneToken(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order) {
  TokenLaunch launch = LaunchOf(args, stream, order);
  TokenParameters& p = launch.parameters;
  p.y_stride = static_cast<int>(args.shape.out_features / 2);
  const int64_t all = args.num_slots * p.num_pairs;
  const int64_t most_ctas = kGateUpCtas * NumMultiprocessors();
  const int64_t warps = (all + most_ctas - 1) / most_ctas;
  if (warps > kMaxChainWarps || args.shape.in_features % kChunkInputs != 0) return false;
  launch.num_ctas = static_cast<unsigned>((all + warps - 1) / warps);
  launch.num_threads = static_cast<unsigned>(32 * (warps + 1));
  launch.layout.num_warps = static_cast<int>(warps);
  switch (ScalesPerChunk(args.shape)) {
    case 1:
      return StartGateUp<1>(&launch);
    case 2:
      return StartGateUp<2>(&launch);
    default:
      return StartGateUp<4>(&launch);
  }
}

bool DownOfOneToken(const MoeExpertsArgs& args, const MoeCombineArgs& combine, cudaStream_t stream,
                    LaunchOrder order) {
  if (args.num_slots > kMaxChainWarps || args.shape.in_features % kChunkInputs != 0) return false;
  TokenLaunch launch = LaunchOf(args, stream, order);
  TokenParameters& p = launch.parameters;
  p.y_stride = static_cast<int>(args.shape.out_features);
  p.combine = combine;
  launch.num_ctas = static_cast<unsigned>(p.num_pairs);
  launch.num_threads = static_cast<unsigned>(32 * p.num_slots);
  launch.layout.num_warps = p.num_slots;
  switch (ScalesPerChunk(args.shape)) {
    case 1:
      return StartDown<1>(&launch);
    case 2:
      return StartDown<2>(&launch);
    default:
      return StartDown<4>(&launch);
  }
}

}  // namespace quatrain::cuda
