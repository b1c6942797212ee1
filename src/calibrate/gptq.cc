#include "calibrate/gptq.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "calibrate/panel_product.h"
#include "kernels/cpu/simd_targets.h"
#include "kernels/int4_quantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/gptq.cc"
#include "hwy/foreach_target.h"
// clang-format off: once per instruction set, after foreach_target
#include "calibrate/simd-inl.h"
// clang-format on

#ifndef QUATRAIN_CALIBRATE_GPTQ_TYPES_
#define QUATRAIN_CALIBRATE_GPTQ_TYPES_
namespace quatrain {

// One block of columns of kPanelColumns rows of the weight: a lane is a row, so that every row's
// arithmetic has one order on every instruction set. Arrays [column, row of the panel] start at the
// block's first column.
struct BlockOfPanel {
  int64_t first = 0, size = 0;  // columns, in the order of quantisation
  const HessianFactor* factor = nullptr;
  const int32_t* group_I = nullptr;  // scale row of every column, in the order of quantisation
  const float* scale = nullptr;      // [G, kPanelColumns]
  const float* carried = nullptr;  // [size, kPanelColumns] feedback of the columns before the block
  float* weight = nullptr;         // [size, kPanelColumns] in: w; out: w - w'
  int8_t* codes = nullptr;         // [size, kPanelColumns]
  CodeGrid grid;
  float dampened_loss[kPanelColumns] = {};  // sum over columns of (t - w')^2 R_jj^2
  float added_loss[kPanelColumns] = {};     // what the additions to the diagonal contribute to it
};

}  // namespace quatrain
#endif

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using calibrate::CodeOf, calibrate::Floats, calibrate::Fma, calibrate::RoundToBFloat16,
    calibrate::Tag;

// Column j of the block for one vector of rows, given its feedback.
HWY_INLINE void QuantizeLanes(Tag d, BlockOfPanel& block, int64_t j, int64_t r, Floats feedback) {
  const hn::Rebind<int32_t, Tag> di32;
  const hn::Rebind<int8_t, Tag> di8;
  const int64_t at = j * kPanelColumns + r;
  const size_t column = static_cast<size_t>(block.first + j);
  const auto s = hn::LoadU(d, block.scale + block.group_I[column] * kPanelColumns + r);
  const auto w = hn::LoadU(d, block.weight + at);
  const auto target = hn::Add(w, hn::Add(hn::LoadU(d, block.carried + at), feedback));
  const auto lo = hn::Set(d, static_cast<float>(block.grid.lo));
  const auto hi = hn::Set(d, static_cast<float>(block.grid.hi));
  const auto q = CodeOf(target, s, lo, hi);
  const auto dequantized = RoundToBFloat16(hn::Mul(q, s));
  hn::StoreU(hn::DemoteTo(di8, hn::ConvertTo(di32, q)), di8, block.codes + at);

  const auto error = hn::Sub(w, dequantized);
  const auto residual = hn::Sub(target, dequantized);
  hn::StoreU(error, d, block.weight + at);
  const auto pivot = hn::Set(d, block.factor->pivot_I[column]);
  const auto added = hn::Set(d, block.factor->added_I[column]);
  const auto dampened_loss = hn::LoadU(d, block.dampened_loss + r);
  const auto added_loss = hn::LoadU(d, block.added_loss + r);
  hn::StoreU(Fma(hn::Mul(pivot, residual), residual, dampened_loss), d, block.dampened_loss + r);
  hn::StoreU(Fma(hn::Mul(added, error), error, added_loss), d, block.added_loss + r);
}

// All rows of the panel at once: as many chains as it has vectors, which hides their latency.
void QuantizeBlock(BlockOfPanel& block) {
  const Tag d;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Tag()));
  constexpr int64_t kVectors = std::min<int64_t>(kPanelColumns / kLanes, 8);
  constexpr int64_t kStep = kVectors * kLanes;
  const int64_t n = block.factor->in_features;
  for (int64_t j = 0; j < block.size; ++j) {
    const float* feedback_row =
        block.factor->feedback_II.data() + (block.first + j) * n + block.first;
    for (int64_t r = 0; r < kPanelColumns; r += kStep) {
      Floats feedback[kVectors];
      QUATRAIN_UNROLL
      for (int64_t v = 0; v < kVectors; ++v) feedback[v] = hn::Zero(d);
      for (int64_t i = 0; i < j; ++i) {
        const auto factor = hn::Set(d, feedback_row[i]);
        const float* errors = block.weight + i * kPanelColumns + r;
        QUATRAIN_UNROLL
        for (int64_t v = 0; v < kVectors; ++v) {
          feedback[v] = Fma(factor, hn::LoadU(d, errors + v * kLanes), feedback[v]);
        }
      }
      QUATRAIN_UNROLL
      for (int64_t v = 0; v < kVectors; ++v) {
        QuantizeLanes(d, block, j, r + v * kLanes, feedback[v]);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(QuantizeBlock);

namespace {

CodeGrid GridUnder(ScaleRule rule, const GptqOptions& options) {
  return options.grid.value_or(GridOf(rule, options.num_bits));
}

// Quantises kPanelColumns rows of the weight, from the first column to the last.
class PanelQuantizer {
 public:
  PanelQuantizer(const WeightMatrix& weight, const HessianFactor& factor,
                 const GptqOptions& options)
      : weight_(weight), factor_(factor), options_(options) {
    const size_t entries = static_cast<size_t>(weight.in_features * kPanelColumns);
    weight_panel_.resize(entries);
    codes_panel_.resize(entries);
    carried_.resize(static_cast<size_t>(options.block_size * kPanelColumns));
    for (const int32_t column : factor.order_I) {
      group_I_.push_back(static_cast<int32_t>(column / options.group_size));
    }
  }

  // Fills the rows' codes and losses; the scales are there already.
  void Run(int64_t first_row, GptqResult& result, std::vector<double>& dampened_loss_O) {
    const int64_t rows = std::min(kPanelColumns, weight_.out_features - first_row);
    LoadRows(first_row, rows, result.scale_OG);
    double* dampened_loss = dampened_loss_O.data() + first_row;
    double* loss = result.row_loss_O.data() + first_row;
    for (int64_t first = 0; first < weight_.in_features; first += options_.block_size) {
      BlockOfPanel block = PrepareBlock(first);
      HWY_DYNAMIC_DISPATCH(QuantizeBlock)(block);
      for (int64_t r = 0; r < rows; ++r) {
        dampened_loss[r] += static_cast<double>(block.dampened_loss[r]);
        loss[r] +=
            static_cast<double>(block.dampened_loss[r]) - static_cast<double>(block.added_loss[r]);
      }
    }
    for (int64_t r = 0; r < rows; ++r)
      loss[r] = std::max(loss[r], 0.0);  // rounding of the subtraction
    StoreRows(first_row, rows, result.codes_OI);
  }

 private:
  // Columns in the order of quantisation; rows past the matrix are zero with scale 1.
  void LoadRows(int64_t first_row, int64_t rows, const std::vector<BFloat16>& scale_OG) {
    const int64_t n = weight_.in_features;
    const int64_t num_groups = n / options_.group_size;
    std::fill(weight_panel_.begin(), weight_panel_.end(), 0.0f);
    scale_panel_.assign(static_cast<size_t>(num_groups * kPanelColumns), 1.0f);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < n; ++j) {
        const size_t column = static_cast<size_t>(factor_.order_I[static_cast<size_t>(j)]);
        if (options_.dead_columns == DeadColumns::kZero && factor_.is_dead_I[column] != 0) continue;
        weight_panel_[static_cast<size_t>(j * kPanelColumns + r)] =
            weight_.At(first_row + r, static_cast<int64_t>(column));
      }
      for (int64_t group = 0; group < num_groups; ++group) {
        scale_panel_[static_cast<size_t>(group * kPanelColumns + r)] =
            ToFloat(scale_OG[static_cast<size_t>((first_row + r) * num_groups + group)]);
      }
    }
  }

  // The feedback of all columns before the block, whose errors weight_panel_ holds by now.
  BlockOfPanel PrepareBlock(int64_t first) {
    const int64_t n = weight_.in_features;
    const int64_t size = std::min(options_.block_size, n - first);
    std::fill(carried_.begin(), carried_.end(), 0.0f);
    AddPanelProduct({.rows = size,
                     .depth = first,
                     .a = factor_.feedback_II.data() + first * n,
                     .a_row_stride = n,
                     .b = weight_panel_.data(),
                     .c = carried_.data(),
                     .c_row_stride = kPanelColumns});
    return {.first = first,
            .size = size,
            .factor = &factor_,
            .group_I = group_I_.data(),
            .scale = scale_panel_.data(),
            .carried = carried_.data(),
            .weight = weight_panel_.data() + first * kPanelColumns,
            .codes = codes_panel_.data() + first * kPanelColumns,
            .grid = GridUnder(options_.scale_rule, options_)};
  }

  void StoreRows(int64_t first_row, int64_t rows, std::vector<int8_t>& codes_OI) const {
    const int64_t n = weight_.in_features;
    for (int64_t r = 0; r < rows; ++r) {
      int8_t* to = codes_OI.data() + (first_row + r) * n;
      for (int64_t j = 0; j < n; ++j) {
        to[factor_.order_I[static_cast<size_t>(j)]] =
            codes_panel_[static_cast<size_t>(j * kPanelColumns + r)];
      }
    }
  }

  const WeightMatrix& weight_;
  const HessianFactor& factor_;
  const GptqOptions& options_;
  std::vector<int32_t> group_I_;  // group of every column, in the order of quantisation
  std::vector<float> scale_panel_, weight_panel_, carried_;
  std::vector<int8_t> codes_panel_;
};

void CheckWeight(ThreadPool& pool, const WeightMatrix& weight, const Hessian& hessian,
                 const GptqOptions& options, std::string_view module) {
  QT_CHECK(weight.in_features == hessian.in_features && options.block_size > 0);
  QT_CHECK(options.num_bits == 4 || options.num_bits == 8);
  if (options.group_size <= 0 || weight.in_features % options.group_size != 0) {
    throw Error(ErrorCode::kShape, {.where = std::string(module),
                                    .what = "the group size does not divide its input features",
                                    .expected = fmt::format("a divisor of {}", weight.in_features),
                                    .found = fmt::format("{}", options.group_size)});
  }
  pool.ParallelFor(NumPanels(weight.out_features), [&](int64_t panel, int) {
    const int64_t first = panel * kPanelColumns;
    const auto bad =
        FindBadWeight(weight.data + first * weight.in_features,
                      std::min(kPanelColumns, weight.out_features - first), weight.in_features);
    if (!bad) return;
    throw Error(ErrorCode::kData,
                {.where = std::string(module),
                 .what = fmt::format("the weight at row {}, column {} has no code",
                                     first + bad->row, bad->column),
                 .expected = "a finite value below the largest BF16",
                 .found = fmt::format("{}", bad->value)});
  });
}

// w - w' of a row.
void ErrorOfRow(const WeightMatrix& weight, const GptqResult& result, int64_t group_size,
                int64_t row, float* error_I) {
  const int64_t n = weight.in_features;
  for (int64_t i = 0; i < n; ++i) {
    const size_t at = static_cast<size_t>(row * n + i);
    const size_t scale_at = static_cast<size_t>(row * (n / group_size) + i / group_size);
    error_I[i] =
        weight.At(row, i) - ToFloat(DequantizeCode(result.codes_OI[at], result.scale_OG[scale_at]));
  }
}

void RoundToNearest(ThreadPool& pool, const WeightMatrix& weight, const Hessian& hessian,
                    const GptqOptions& options, GptqResult& result) {
  const ScaleRule rule =
      options.scale_rule == ScaleRule::kSearched ? ScaleRule::kAbsmax7 : options.scale_rule;
  const QuantizeSpec spec{rule, GridUnder(rule, options), options.group_size};
  std::vector<int32_t> packed_OP(
      static_cast<size_t>(weight.out_features * PackedWords(weight.in_features, options.num_bits)));
  QuantizeMatrix(pool, weight.data, weight.out_features, weight.in_features, spec, packed_OP.data(),
                 result.scale_OG.data());
  UnpackCodes(packed_OP.data(), weight.out_features, weight.in_features, options.num_bits,
              result.codes_OI.data());
  result.row_loss_O =
      OutputError(pool, hessian, weight.out_features, [&](int64_t row, float* error_I) {
        ErrorOfRow(weight, result, options.group_size, row, error_I);
      });
  result.loss = std::accumulate(result.row_loss_O.begin(), result.row_loss_O.end(), 0.0);
  result.solver_loss = result.loss / 2;
}

}  // namespace

GptqOptions ReferenceGptqOptions(int num_bits, int64_t group_size) {
  return {.num_bits = num_bits,
          .group_size = group_size,
          .scale_rule = ScaleRule::kAbsmax7_5,
          .dead_columns = DeadColumns::kZero,
          .fallback = Fallback::kRoundToNearest};
}

GptqResult QuantizeWeight(ThreadPool& pool, const WeightMatrix& weight, const Hessian& hessian,
                          const HessianFactor& factor, const GptqOptions& options,
                          std::string_view module) {
  CheckWeight(pool, weight, hessian, options, module);
  const int64_t num_groups = weight.in_features / options.group_size;
  GptqResult result;
  result.codes_OI.resize(static_cast<size_t>(weight.out_features * weight.in_features));
  result.row_loss_O.resize(static_cast<size_t>(weight.out_features));
  if (!factor.is_usable()) {
    result.scale_OG.resize(static_cast<size_t>(weight.out_features * num_groups));
    result.is_round_to_nearest = true;
    result.fallback_reason = factor.failure;
    RoundToNearest(pool, weight, hessian, options, result);
    return result;
  }
  const QuantizeSpec spec{options.scale_rule, GridUnder(options.scale_rule, options),
                          options.group_size};
  result.scale_OG = ChooseScales(pool, weight, spec, factor.importance_I);
  std::vector<double> dampened_loss_O(result.row_loss_O.size());
  pool.ParallelFor(NumPanels(weight.out_features), [&](int64_t panel, int) {
    PanelQuantizer(weight, factor, options).Run(panel * kPanelColumns, result, dampened_loss_O);
  });
  result.loss = std::accumulate(result.row_loss_O.begin(), result.row_loss_O.end(), 0.0);
  result.solver_loss = std::accumulate(dampened_loss_O.begin(), dampened_loss_O.end(), 0.0) / 2;
  return result;
}

}  // namespace quatrain
#endif  // HWY_ONCE
