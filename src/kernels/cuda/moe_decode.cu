// The experts of a decode step: every expert's weights are read once for each 16 of its rows.
//
// A tile is up to 16 rows of one expert; a CTA takes a run of rounds, a round is one tile and a few
// pairs of units. Tiles, rows and their number come from the router's work list in device memory.
// gate_up: the two units of a warp are 8 rows of gate and the same 8 of up, so SwiGLU happens in
// registers.
//
// The list is waited for entry by entry, not by griddepcontrol.wait: beside a router that still
// runs, weights start when it has written the tile; in the kernels after that, at once. Waiting
// cannot lock up: this kernel starts when every CTA of the router is resident or done.
#include <algorithm>

#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/decode_layout.h"
#include "kernels/cuda/decode_stream.cuh"
#include "kernels/cuda/moe_experts.h"
#include "kernels/cuda/moe_tile.cuh"
#include "kernels/cuda/pack.h"

namespace quatrain::cuda {
namespace {

enum class Part { kGateUp, kDown };

// Tiles of one CTA that are kept in shared memory; those after them are read where they lie.
constexpr int kKeptTiles = 8;
// Behind what StreamLayout lays out: those tiles, and their number.
constexpr int kListBytes = sizeof(int4) * (kKeptTiles + 1);

struct ExpertsParameters {
  const uint8_t* weight;
  const BFloat16* x;
  BFloat16* y;
  int64_t expert_stride;   // bytes
  int64_t pair_stride;     // bytes from a warp's first unit to that of the next warp
  int64_t partner_offset;  // bytes from a warp's first unit to its second
  int x_stride;            // elements
  int y_stride;
  int num_pairs;  // of one expert
  int num_groups;
  int rounds_per_tile;
  int num_ctas;
  const MoeTile* tiles;
  const int32_t* num_tiles;
  const int32_t* row_token;
};

// The number of tiles, once it is known.
__device__ __forceinline__ int WaitForNumTiles(const int32_t* num_tiles) {
  int count = 0;
  while (count == 0) {
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(num_tiles) : "memory");
  }
  return count;
}

template <class Format, int kTokenTiles, Part kPart>
struct ExpertsWork {
  static constexpr bool kIsTiled = false;
  const ExpertsParameters& p;
  const int4* kept;  // kKeptTiles in shared memory, then their number
  int first_round;
  int num_rounds;
  int first_tile;

  // By all threads; a barrier follows. One warp waits for tiles, the others make barriers.
  __device__ ExpertsWork(const ExpertsParameters& parameters, int4* tiles)
      : p(parameters), kept(tiles) {
    const int index = static_cast<int>(threadIdx.x);
    if (index < 32) tiles[kKeptTiles].x = WaitForNumTiles(p.num_tiles);
    __syncthreads();
    const int count = tiles[kKeptTiles].x;
    const int64_t all = static_cast<int64_t>(count) * p.rounds_per_tile;
    first_round = static_cast<int>(blockIdx.x * all / gridDim.x);
    num_rounds = static_cast<int>((blockIdx.x + 1) * all / gridDim.x) - first_round;
    first_tile = first_round / p.rounds_per_tile;
    const int last_tile = (first_round + num_rounds - 1) / p.rounds_per_tile;
    if (num_rounds > 0 && index < kKeptTiles && first_tile + index <= last_tile) {
      tiles[index] = WaitForTile(p.tiles + first_tile + index);
    }
  }
  __device__ __forceinline__ int4 Tile(int round) const {
    const int index = (first_round + round) / p.rounds_per_tile - first_tile;
    if (index < kKeptTiles) return kept[index];
    return WaitForTile(p.tiles + first_tile + index);
  }
  __device__ __forceinline__ bool HasNewX(int round) const {
    return round == 0 || (first_round + round) % p.rounds_per_tile == 0;
  }
  __device__ __forceinline__ int Pair(int round, int group) const {
    return (first_round + round) % p.rounds_per_tile * p.num_groups + group;
  }
  __device__ __forceinline__ bool Has(int round, int group) const {
    return Pair(round, group) < p.num_pairs;
  }
  __device__ __forceinline__ const uint8_t* Source(int round, int group, int stream, int) const {
    return p.weight + Tile(round).x * p.expert_stride + Pair(round, group) * p.pair_stride +
           stream * p.partner_offset;
  }
  __device__ __forceinline__ int Rows(int round) const { return Tile(round).z; }
  __device__ __forceinline__ const BFloat16* Row(int round, int row) const {
    int64_t at = Tile(round).y + row;
    if constexpr (kPart == Part::kGateUp) {
      at = __ldcg(p.row_token + at);
    }
    return p.x + at * p.x_stride;
  }
  __device__ __forceinline__ void Store(int round, int group, int lane,
                                        const float (&sums)[1][kTokenTiles][4]) const {
    const int4 tile = Tile(round);
    const int pair = Pair(round, group);
#pragma unroll
    for (int t = 0; t < kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = t * 8 + lane % 4 * 2 + i;
        if (row >= tile.z) continue;
        BFloat16* y = p.y + static_cast<int64_t>(tile.y + row) * p.y_stride;
        const BFloat16 upper = ToBFloat16(sums[0][t][i] * Format::kUnscale);
        const BFloat16 lower = ToBFloat16(sums[0][t][i + 2] * Format::kUnscale);
        if constexpr (kPart == Part::kGateUp) {
          y[pair * 8 + lane / 4] = ToBFloat16(SwiGlu(ToFloat(upper), ToFloat(lower)));
        } else {
          y[pair * 16 + lane / 4] = upper;
          y[pair * 16 + lane / 4 + 8] = lower;
        }
      }
    }
  }
};

template <class Format, int kTokenTiles, Part kPart>
__global__ void __launch_bounds__(32 * (kMaxChainWarps + 2), 2)
    ExpertsKernel(const __grid_constant__ StreamLayout layout,
                  const __grid_constant__ ExpertsParameters p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto* const tiles = reinterpret_cast<int4*>(shared + layout.shared_bytes);
  LetNextKernelStart();
  const ExpertsWork<Format, kTokenTiles, kPart> work(p, tiles);
  RunStream<Format, 2, kTokenTiles>(layout, work, shared);
}

template <class Format, int kTokenTiles, Part kPart>
void LaunchTokens(const MoeExpertsArgs& args, const ExpertsParameters& p, cudaStream_t stream,
                  LaunchOrder order) {
  StreamLayout layout;
  layout.num_warps = p.num_groups;
  layout.segment_inputs = layout.in_features = static_cast<int>(args.shape.in_features);
  layout.x_rows = static_cast<int>(std::min<int64_t>(kMoeTileRows, args.num_tokens));
  CutSharedMemory({.chunk_bytes = Format::kChunkBytes,
                   .padding = Format::kPadding,
                   .num_streams = 2,
                   .budget = kHalfMultiprocessor - kListBytes},
                  &layout);
  const auto kernel = ExpertsKernel<Format, kTokenTiles, kPart>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(layout.shared_bytes + kListBytes)),
            "shared memory of the experts");
  LaunchKernel({.grid = dim3(static_cast<unsigned>(p.num_ctas)),
                .block = dim3(32 * (layout.num_warps + 2)),
                .shared_bytes = layout.shared_bytes + kListBytes,
                .stream = stream,
                .order = order},
               kernel, layout, p);
}

template <Part kPart, int kScales>
void LaunchScales(const MoeExpertsArgs& args, const ExpertsParameters& p, cudaStream_t stream,
                  LaunchOrder order) {
  using Format = CodeFormat<4, kScales>;
  if (args.num_tokens <= 8) return LaunchTokens<Format, 1, kPart>(args, p, stream, order);
  LaunchTokens<Format, 2, kPart>(args, p, stream, order);
}

// The plan that leaves the least idle when every expert has one tile, or each row its own; of equal
// ones that with most warps. Measured on an H100: where one CTA a multiprocessor takes all work in
// one round, one; else two, which hide each other's waits.
MoePlan PlanExperts(const MoeExpertsArgs& args, int num_pairs) {
  const int64_t tiles = std::min(args.num_tokens * args.num_slots, args.num_experts);
  const int64_t multiprocessors = NumMultiprocessors();
  MoePlan plan;
  plan.ctas_per_multiprocessor = tiles * num_pairs <= kMaxChainWarps * multiprocessors ? 1 : 2;
  const int64_t ctas = plan.ctas_per_multiprocessor * multiprocessors;
  int64_t least = INT64_MAX;
  for (int groups = kMaxChainWarps; groups >= 4; --groups) {
    const int64_t rounds = tiles * ((num_pairs + groups - 1) / groups);
    const int64_t longest = (rounds + ctas - 1) / ctas * groups;
    if (longest < least) {
      least = longest;
      plan.num_groups = groups;
    }
  }
  return plan;
}

template <Part kPart>
void LaunchExperts(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order) {
  const PackedShape& s = args.shape;
  const int64_t unit_bytes = UnitBytes(s);
  const bool is_gate_up = kPart == Part::kGateUp;
  ExpertsParameters p = {};
  p.num_pairs = static_cast<int>(s.out_features / 16);
  p.weight = static_cast<const uint8_t*>(args.weight);
  p.x = args.x;
  p.y = args.y;
  p.expert_stride = PackedBytes(s);
  p.pair_stride = is_gate_up ? unit_bytes : 2 * unit_bytes;
  p.partner_offset = is_gate_up ? p.num_pairs * unit_bytes : unit_bytes;
  p.x_stride = static_cast<int>(s.in_features);
  p.y_stride = static_cast<int>(is_gate_up ? s.out_features / 2 : s.out_features);
  const MoePlan plan = args.plan.num_groups > 0 ? args.plan : PlanExperts(args, p.num_pairs);
  QT_CHECK(plan.num_groups <= kMaxChainWarps && plan.ctas_per_multiprocessor > 0,
           "{} groups, {} CTAs a multiprocessor", plan.num_groups, plan.ctas_per_multiprocessor);
  p.num_groups = plan.num_groups;
  p.num_ctas = plan.ctas_per_multiprocessor * NumMultiprocessors();
  p.rounds_per_tile = (p.num_pairs + p.num_groups - 1) / p.num_groups;
  p.tiles = args.routing.tiles;
  p.num_tiles = args.routing.num_tiles;
  p.row_token = args.routing.row_token;
  switch (ScalesPerChunk(s)) {
    case 1:
      return LaunchScales<kPart, 1>(args, p, stream, order);
    case 2:
      return LaunchScales<kPart, 2>(args, p, stream, order);
    default:
      return LaunchScales<kPart, 4>(args, p, stream, order);
  }
}

// Whether the kernels for a single token may be asked.
bool IsOneToken(const MoeExpertsArgs& args) {
  return args.num_tokens == 1 && args.plan.num_groups == 0;
}

}  // namespace

void CheckExpertShape(const PackedShape& shape, const char* where) {
  CheckPackedShape(shape);
  if (shape.num_bits == 4 && shape.out_features % 16 == 0) return;
  throw Error(ErrorCode::kShape, ErrorParts{.where = where,
                                            .expected = "INT4 codes, N a multiple of 16",
                                            .found = fmt::format("{} bits, N {}", shape.num_bits,
                                                                 shape.out_features)});
}

void MoeGateUp(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckExpertShape(args.shape, "gate_up of the experts");
  if (args.num_tokens == 0) return;
  if (IsOneToken(args) && GateUpOfOneToken(args, stream, order)) return;
  LaunchExperts<Part::kGateUp>(args, stream, order);
}

void MoeDown(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckExpertShape(args.shape, "down of the experts");
  if (args.num_tokens == 0) return;
  if (IsOneToken(args) && DownOfOneToken(args, {}, stream, order)) return;
  LaunchExperts<Part::kDown>(args, stream, order);
}

void MoeDownAndCombine(const MoeExpertsArgs& args, const MoeCombineArgs& combine,
                       cudaStream_t stream, LaunchOrder order) {
  CheckExpertShape(args.shape, "down of the experts");
  QT_CHECK(combine.y == args.y && combine.num_tokens == args.num_tokens &&
               combine.num_slots == args.num_slots && combine.hidden == args.shape.out_features,
           "the combine is that of down's y");
  if (args.num_tokens == 0) return;
  if (IsOneToken(args) && DownOfOneToken(args, combine, stream, order)) return;
  LaunchExperts<Part::kDown>(args, stream, order);
  MoeCombine(combine, stream, order);
}

}  // namespace quatrain::cuda
