#include "quant/quantized_weight.h"

#include <cmath>

#include "base/error.h"

namespace quatrain {
namespace {

QuantizedWeight EmptyLike(const NamedMatrix& matrix, const QuantScheme& scheme) {
  QuantizedWeight result;
  result.num_bits = scheme.num_bits;
  result.out_features = matrix.out_features;
  result.in_features = matrix.in_features;
  result.group_size = scheme.GroupSizeFor(matrix.in_features);
  const int64_t words = PackedWords(matrix.in_features, scheme.num_bits);
  result.packed.resize(static_cast<size_t>(matrix.out_features * words));
  result.scale.resize(static_cast<size_t>(matrix.out_features * result.num_groups()));
  return result;
}

[[noreturn]] void RefuseWeight(const std::string& tensor, const BadWeight& bad) {
  throw Error(ErrorCode::kData,
              {.where = fmt::format("{}, row {}, column {}", tensor, bad.row, bad.column),
               .what = "this weight has no code",
               .expected = "a finite value whose dequantised value is finite too",
               .found = fmt::format("{}", bad.value),
               .todo = "The checkpoint is damaged or its training diverged; take another one"});
}

bool LowestCodeOverflows(BFloat16 scale, const CodeGrid& grid) {
  return !std::isfinite(ToFloat(DequantizeCode(grid.lo, scale)));
}

// Zero point of row `row` in group `group`: codes packed along the rows, one column of words a
// group.
int ZeroPointAt(const ForeignWeight& weight, int64_t row, int64_t group) {
  if (weight.zero_point.empty()) return 0;
  const int64_t per_word = 32 / weight.num_bits;
  const int64_t num_groups = weight.in_features / weight.group_size;
  const auto at = static_cast<size_t>(row / per_word * num_groups + group);
  return UnpackCode(&weight.zero_point[at], row % per_word, weight.num_bits);
}

void CheckCount(const std::string& tensor, size_t found, int64_t expected) {
  if (static_cast<int64_t>(found) == expected) return;
  throw Error(ErrorCode::kShape, {.where = tensor,
                                  .what = "wrong number of elements",
                                  .expected = fmt::format("{}", expected),
                                  .found = fmt::format("{}", found)});
}

void CheckForeign(const ForeignWeight& weight) {
  const int64_t words = PackedWords(weight.in_features, weight.num_bits);
  CheckDivides(weight.module, weight.in_features, weight.group_size);
  const int64_t num_groups = weight.in_features / weight.group_size;
  CheckCount(weight.module + ".weight_packed", weight.packed.size(), weight.out_features * words);
  CheckCount(weight.module + ".weight_scale", weight.scale.size(),
             weight.out_features * num_groups);
  if (!weight.zero_point.empty()) {
    CheckCount(weight.module + ".weight_zero_point", weight.zero_point.size(),
               PackedWords(weight.out_features, weight.num_bits) * num_groups);
  }
  if (weight.group_index.empty()) return;
  CheckCount(weight.module + ".weight_g_idx", weight.group_index.size(), weight.in_features);
  for (size_t i = 0; i < weight.group_index.size(); ++i) {
    const int32_t group = weight.group_index[i];
    if (group >= 0 && group < num_groups) continue;
    throw Error(ErrorCode::kData, {.where = weight.module + ".weight_g_idx",
                                   .what = fmt::format("column {} is in no group", i),
                                   .expected = fmt::format("a group below {}", num_groups),
                                   .found = fmt::format("{}", group)});
  }
}

}  // namespace

WeightView QuantizedWeight::View() const {
  return {.type = num_bits == 4 ? WeightType::kInt4 : WeightType::kInt8,
          .out_features = out_features,
          .in_features = in_features,
          .group_size = group_size,
          .data = packed.data(),
          .scale = scale.data()};
}

void CheckQuantizable(const NamedMatrix& matrix, const QuantScheme& scheme) {
  QT_CHECK(
      static_cast<int64_t>(matrix.weight_OI.size()) == matrix.out_features * matrix.in_features,
      "{}: {} weights for [{}, {}]", matrix.tensor, matrix.weight_OI.size(), matrix.out_features,
      matrix.in_features);
  CheckDivides(matrix.tensor, matrix.in_features, scheme.group_size);
  const std::optional<BadWeight> bad =
      FindBadWeight(matrix.weight_OI.data(), matrix.out_features, matrix.in_features);
  if (bad.has_value()) RefuseWeight(matrix.tensor, *bad);
  if (scheme.scale_rule != ScaleRule::kAbsmax7_5) return;
  // Code -8 reaches 8/7.5 of the extremum: past the range of BF16 for the very largest weights.
  for (size_t i = 0; i < matrix.weight_OI.size(); ++i) {
    const float weight = ToFloat(matrix.weight_OI[i]);
    if (std::fabs(weight) < 1e38f) continue;
    const BFloat16 scale = ScaleFromAbsmax(std::fabs(weight), scheme.scale_rule, scheme.grid());
    const auto at = static_cast<int64_t>(i);
    if (LowestCodeOverflows(scale, scheme.grid())) {
      RefuseWeight(matrix.tensor, {at / matrix.in_features, at % matrix.in_features, weight});
    }
  }
}

QuantizedWeight Quantize(ThreadPool& pool, const NamedMatrix& matrix, const QuantScheme& scheme) {
  QT_CHECK(scheme.scale_rule == ScaleRule::kAbsmax7 || scheme.scale_rule == ScaleRule::kAbsmax7_5,
           "{}: rule {} needs scales", matrix.tensor, ScaleRuleName(scheme.scale_rule));
  CheckQuantizable(matrix, scheme);
  QuantizedWeight result = EmptyLike(matrix, scheme);
  QuantizeMatrix(pool, matrix.weight_OI.data(), matrix.out_features, matrix.in_features,
                 scheme.SpecFor(matrix.in_features), result.packed.data(), result.scale.data());
  return result;
}

QuantizedWeight QuantizeWithScales(ThreadPool& pool, const NamedMatrix& matrix,
                                   const QuantScheme& scheme, std::span<const BFloat16> scale_OG) {
  CheckQuantizable(matrix, scheme);
  QuantizedWeight result = EmptyLike(matrix, scheme);
  CheckCount(matrix.tensor + " scales", scale_OG.size(), static_cast<int64_t>(result.scale.size()));
  CheckScales(matrix.tensor, scale_OG, result.num_groups(), scheme.grid());
  result.scale.assign(scale_OG.begin(), scale_OG.end());
  QuantizeSpec spec = scheme.SpecFor(matrix.in_features);
  spec.rule = ScaleRule::kFrozen;
  QuantizeMatrix(pool, matrix.weight_OI.data(), matrix.out_features, matrix.in_features, spec,
                 result.packed.data(), result.scale.data());
  return result;
}

std::vector<BFloat16> Dequantize(ThreadPool& pool, const QuantizedWeight& weight) {
  std::vector<BFloat16> weight_OI(static_cast<size_t>(weight.out_features * weight.in_features));
  const PackedMatrix matrix = {.packed_OP = weight.packed.data(),
                               .scale_OG = weight.scale.data(),
                               .out_features = weight.out_features,
                               .in_features = weight.in_features,
                               .num_bits = weight.num_bits,
                               .group_size = weight.group_size};
  DequantizeMatrix(pool, matrix, weight_OI.data());
  return weight_OI;
}

QuantizedWeight PackWeight(std::span<const int8_t> codes_OI, std::span<const BFloat16> scale_OG,
                           int64_t out_features, int64_t in_features, int num_bits) {
  const auto num_scales = static_cast<int64_t>(scale_OG.size());
  QT_CHECK(static_cast<int64_t>(codes_OI.size()) == out_features * in_features);
  QT_CHECK(num_scales > 0 && num_scales % out_features == 0 &&
           in_features % (num_scales / out_features) == 0);
  QuantizedWeight result;
  result.num_bits = num_bits;
  result.out_features = out_features;
  result.in_features = in_features;
  result.group_size = in_features / (num_scales / out_features);
  result.packed.resize(static_cast<size_t>(out_features * PackedWords(in_features, num_bits)));
  result.scale.assign(scale_OG.begin(), scale_OG.end());
  PackCodes(codes_OI.data(), out_features, in_features, num_bits, result.packed.data());
  return result;
}

std::vector<int8_t> UnpackWeight(const QuantizedWeight& weight) {
  std::vector<int8_t> codes_OI(static_cast<size_t>(weight.out_features * weight.in_features));
  UnpackCodes(weight.packed.data(), weight.out_features, weight.in_features, weight.num_bits,
              codes_OI.data());
  return codes_OI;
}

int64_t FileBytes(int64_t out_features, int64_t in_features, int num_bits, int64_t group_size) {
  constexpr int64_t kShapeBytes = 2 * sizeof(int64_t);
  const int64_t words = PackedWords(in_features, num_bits);
  const int64_t scales = in_features / group_size;
  return out_features * (words * 4 + scales * 2) + kShapeBytes;
}

void CheckScales(const std::string& tensor, std::span<const BFloat16> scale_OG, int64_t num_groups,
                 const CodeGrid& grid) {
  for (size_t i = 0; i < scale_OG.size(); ++i) {
    const float scale = ToFloat(scale_OG[i]);
    if (scale > 0.0f && std::isnormal(scale) && !LowestCodeOverflows(scale_OG[i], grid)) continue;
    throw Error(
        ErrorCode::kData,
        {.where = fmt::format("{}, row {}, group {}", tensor, static_cast<int64_t>(i) / num_groups,
                              static_cast<int64_t>(i) % num_groups),
         .what = "this scale cannot be used",
         .expected = "a positive, normal BF16 number whose largest value is finite",
         .found = fmt::format("{}", scale),
         .todo = "The file is damaged or was written by a calibration that failed; convert "
                 "the model again"});
  }
}

std::vector<BFloat16> DequantizeForeign(const ForeignWeight& weight) {
  CheckForeign(weight);
  const int64_t words = PackedWords(weight.in_features, weight.num_bits);
  const int64_t num_groups = weight.in_features / weight.group_size;
  std::vector<BFloat16> weight_OI;
  weight_OI.reserve(static_cast<size_t>(weight.out_features * weight.in_features));
  for (int64_t row = 0; row < weight.out_features; ++row) {
    const int32_t* packed_P = weight.packed.data() + row * words;
    for (int64_t i = 0; i < weight.in_features; ++i) {
      const int64_t group = weight.group_index.empty() ? i / weight.group_size
                                                       : weight.group_index[static_cast<size_t>(i)];
      const int code = UnpackCode(packed_P, i, weight.num_bits) - ZeroPointAt(weight, row, group);
      const auto at = static_cast<size_t>(row * num_groups + group);
      weight_OI.push_back(DequantizeCode(code, weight.scale[at]));
    }
  }
  return weight_OI;
}

}  // namespace quatrain
