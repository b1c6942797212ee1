// Plans and launches of the linear over BF16 weights; its story stands in linear_plain_kernel.cuh.
#include <algorithm>
#include <limits>

#include "kernels/cuda/linear_plain.h"
#include "kernels/cuda/linear_plain_kernel.cuh"
#include "kernels/cuda/tensor_map.h"

namespace quatrain::cuda {
namespace {

StorePart PartOf(const PlainParameters& p) {
  const auto is_multiple = [](const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  return p.y != nullptr && p.out_features % 8 == 0 && is_multiple(p.y, 16) &&
                 is_multiple(p.bias, 4) && is_multiple(p.residual, 4)
             ? StorePart::kBox
             : StorePart::kOne;
}

// Tokens of a CTA's tile: those that there are, dealt evenly; warps' boxes of outputs lie apart.
int TileTokens(int64_t num_tokens, const PlainPlan& plan) {
  const int64_t most = plan.num_warpgroups * kTokensOfGroup;
  const int64_t tiles = std::max<int64_t>((num_tokens + most - 1) / most, plan.sharing);
  const int64_t unit = tiles > 1 ? kTokensOfWarp : 8;
  return static_cast<int>(((num_tokens + tiles - 1) / tiles + unit - 1) / unit * unit);
}

// Slots of x and of weights, and a corner for each warp's outputs; what the products of absent
// tokens read lies in them, too.
template <int kRows, int kBoxes>
size_t CutPlainMemory(const PlainPlan& plan, PlainParameters* p) {
  constexpr int kWeightBytes = kBoxes * kRows * kBoxRowBytes;
  const int x_bytes = kBoxes * p->box_rows * kBoxRowBytes;
  const int warps = (p->box_rows + kTokensOfWarp - 1) / kTokensOfWarp;
  const int staging = warps * kTokensOfWarp * kRows * 2;
  const int room = kSharedBudget - kBarrierBytes - staging;
  p->x_slots = std::min(room / (x_bytes + kWeightBytes), kMostSlots);
  p->weight_slots = std::min((room - p->x_slots * x_bytes) / kWeightBytes, kMostSlots);
  QT_CHECK(p->x_slots >= 2 && p->weight_slots >= 2, "no room for {} rows", kRows);
  p->weights_at = kBarrierBytes + p->x_slots * x_bytes;
  p->staging_at = p->weights_at + p->weight_slots * kWeightBytes;
  const int tokens_end = static_cast<int>(p->weights_at) +
                         (plan.num_warpgroups * kTokensOfGroup - p->box_rows) * kBoxRowBytes;
  return std::max(tokens_end, static_cast<int>(p->staging_at) + staging);
}

template <int kRows, int kBoxes, int kCtas>
void Launch(const LinearDecodeArgs& args, const PlainPlan& plan, cudaStream_t stream,
            LaunchOrder order) {
  const int64_t n = args.shape.out_features;
  const int64_t k = args.shape.in_features;
  PlainParameters p = {};
  p.bias = args.bias;
  p.residual = args.residual;
  p.y = args.y;
  p.y_float = args.y_float;
  p.out_features = static_cast<int>(n);
  p.num_tokens = static_cast<int>(args.num_tokens);
  p.part = PartOf(p);
  p.is_in_row = k % kBoxColumns == 0 && kBoxes > 1 ? 1 : 0;
  p.num_boxes = static_cast<int>((k + kBoxColumns - 1) / kBoxColumns);
  p.box_rows = TileTokens(args.num_tokens, plan);
  const int begin_of_last = (p.num_tokens - 1) / p.box_rows * p.box_rows;
  p.last_rows = (p.num_tokens - begin_of_last + 7) / 8 * 8;
  p.token_tiles = (p.num_tokens + kCtas * p.box_rows - 1) / (kCtas * p.box_rows);
  p.num_tiles = static_cast<int>((n + kRows - 1) / kRows) * p.token_tiles;
  const size_t shared_bytes = CutPlainMemory<kRows, kBoxes>(plan, &p);
  const int most = std::max((plan.ctas > 0 ? plan.ctas : NumMultiprocessors()) / kCtas, 1);
  const DeviceMatrix x = {args.x, args.num_tokens, k, args.x_stride == 0 ? k : args.x_stride};
  const int in_copy = p.is_in_row ? kBoxes : 1;
  const CUtensorMap x_boxes = BoxesInRow(x, p.box_rows, in_copy);
  const PlainMaps maps = {
      .weight = BoxesInRow({static_cast<const BFloat16*>(args.weight), n, k, k}, kRows, in_copy),
      .x = x_boxes,
      .last_x = p.last_rows == p.box_rows ? x_boxes : BoxesInRow(x, p.last_rows, in_copy),
      .y = p.part == StorePart::kBox
               ? StoredBoxesOf({args.y, args.num_tokens, n, n}, kTokensOfWarp, kStoreColumns<kRows>)
               : CUtensorMap{}};
  const auto kernel = PlainKernel<kRows, kBoxes, kCtas>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory of linear_plain");
  LaunchKernel({.grid = dim3(static_cast<unsigned>(kCtas * std::min(p.num_tiles, most))),
                .block = dim3(static_cast<unsigned>(128 * plan.num_warpgroups + kCopyingThreads)),
                .shared_bytes = shared_bytes,
                .stream = stream,
                .order = order,
                .cluster = kCtas},
               kernel, p, maps);
}

// Boxes of a copy: long ones, of which some find room; longer where a CTA has all tokens, and many
// rows.
int BoxesFor(const LinearDecodeArgs& args, const PlainPlan& plan) {
  const int tokens = TileTokens(args.num_tokens, plan);
  const bool is_alone = tokens >= args.num_tokens && plan.rows > kTokensOfGroup;
  const int most_bytes = (is_alone ? 56 : 40) << 10;
  const int box_bytes = (plan.rows + tokens) * kBoxRowBytes;
  for (const int boxes : {4, 2}) {
    if (boxes * box_bytes <= most_bytes) return boxes;
  }
  return 1;
}

template <int kRows>
void LaunchRows(const LinearDecodeArgs& args, const PlainPlan& plan, cudaStream_t stream,
                LaunchOrder order) {
  constexpr int kMostBoxes = kRows <= 64 ? 4 : 2;
  const int boxes = plan.boxes > 0 ? plan.boxes : BoxesFor(args, plan);
  if (plan.sharing > 1) {
    QT_CHECK(plan.sharing == 2 && kRows >= kFewestRowsShared, "{} CTAs share {} rows", plan.sharing,
             kRows);
    if constexpr (kRows >= kFewestRowsShared) {
      if (boxes >= 2) return Launch<kRows, 2, 2>(args, plan, stream, order);
      return Launch<kRows, 1, 2>(args, plan, stream, order);
    }
  }
  if (boxes >= kMostBoxes) return Launch<kRows, kMostBoxes, 1>(args, plan, stream, order);
  if (boxes == 2) return Launch<kRows, 2, 1>(args, plan, stream, order);
  Launch<kRows, 1, 1>(args, plan, stream, order);
}

// What a plan takes, in its own unit: waves of tiles times what a tile reads. Measured on an H100
// (bench/cuda/bench_linear_decode.cu plain).
int64_t CostOf(const LinearDecodeArgs& args, const PlainPlan& plan, int num_multiprocessors) {
  const int64_t tokens = TileTokens(args.num_tokens, plan);
  const int64_t token_tiles = (args.num_tokens + tokens - 1) / tokens;
  // Weights that several CTAs read on their own count 1.6 times.
  const int64_t weight_cost = token_tiles > plan.sharing ? 8 * plan.rows : 5 * plan.rows;
  const int64_t tiles = (args.shape.out_features + plan.rows - 1) / plan.rows *
                        ((token_tiles + plan.sharing - 1) / plan.sharing);
  const int64_t at_once = std::max(num_multiprocessors / plan.sharing, 1);
  const int64_t waves = (tiles + at_once - 1) / at_once;
  return waves * (weight_cost + 5 * tokens);
}

}  // namespace

PlainPlan PlanLinearPlain(const LinearDecodeArgs& args, int num_multiprocessors) {
  const int64_t m = args.num_tokens;
  PlainPlan best;
  int64_t least = std::numeric_limits<int64_t>::max();
  const auto consider = [&](const PlainPlan& plan) {
    const int64_t cost = CostOf(args, plan, num_multiprocessors);
    if (cost >= least) return;
    least = cost;
    best = plan;
  };
  for (int groups = 1; groups <= (m > kTokensOfGroup ? kMostWarpgroups : 1); ++groups) {
    const int64_t tokens = groups * kTokensOfGroup;
    for (const int rows : kPlainRows) {
      if (rows > kTokensOfGroup && m < kTokensOfGroup) continue;
      consider({.rows = rows, .num_warpgroups = groups});
      // Two CTAs that have all tokens.
      if (rows >= kFewestRowsShared && m > tokens && m <= 2 * tokens) {
        consider({.rows = rows, .num_warpgroups = groups, .sharing = 2});
      }
    }
  }
  return best;
}

bool IsPlain(const LinearDecodeArgs& args) {
  return args.type == WeightType::kBFloat16 &&
         NumSegments(args.shape.out_features, args.shape.in_features) == 1;
}

// Measured on an H100 (bench/cuda/bench_linear_decode.cu plain).
bool IsFasterPlain(const LinearDecodeArgs& args, int num_multiprocessors) {
  return IsPlain(args) &&
         (args.num_tokens > 8 || args.shape.out_features > int64_t{16} * num_multiprocessors);
}

void LinearPlain(const LinearDecodeArgs& args, const PlainPlan& plan, cudaStream_t stream,
                 LaunchOrder order) {
  QT_CHECK(IsPlain(args), "BF16 weights in one chain");
  if (args.num_tokens == 0) return;
  switch (plan.rows) {
    case 16:
      return LaunchRows<16>(args, plan, stream, order);
    case 24:
      return LaunchRows<24>(args, plan, stream, order);
    case 32:
      return LaunchRows<32>(args, plan, stream, order);
    case 40:
      return LaunchRows<40>(args, plan, stream, order);
    case 48:
      return LaunchRows<48>(args, plan, stream, order);
    case 64:
      return LaunchRows<64>(args, plan, stream, order);
    case 80:
      return LaunchRows<80>(args, plan, stream, order);
    case 96:
      return LaunchRows<96>(args, plan, stream, order);
    default:
      QT_CHECK(plan.rows == 128, "{} rows", plan.rows);
      return LaunchRows<128>(args, plan, stream, order);
  }
}

}  // namespace quatrain::cuda
