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
// instruction set.
inline constexpr int64_t kSearchRows = 16;
struct GroupSearch {
  int64_t group_size = 0;
  const float* importance = nullptr;  // [g]
  const float* weight = nullptr;      // [g, kSearchRows]
  CodeGrid grid;
};

}  // namespace quatrain
#endif

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using calibrate::CodeOf, calibrate::Fma, calibrate::RoundToBFloat16, calibrate::Tag;

// error[r] = weighted squared error of row r under scale[r].
void GroupError(const GroupSearch& group, const float* scale, float* error) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lo = hn::Set(d, static_cast<float>(group.grid.lo));
  const auto hi = hn::Set(d, static_cast<float>(group.grid.hi));
  for (int64_t r = 0; r < kSearchRows; r += lanes) {
    const auto s = hn::LoadU(d, scale + r);
    auto sum = hn::Zero(d);
    for (int64_t i = 0; i < group.group_size; ++i) {
      const auto w = hn::LoadU(d, group.weight + i * kSearchRows + r);
      const auto q = CodeOf(w, s, lo, hi);
      const auto difference = hn::Sub(w, RoundToBFloat16(hn::Mul(q, s)));
      const auto weighted = hn::Mul(hn::Set(d, group.importance[i]), difference);
      sum = Fma(weighted, difference, sum);
    }
    hn::StoreU(sum, d, error + r);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(GroupError);

namespace {

constexpr float kLargestRatio = 1.1f;
constexpr float kSmallestRatio = 0.4f;

struct Candidates {
  int largest = 0, smallest = 0;  // bits of the BF16 scales
};

Candidates CandidatesOf(float amax, int num_bits) {
  constexpr int kScaleOfZeros = 0x3C00;  // 2^-7, as absmax/7.5 has it
  if (amax == 0.0f) return {kScaleOfZeros, kScaleOfZeros};
  const float unit = amax / (num_bits == 4 ? 7.5f : 127.5f);
  constexpr int kSmallestNormal = 0x0080;
  const int smallest = std::max<int>(ToBFloat16(kSmallestRatio * unit).bits, kSmallestNormal);
  return {std::max<int>(ToBFloat16(kLargestRatio * unit).bits, smallest), smallest};
}

// Bits of the best scale of every row of the group; of equally good ones the largest, which comes
// first.
std::array<int, kSearchRows> SearchGroup(const GroupSearch& group) {
  std::array<Candidates, kSearchRows> range;
  std::array<int, kSearchRows> best_bits;
  float best_error[kSearchRows], scale[kSearchRows], error[kSearchRows];
  int num_steps = 0;
  for (size_t r = 0; r < kSearchRows; ++r) {
    float amax = 0.0f;
    for (int64_t i = 0; i < group.group_size; ++i) {
      amax = std::max(amax, std::abs(group.weight[i * kSearchRows + static_cast<int64_t>(r)]));
    }
    range[r] = CandidatesOf(amax, group.grid.num_bits);
    best_bits[r] = range[r].largest;
    best_error[r] = std::numeric_limits<float>::infinity();
    num_steps = std::max(num_steps, range[r].largest - range[r].smallest + 1);
  }
  for (int step = 0; step < num_steps; ++step) {
    const auto bits_of = [&](size_t r) {
      return std::max(range[r].largest - step, range[r].smallest);
    };
    for (size_t r = 0; r < kSearchRows; ++r) {
      scale[r] = ToFloat(BFloat16{static_cast<uint16_t>(bits_of(r))});
    }
    HWY_DYNAMIC_DISPATCH(GroupError)(group, scale, error);
    for (size_t r = 0; r < kSearchRows; ++r) {
      if (error[r] >= best_error[r]) continue;
      best_error[r] = error[r];
      best_bits[r] = bits_of(r);
    }
  }
  return best_bits;
}

// Importances of one group, brought to a largest of 1; all 1 when none is positive.
void GroupImportance(std::span<const float> importance_g, std::vector<float>& out_g) {
  const float largest = *std::max_element(importance_g.begin(), importance_g.end());
  out_g.resize(importance_g.size());
  for (size_t i = 0; i < importance_g.size(); ++i) {
    out_g[i] = largest > 0.0f ? importance_g[i] / largest : 1.0f;
  }
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
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < g; ++i) {
        tile[static_cast<size_t>(i * kSearchRows + r)] = weight.At(first_row + r, group * g + i);
      }
    }
    const GroupSearch search{g, importance.data(), tile.data(), spec.grid};
    const std::array<int, kSearchRows> bits = SearchGroup(search);
    for (int64_t r = 0; r < rows; ++r) {
      scale_OG[(first_row + r) * num_groups + group] =
          BFloat16{static_cast<uint16_t>(bits[static_cast<size_t>(r)])};
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
    scale_G[group] = ScaleFromAbsmax(amax, spec.rule, spec.grid.num_bits);
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
