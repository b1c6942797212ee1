#include "calibrate/scale_search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/scale_search.cc"
#include "hwy/foreach_target.h"
// clang-format off: once per instruction set, after foreach_target
#include "calibrate/simd-inl.h"
// clang-format on

#ifndef QUATRAIN_CALIBRATE_SCALE_SEARCH_TYPES_
#define QUATRAIN_CALIBRATE_SCALE_SEARCH_TYPES_
namespace quatrain {

// One group of kSearchRows rows: a lane is a row, so that its sum has one order on every
// instruction set. Arrays without a size named are [kSearchRows].
inline constexpr int64_t kSearchRows = 16;
struct GroupSearch {
  int64_t group_size = 0;
  const float* importance = nullptr;  // [g]
  const float* weight = nullptr;      // [g, kSearchRows]
  CodeGrid grid;
  const int32_t* largest = nullptr;  // bits of the BF16 scales to choose from
  const int32_t* smallest = nullptr;
  int32_t num_scales = 0;   // of the row with most of them
  int32_t* best = nullptr;  // out
};

}  // namespace quatrain
#endif

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using calibrate::Floats, calibrate::Fma, calibrate::RoundToBFloat16, calibrate::Tag;
using IntTag = hn::RebindToSigned<Tag>;
using Ints = hn::Vec<IntTag>;

constexpr int32_t kAtOnce = 4;  // scales that share what they load

// Of 4-bit codes every fourth scale is looked at first, then all between the neighbours of the
// best. The BF16 rounding of w' is left out of the first look, where it is far below the step; of
// an 8-bit code it is not, and few scales are in question.
template <int num_bits>
constexpr int32_t kStride = num_bits == 4 ? 4 : 1;

// Searches one vector of rows.
template <int num_bits>
class VectorSearch {
 public:
  VectorSearch(const GroupSearch& group, int64_t row)
      : group_(group),
        row_(row),
        largest_(hn::LoadU(IntTag(), group.largest + row)),
        smallest_(hn::LoadU(IntTag(), group.smallest + row)),
        best_(largest_) {}

  void Run() {
    Restart();
    for (int32_t step = 0; step < group_.num_scales; step += kAtOnce * kStride<num_bits>) {
      const Ints first = hn::Sub(largest_, hn::Set(IntTag(), step));
      Try<num_bits == 8>(first, kStride<num_bits>);
      if (IsClippedWorse(hn::Sub(first, hn::Set(IntTag(), kAtOnce * kStride<num_bits>)))) break;
    }
    if (kStride < num_bits >> 1) {
      constexpr int32_t kAround = 2 * kStride<num_bits>;
      const Ints first = hn::Add(best_, hn::Set(IntTag(), kStride<num_bits> - 1));
      Restart();
      for (int32_t step = 0; step < kAround; step += kAtOnce) {
        Try<true>(hn::Sub(first, hn::Set(IntTag(), step)), 1);
      }
    }
    hn::StoreU(best_, IntTag(), group_.best + row_);
  }

 private:
  void Restart() {
    best_error_ = hn::Set(Tag(), std::numeric_limits<float>::infinity());
    best_ = largest_;
  }

  // Scales of these bits, kept to the range.
  Ints Clamped(Ints bits) const { return hn::Max(hn::Min(bits, largest_), smallest_); }
  static Floats ScaleOf(Ints bits) { return hn::BitCast(Tag(), hn::ShiftLeft<16>(bits)); }

  // Takes over the first of kAtOnce scales, from the largest on, that is better than the best.
  template <bool is_rounded>
  HWY_INLINE void Try(Ints first, int32_t stride) {
    Ints bits[kAtOnce];
    Floats scale[kAtOnce], error[kAtOnce];
    QUATRAIN_UNROLL
    for (int32_t c = 0; c < kAtOnce; ++c) {
      bits[c] = Clamped(hn::Sub(first, hn::Set(IntTag(), c * stride)));
      scale[c] = ScaleOf(bits[c]);
    }
    AddErrors<is_rounded>(scale, error);
    QUATRAIN_UNROLL
    for (int32_t c = 0; c < kAtOnce; ++c) {
      const auto is_better = hn::Lt(error[c], best_error_);
      best_error_ = hn::IfThenElse(is_better, error[c], best_error_);
      best_ = hn::IfThenElse(hn::RebindMask(IntTag(), is_better), bits[c], best_);
    }
  }

  // error = weighted squared error under each scale, with codes from w * (1 / s), which may
  // disagree with w / s at ties.
  template <bool is_rounded>
  HWY_INLINE void AddErrors(const Floats* scale, Floats* error) const {
    const Tag d;
    const auto least = hn::Set(d, static_cast<float>(-group_.grid.hi));
    const auto most = hn::Set(d, static_cast<float>(-group_.grid.lo));
    Floats minus_inverse[kAtOnce];
    QUATRAIN_UNROLL
    for (int32_t c = 0; c < kAtOnce; ++c) {
      minus_inverse[c] = hn::Div(hn::Set(d, -1.0f), scale[c]);
      error[c] = hn::Zero(d);
    }
    for (int64_t i = 0; i < group_.group_size; ++i) {
      const auto w = hn::LoadU(d, group_.weight + i * kSearchRows + row_);
      const auto importance = hn::Set(d, group_.importance[i]);
      QUATRAIN_UNROLL
      for (int32_t c = 0; c < kAtOnce; ++c) {
        const auto minus_q = hn::Min(hn::Max(hn::Round(hn::Mul(w, minus_inverse[c])), least), most);
        const auto difference = is_rounded ? hn::Add(w, RoundToBFloat16(hn::Mul(minus_q, scale[c])))
                                           : Fma(minus_q, scale[c], w);
        error[c] = Fma(hn::Mul(importance, difference), difference, error[c]);
      }
    }
  }

  // Is what the scale clips alone worse than the best, in every row? Then so is all that smaller
  // scales clip. Bounds leave room for roundings.
  bool IsClippedWorse(Ints bits) const {
    constexpr float kRoom = 1.0f + 0x1p-8f;
    const Tag d;
    const auto scale = ScaleOf(Clamped(bits));
    const auto hi = hn::Mul(scale, hn::Set(d, kRoom * static_cast<float>(group_.grid.hi)));
    const auto lo = hn::Mul(scale, hn::Set(d, kRoom * static_cast<float>(group_.grid.lo)));
    auto sum = hn::Zero(d);
    for (int64_t i = 0; i < group_.group_size; ++i) {
      const auto w = hn::LoadU(d, group_.weight + i * kSearchRows + row_);
      const auto beyond = hn::Max(hn::Max(hn::Sub(w, hi), hn::Sub(lo, w)), hn::Zero(d));
      sum = Fma(hn::Mul(hn::Set(d, group_.importance[i]), beyond), beyond, sum);
    }
    return hn::AllTrue(d, hn::Gt(sum, hn::Mul(best_error_, hn::Set(d, kRoom))));
  }

  const GroupSearch& group_;
  int64_t row_;
  Ints largest_, smallest_, best_;
  Floats best_error_;
};

void SearchGroup(const GroupSearch& group) {
  for (int64_t row = 0; row < kSearchRows; row += static_cast<int64_t>(hn::Lanes(Tag()))) {
    if (group.grid.num_bits == 4) {
      VectorSearch<4>(group, row).Run();
    } else {
      VectorSearch<8>(group, row).Run();
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(SearchGroup);

namespace {

constexpr float kLargestRatio = 1.1f;
constexpr float kSmallestRatio = 0.4f;

struct Candidates {
  int largest = 0, smallest = 0;  // bits of the BF16 scales
};

Candidates CandidatesOf(float amax, const CodeGrid& grid) {
  constexpr int kScaleOfZeros = 0x3C00;  // 2^-7, as absmax/7.5 has it
  if (amax == 0.0f) return {kScaleOfZeros, kScaleOfZeros};
  const float unit = amax / (static_cast<float>(grid.hi) + 0.5f);
  constexpr int kSmallestNormal = 0x0080;
  const int smallest = std::max<int>(ToBFloat16(kSmallestRatio * unit).bits, kSmallestNormal);
  return {std::max<int>(ToBFloat16(kLargestRatio * unit).bits, smallest), smallest};
}

// Importances of one group, brought to a largest of 1; all 1 when none is positive.
void GroupImportance(std::span<const float> importance_g, std::vector<float>& out_g) {
  const float largest = *std::max_element(importance_g.begin(), importance_g.end());
  out_g.resize(importance_g.size());
  for (size_t i = 0; i < importance_g.size(); ++i) {
    out_g[i] = largest > 0.0f ? importance_g[i] / largest : 1.0f;
  }
}

// Columns [first_column, first_column + g) of the rows, transposed; rows past the matrix stay as
// they are. Returns each row's largest absolute value.
std::array<float, kSearchRows> LoadTile(const WeightMatrix& weight, int64_t first_row, int64_t rows,
                                        int64_t first_column, int64_t g, float* tile) {
  std::array<float, kSearchRows> amax = {};
  const auto load = [&](const auto* values, auto to_float) {
    for (int64_t r = 0; r < rows; ++r) {
      const auto* row = values + (first_row + r) * weight.in_features + first_column;
      float largest = 0.0f;
      for (int64_t i = 0; i < g; ++i) {
        const float value = to_float(row[i]);
        tile[i * kSearchRows + r] = value;
        largest = std::max(largest, std::abs(value));
      }
      amax[static_cast<size_t>(r)] = largest;
    }
  };
  if (weight.target != nullptr) {
    load(weight.target, [](float value) { return value; });
  } else {
    load(weight.data, [](BFloat16 value) { return ToFloat(value); });
  }
  return amax;
}

void SearchRows(const WeightMatrix& weight, const QuantizeSpec& spec, int64_t first_row,
                std::span<const float> importance_I, BFloat16* scale_OG) {
  const int64_t g = spec.group_size;
  const int64_t num_groups = weight.in_features / g;
  const int64_t rows = std::min(kSearchRows, weight.out_features - first_row);
  std::vector<float> tile(static_cast<size_t>(g * kSearchRows)), importance;
  for (int64_t group = 0; group < num_groups; ++group) {
    GroupImportance(importance_I.subspan(static_cast<size_t>(group * g), static_cast<size_t>(g)),
                    importance);
    const std::array<float, kSearchRows> amax =
        LoadTile(weight, first_row, rows, group * g, g, tile.data());
    std::array<int32_t, kSearchRows> largest, smallest, best;
    int32_t num_scales = 0;
    for (size_t r = 0; r < kSearchRows; ++r) {
      const Candidates range = CandidatesOf(amax[r], spec.grid);
      largest[r] = range.largest;
      smallest[r] = range.smallest;
      num_scales = std::max(num_scales, largest[r] - smallest[r] + 1);
    }
    HWY_DYNAMIC_DISPATCH(SearchGroup)
    ({g, importance.data(), tile.data(), spec.grid, largest.data(), smallest.data(), num_scales,
      best.data()});
    for (int64_t r = 0; r < rows; ++r) {
      scale_OG[(first_row + r) * num_groups + group] =
          BFloat16{static_cast<uint16_t>(best[static_cast<size_t>(r)])};
    }
  }
}

void AbsmaxRow(const WeightMatrix& weight, const QuantizeSpec& spec, int64_t row,
               BFloat16* scale_G) {
  for (int64_t group = 0; group < weight.in_features / spec.group_size; ++group) {
    float amax = 0.0f;
    for (int64_t i = 0; i < spec.group_size; ++i) {
      amax = std::max(amax, std::abs(weight.At(row, group * spec.group_size + i)));
    }
    scale_G[group] = ScaleFromAbsmax(amax, spec.rule, spec.grid);
  }
}

}  // namespace

std::vector<BFloat16> ChooseScales(ThreadPool& pool, const WeightMatrix& weight,
                                   const QuantizeSpec& spec, std::span<const float> importance_I) {
  QT_CHECK(spec.rule != ScaleRule::kFrozen && weight.in_features % spec.group_size == 0);
  const int64_t num_groups = weight.in_features / spec.group_size;
  std::vector<BFloat16> scale_OG(static_cast<size_t>(weight.out_features * num_groups));
  pool.ParallelFor((weight.out_features + kSearchRows - 1) / kSearchRows, [&](int64_t chunk, int) {
    const int64_t first = chunk * kSearchRows;
    if (spec.rule == ScaleRule::kSearched) {
      SearchRows(weight, spec, first, importance_I, scale_OG.data());
      return;
    }
    for (int64_t row = first; row < std::min(weight.out_features, first + kSearchRows); ++row) {
      AbsmaxRow(weight, spec, row, scale_OG.data() + row * num_groups);
    }
  });
  return scale_OG;
}

}  // namespace quatrain
#endif  // HWY_ONCE
