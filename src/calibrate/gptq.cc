#include "calibrate/gptq.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "calibrate/panel_product.h"
#include "kernels/int4_quantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/gptq.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef QUATRAIN_CALIBRATE_GPTQ_TYPES_
#define QUATRAIN_CALIBRATE_GPTQ_TYPES_
namespace quatrain {

// One block of columns of kPanelColumns rows of the weight: a lane is a row, so that every row's arithmetic has one
// order on every instruction set. Arrays [column, row of the panel] start at the block's first column.
struct BlockOfPanel {
  int64_t first = 0, size = 0;       // columns, in the order of quantisation
  const HessianFactor* factor = nullptr;
  const int32_t* group_I = nullptr;  // scale row of every column, in the order of quantisation
  const float* scale = nullptr;      // [G, kPanelColumns]
  const float* carried = nullptr;    // [size, kPanelColumns] feedback of the columns before the block
  float* weight = nullptr;           // [size, kPanelColumns] in: w; out: w - w'
  int8_t* codes = nullptr;           // [size, kPanelColumns]
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

using Tag = hn::CappedTag<float, 16>;

// w' = rn_bf16(q * s) as FP32; the product of a finite code and scale is never NaN.
HWY_INLINE hn::Vec<Tag> DequantizeLanes(Tag d, hn::Vec<Tag> q, hn::Vec<Tag> s) {
  const hn::Rebind<uint32_t, Tag> du;
  const auto bits = hn::BitCast(du, hn::Mul(q, s));
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = bits + (odd + hn::Set(du, 0x7FFFu));
  return hn::BitCast(d, hn::And(rounded, hn::Set(du, 0xFFFF0000u)));
}

// Column j of the block for one vector of rows, given its feedback.
HWY_INLINE void QuantizeLanes(Tag d, BlockOfPanel& block, int64_t j, int64_t r,
                              hn::Vec<Tag> feedback) {
  const hn::Rebind<int32_t, Tag> di32;
  const hn::Rebind<int8_t, Tag> di8;
  const int64_t at = j * kPanelColumns + r;
  const size_t column = static_cast<size_t>(block.first + j);
  const auto s = hn::LoadU(d, block.scale + block.group_I[column] * kPanelColumns + r);
  const auto w = hn::LoadU(d, block.weight + at);
  const auto target = hn::Add(w, hn::Add(hn::LoadU(d, block.carried + at), feedback));
  const auto lo = hn::Set(d, static_cast<float>(block.grid.lo));
  const auto hi = hn::Set(d, static_cast<float>(block.grid.hi));
  const auto q = hn::Min(hn::Max(hn::Round(hn::Div(target, s)), lo), hi);
  const auto dequantized = DequantizeLanes(d, q, s);
  hn::StoreU(hn::DemoteTo(di8, hn::ConvertTo(di32, q)), di8, block.codes + at);

  const auto error = hn::Sub(w, dequantized);
  const auto residual = hn::Sub(target, dequantized);
  hn::StoreU(error, d, block.weight + at);
  const auto pivot = hn::Set(d, block.factor->pivot_I[column]);
  const auto added = hn::Set(d, block.factor->added_I[column]);
  const auto dampened_loss = hn::LoadU(d, block.dampened_loss + r);
  const auto added_loss = hn::LoadU(d, block.added_loss + r);
  hn::StoreU(hn::MulAdd(hn::Mul(pivot, residual), residual, dampened_loss), d,
             block.dampened_loss + r);
  hn::StoreU(hn::MulAdd(hn::Mul(added, error), error, added_loss), d, block.added_loss + r);
}

void QuantizeBlock(BlockOfPanel& block) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t n = block.factor->in_features;
  for (int64_t r = 0; r < kPanelColumns; r += 2 * lanes) {
    for (int64_t j = 0; j < block.size; ++j) {
      const float* feedback_row =
          block.factor->feedback_II.data() + (block.first + j) * n + block.first;
      auto feedback0 = hn::Zero(d);
      auto feedback1 = hn::Zero(d);
      for (int64_t i = 0; i < j; ++i) {
        const auto factor = hn::Set(d, feedback_row[i]);
        const float* errors = block.weight + i * kPanelColumns + r;
        feedback0 = hn::MulAdd(factor, hn::LoadU(d, errors), feedback0);
        feedback1 = hn::MulAdd(factor, hn::LoadU(d, errors + lanes), feedback1);
      }
      QuantizeLanes(d, block, j, r, feedback0);
      QuantizeLanes(d, block, j, r + lanes, feedback1);
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

// Rows [first, first + rows) of the weight, quantised from the first column to the last.
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
      group_.push_back(static_cast<int32_t>(column / options.group_size));
    }
  }

  void Run(int64_t first_row, GptqResult& result) {
    const int64_t rows = std::min(kPanelColumns, weight_.out_features - first_row);
    LoadRows(first_row, rows, result.scale_OG);
    std::vector<double> dampened_loss(kPanelColumns), added_loss(kPanelColumns);
    for (int64_t first = 0; first < weight_.in_features; first += options_.block_size) {
      BlockOfPanel block = PrepareBlock(first);
      HWY_DYNAMIC_DISPATCH(QuantizeBlock)(block);
      for (size_t r = 0; r < kPanelColumns; ++r) {
        dampened_loss[r] += static_cast<double>(block.dampened_loss[r]);
        added_loss[r] += static_cast<double>(block.added_loss[r]);
      }
    }
    StoreRows(first_row, rows, result.codes_OI);
    for (int64_t r = 0; r < rows; ++r) {
      const size_t row = static_cast<size_t>(first_row + r);
      result.row_loss_O[row] = std::max(
          0.0, dampened_loss[static_cast<size_t>(r)] - added_loss[static_cast<size_t>(r)]);
      dampened_loss_O_[row] = dampened_loss[static_cast<size_t>(r)];
    }
  }

 private:
  // Columns in the order of quantisation; rows past the matrix are zero with scale 1.
  void LoadRows(int64_t first_row, int64_t rows, const std::vector<BFloat16>& scale_OG);
  BlockOfPanel PrepareBlock(int64_t first);
  void StoreRows(int64_t first_row, int64_t rows, std::vector<int8_t>& codes_OI) const;

  const WeightMatrix& weight_;
  const HessianFactor& factor_;
  const GptqOptions& options_;
  std::vector<int32_t> group_;
  std::vector<float> scale_panel_, weight_panel_, carried_;
  std::vector<int8_t> codes_panel_;
};

}  // namespace

}  // namespace quatrain
#endif
