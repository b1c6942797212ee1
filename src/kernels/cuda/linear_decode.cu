// Checks, the canonical segment rule and the plan of a decode launch; the kernels are instantiated
// in linear_decode_int4.cu, linear_decode_int8.cu and linear_decode_bf16.cu.
#include <algorithm>
#include <string>

#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_decode_kernel.cuh"
#include "kernels/cuda/linear_plain.h"
#include "kernels/cuda/linear_wide.h"

namespace quatrain::cuda {
namespace {

constexpr int64_t kMaxTokensPerLaunch = 64;

[[noreturn]] void ThrowShape(const std::string& expected, const std::string& found) {
  throw Error(ErrorCode::kShape,
              ErrorParts{.where = "linear_decode", .expected = expected, .found = found});
}

void CheckArgs(const LinearDecodeArgs& args) {
  const PackedShape& s = args.shape;
  if (s.out_features <= 0 || s.in_features <= 0 || s.in_features % 8 != 0) {
    ThrowShape("positive N and K, K a multiple of 8",
               fmt::format("N {}, K {}", s.out_features, s.in_features));
  }
  if (args.x_stride != 0 && (args.x_stride < s.in_features || args.x_stride % 8 != 0)) {
    ThrowShape("a row stride of at least K, a multiple of 8", fmt::format("{}", args.x_stride));
  }
  if (args.type == WeightType::kFloat32) ThrowShape("BF16, INT4 or INT8 weights", "FP32");
  if (args.type != WeightType::kBFloat16) {
    const int bits = args.type == WeightType::kInt4 ? 4 : 8;
    const int64_t g = s.group_size;
    if (s.num_bits != bits ||
        !(g == 32 || g == 64 || (g > 0 && g % 128 == 0) || g == s.in_features)) {
      ThrowShape(fmt::format("{} bits, group size 32, 64, a multiple of 128, or K", bits),
                 fmt::format("{} bits, group size {}", s.num_bits, g));
    }
  }
  if (args.epilogue == LinearEpilogue::kSwiGlu) {
    if (args.type == WeightType::kBFloat16 || s.out_features % 16 != 0) {
      ThrowShape("for SwiGLU codes, N a multiple of 16", fmt::format("N {}", s.out_features));
    }
    QT_CHECK(args.bias == nullptr && args.residual == nullptr && args.y != nullptr,
             "SwiGLU gives y alone");
  }
  QT_CHECK((args.y == nullptr) != (args.y_float == nullptr), "one of y and y_float");
  QT_CHECK(args.residual == nullptr || args.y != nullptr, "a residual needs y");
}

}  // namespace

int NumSegments(int64_t out_features, int64_t in_features) {
  if (in_features <= 8192 || out_features >= 6144) return 1;
  return out_features > 3072 ? 2 : 4;
}

int64_t SegmentInputs(int64_t out_features, int64_t in_features) {
  const int64_t segments = NumSegments(out_features, in_features);
  const int64_t unit = segments * 128;
  return (in_features + unit - 1) / unit * 128;
}

DecodePlan PlanLinearDecode(const LinearDecodeArgs& args, int num_multiprocessors) {
  const int64_t units = NumUnits(args.shape);
  const int segments = NumSegments(args.shape.out_features, args.shape.in_features);
  const int max_groups = kMaxChainWarps / segments;
  DecodePlan plan;
  const bool is_plain = args.type == WeightType::kBFloat16;
  const bool is_pair = args.epilogue == LinearEpilogue::kSwiGlu;
  plan.row_units = !is_pair && (is_plain || units * segments <= 2 * num_multiprocessors) ? 1 : 2;
  const int64_t all = (units + plan.row_units - 1) / plan.row_units;
  // Measured on an H100 (bench/cuda/bench_linear_decode.cu sweep). Up to 6 warps' work on a
  // multiprocessor: one CTA of half its memory, beside it the next kernel's, whose weights arrive
  // while this one works. More: two CTAs, which hide each other's waits.
  const int64_t enough_for_one = is_plain ? 4 : 6;
  const bool is_large = all * segments > enough_for_one * num_multiprocessors;
  const bool is_whole = args.num_tokens > 16;
  plan.shared_budget = is_whole ? kWholeMultiprocessor : kHalfMultiprocessor;
  const bool is_double = is_large && !is_whole;
  plan.num_ctas =
      static_cast<int>(std::min<int64_t>(all, num_multiprocessors * (is_double ? 2 : 1)));
  const int64_t most = (all + plan.num_ctas - 1) / plan.num_ctas;
  const int64_t rounds = (most + max_groups - 1) / max_groups;
  plan.num_groups = static_cast<int>((most + rounds - 1) / rounds);
  // Seven or eight warps' rings are short where two CTAs share the memory: two rounds of fewer.
  if (!is_plain && is_double && rounds == 1 && most > 6) plan.num_groups = 4;
  // Few warps keep up with BF16 weights, and leave longer copies.
  if (is_plain && rounds > 1) plan.num_groups = std::min(max_groups, 4);
  return plan;
}

void LinearDecode(const LinearDecodeArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckArgs(args);
  const int num_multiprocessors = NumMultiprocessors();
  if (IsFasterPlain(args, num_multiprocessors)) {
    return LinearPlain(args, PlanLinearPlain(args, num_multiprocessors), stream, order);
  }
  if (IsFasterWide(args)) {
    return LinearWide(args, PlanLinearWide(args, num_multiprocessors), stream, order);
  }
  LinearDecode(args, PlanLinearDecode(args, num_multiprocessors), stream, order);
}

void LinearDecode(const LinearDecodeArgs& args, const DecodePlan& plan, cudaStream_t stream,
                  LaunchOrder order) {
  CheckArgs(args);
  const int64_t n = args.shape.out_features;
  const int64_t k = args.shape.in_features;
  QT_CHECK(args.epilogue == LinearEpilogue::kSums || plan.row_units == 2, "gate and up in a warp");
  // Every segment needs its own part of x in shared memory.
  const int64_t most = kMaxTokensPerLaunch / NumSegments(n, k);
  for (int64_t begin = 0; begin < args.num_tokens; begin += most) {
    DenseLaunch launch{.args = args,
                       .plan = plan,
                       .num_segments = NumSegments(n, k),
                       .segment_inputs = SegmentInputs(n, k),
                       .stream = stream,
                       .order = order};
    launch.args.x += begin * (args.x_stride == 0 ? k : args.x_stride);
    launch.args.num_tokens = std::min(most, args.num_tokens - begin);
    if (args.residual != nullptr) launch.args.residual += begin * n;
    if (args.y != nullptr) launch.args.y += begin * args.NumOutputs();
    if (args.y_float != nullptr) launch.args.y_float += begin * n;
    switch (args.type) {
      case WeightType::kInt4:
        LaunchInt4Decode(launch);
        break;
      case WeightType::kInt8:
        LaunchInt8Decode(launch);
        break;
      default:
        LaunchBFloat16Decode(launch);
    }
  }
}

}  // namespace quatrain::cuda
