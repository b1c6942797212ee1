// Plans and launches of the wide linear; its story stands in linear_wide_kernel.cuh.
#include <algorithm>
#include <limits>

#include "kernels/cuda/linear_wide.h"
#include "kernels/cuda/linear_wide_kernel.cuh"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/tensor_map.h"

namespace quatrain::cuda {
namespace {

bool IsAligned(const WideParameters& p) {
  const auto is_multiple = [](const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  return p.out_features % 4 == 0 && is_multiple(p.y, 8) && is_multiple(p.bias, 8) &&
         is_multiple(p.residual, 8) && is_multiple(p.y_float, 16);
}

// Slots of weights and of x.
template <class Format, int kTokens>
void CutWideMemory(const WidePlan& plan, WideParameters* p) {
  constexpr int kChunks = kChunksAtOnce;
  constexpr int kBoxes = kBoxesAtOnce<kTokens>;
  const int units = plan.num_warpgroups * kRowsOfGroup / static_cast<int>(kUnitRows);
  p->unit_pitch = kChunks * Format::kChunkBytes;
  p->weight_bytes = units * p->unit_pitch;
  const int room = kSharedBudget - kBarrierBytes;
  const int weight_bytes = static_cast<int>(p->weight_bytes);
  const int most = plan.num_warpgroups == 1 ? 3 : 2;
  const int weight_slots = (p->num_chunks + kChunks - 1) / kChunks;
  const int x_slots = (2 * p->num_chunks + kBoxes - 1) / kBoxes;
  p->weight_slots = std::min(most, weight_slots);
  p->x_slots = std::min(std::min((room - p->weight_slots * weight_bytes) / kXSlotBytes, kMostSlots),
                        x_slots);
  QT_CHECK(p->weight_slots >= std::min(2, weight_slots) && p->x_slots >= std::min(2, x_slots),
           "no room for {} tokens", kTokens);
  p->weight_offset = kBarrierBytes + p->x_slots * kXSlotBytes;
}

template <class Format, int kTokens>
void Launch(const LinearDecodeArgs& args, const WidePlan& plan, cudaStream_t stream,
            LaunchOrder order) {
  QT_CHECK(plan.num_warpgroups >= 1 && plan.num_warpgroups <= kMostGroups, "{} warpgroups",
           plan.num_warpgroups);
  const PackedShape& shape = args.shape;
  WideParameters p = {};
  p.weight = static_cast<const uint8_t*>(args.weight);
  p.bias = args.bias;
  p.residual = args.residual;
  p.y = args.y;
  p.y_float = args.y_float;
  p.unit_bytes = UnitBytes(shape);
  p.num_units = static_cast<int>(NumUnits(shape));
  p.partner_units = args.epilogue == LinearEpilogue::kSwiGlu ? p.num_units / 2 : 0;
  p.out_features = static_cast<int>(args.NumOutputs());
  p.num_tokens = static_cast<int>(args.num_tokens);
  p.num_chunks = static_cast<int>(NumChunks(shape));
  p.is_aligned = IsAligned(p) ? 1 : 0;
  p.cluster = plan.cluster;
  const int units = plan.num_warpgroups * kRowsOfGroup / static_cast<int>(kUnitRows);
  CutWideMemory<Format, kTokens>(plan, &p);
  const int64_t k = shape.in_features;
  const int64_t x_stride = args.x_stride == 0 ? k : args.x_stride;
  const CUtensorMap x_map = BoxesOf({args.x, args.num_tokens, k, x_stride}, kTokens / plan.cluster);
  const auto kernel = WideKernel<Format, kTokens>;
  const size_t stage_bytes =
      kBarrierBytes + size_t{4} * plan.num_warpgroups * kTokens * kStagePitch;
  const size_t shared_bytes =
      std::max(stage_bytes, p.weight_offset + static_cast<size_t>(p.weight_slots) * p.weight_bytes);
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory of linear_wide");
  const int ctas = (p.num_units + units - 1) / units;
  const int rounded = (ctas + plan.cluster - 1) / plan.cluster * plan.cluster;
  const int64_t tiles = (args.num_tokens + kTokens - 1) / kTokens;
  LaunchKernel({.grid = dim3(static_cast<unsigned>(rounded), static_cast<unsigned>(tiles)),
                .block = dim3(static_cast<unsigned>(128 * plan.num_warpgroups + kCopyingThreads)),
                .shared_bytes = shared_bytes,
                .stream = stream,
                .order = order,
                .cluster = static_cast<unsigned>(plan.cluster)},
               kernel, p, x_map);
}

template <class Format>
void LaunchFormat(const LinearDecodeArgs& args, const WidePlan& plan, cudaStream_t stream,
                  LaunchOrder order) {
  switch (plan.tokens) {
    case 32:
      return Launch<Format, 32>(args, plan, stream, order);
    case 64:
      return Launch<Format, 64>(args, plan, stream, order);
    default:
      QT_CHECK(plan.tokens == kMostTokens, "{} tokens", plan.tokens);
      return Launch<Format, kMostTokens>(args, plan, stream, order);
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
    // Measured: a wave takes nine tenths of a warpgroup's time besides.
    const int64_t cost = (ctas + num_multiprocessors - 1) / num_multiprocessors * (10 * each + 9);
    if (cost <= least) {
      least = cost;
      plan.num_warpgroups = each;
    }
  }
  plan.cluster = (groups + plan.num_warpgroups - 1) / plan.num_warpgroups >= 2 ? 2 : 1;
  return plan;
}

// Whether the kernel for many rows of experts serves this matrix, as one expert, and is faster:
// tiles of 256 rows by 128 tokens that leave few multiprocessors idle. Measured on an H100: 8192 x
// 8192 at 512 tokens 88.6 us, 98.4 by the wide kernel; at 256 tokens 80 and 50.
bool IsFasterAsExpert(const LinearDecodeArgs& args, int num_multiprocessors) {
  constexpr int64_t kFewestTokens = 512;
  constexpr int64_t kTileRows = 256;
  const PackedShape& s = args.shape;
  const auto is_aligned = [](const BFloat16* p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
  };
  if (args.num_tokens < kFewestTokens || s.out_features % 16 != 0 || args.bias != nullptr ||
      args.residual != nullptr || args.y_float != nullptr || !is_aligned(args.y) ||
      (args.x_stride != 0 && args.x_stride != s.in_features)) {
    return false;
  }
  const int64_t tiles = (s.out_features + kTileRows - 1) / kTileRows *
                        ((args.num_tokens + kMostTokens - 1) / kMostTokens);
  const int64_t waves = (tiles + num_multiprocessors - 1) / num_multiprocessors;
  return 10 * tiles >= 8 * waves * num_multiprocessors;
}

void LaunchAsExpert(const LinearDecodeArgs& args, cudaStream_t stream, LaunchOrder order) {
  const MoeExpertsArgs experts{.shape = args.shape,
                               .weight = args.weight,
                               .num_experts = 1,
                               .num_tokens = args.num_tokens,
                               .num_slots = 1,
                               .x = args.x,
                               .y = args.y};
  if (args.epilogue == LinearEpilogue::kSwiGlu) return MoeGateUpOfRows(experts, stream, order);
  MoeDownOfRows(experts, stream, order);
}

}  // namespace

bool IsWide(const LinearDecodeArgs& args) {
  return args.type == WeightType::kInt4 &&
         NumSegments(args.shape.out_features, args.shape.in_features) == 1;
}

// Measured on an H100 (bench/cuda/bench_linear_decode.cu wide).
bool IsFasterWide(const LinearDecodeArgs& args) { return IsWide(args) && args.num_tokens > 16; }

WidePlan PlanLinearWide(const LinearDecodeArgs& args, int num_multiprocessors) {
  const int64_t m = args.num_tokens;
  const int64_t groups = (args.shape.out_features + kRowsOfGroup - 1) / kRowsOfGroup;
  if (IsFasterAsExpert(args, num_multiprocessors))
    return {.tokens = kMostTokens, .is_expert = true};
  int tokens = m <= 32 ? 32 : m <= 64 ? 64 : kMostTokens;
  const auto tiles = [&] { return (m + tokens - 1) / tokens; };
  // Rather more CTAs than most multiprocessors idle.
  if (tokens == kMostTokens && 2 * groups * tiles() <= num_multiprocessors) tokens = 64;
  return PlanFor(tokens, groups, tiles(), num_multiprocessors);
}

void LinearWide(const LinearDecodeArgs& args, const WidePlan& plan, cudaStream_t stream,
                LaunchOrder order) {
  QT_CHECK(IsWide(args), "no wide kernel for such a weight");
  if (args.num_tokens == 0) return;
  if (plan.is_expert) return LaunchAsExpert(args, stream, order);
  QT_CHECK(plan.cluster == 1 || plan.cluster == 2 || plan.cluster == 4, "cluster of {}",
           plan.cluster);
  switch (ScalesPerChunk(args.shape)) {
    case 1:
      return LaunchFormat<CodeFormat<4, 1>>(args, plan, stream, order);
    case 2:
      return LaunchFormat<CodeFormat<4, 2>>(args, plan, stream, order);
    default:
      return LaunchFormat<CodeFormat<4, 4>>(args, plan, stream, order);
  }
}

}  // namespace quatrain::cuda
