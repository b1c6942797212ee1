#include "calibrate/scale_search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/random.h"

namespace quatrain {
namespace {

std::vector<BFloat16> RandomWeight(int64_t count, uint64_t seed) {
  std::vector<BFloat16> weight(static_cast<size_t>(count));
  for (size_t i = 0; i < weight.size(); ++i) {
    double sum = 0.0;  // roughly Gaussian
    for (uint64_t k = 0; k < 6; ++k) sum += UniformDouble(seed, k, i) - 0.5;
    weight[i] = ToBFloat16(static_cast<float>(0.05 * sum));
  }
  return weight;
}

double GroupError(const BFloat16* weight, const float* importance, int64_t g, BFloat16 scale,
                  const CodeGrid& grid) {
  double error = 0.0;
  for (int64_t i = 0; i < g; ++i) {
    const float w = ToFloat(weight[i]);
    const double e =
        static_cast<double>(w - ToFloat(DequantizeCode(QuantizeCode(w, scale, grid), scale)));
    error += static_cast<double>(importance[i]) * e * e;
  }
  return error;
}

constexpr int64_t kRows = 21, kColumns = 96;

QuantizeSpec SearchSpec(int num_bits, int64_t group_size) {
  return {ScaleRule::kSearched, GridOf(ScaleRule::kSearched, num_bits), group_size};
}

// Of 8 bits the best of all; of 4 bits, where every fourth is looked at first, close to it.
TEST(ChooseScales, SearchFindsTheBestScale) {
  ThreadPool pool(2);
  const std::vector<BFloat16> weight = RandomWeight(kRows * kColumns, 1);
  std::vector<float> importance;
  for (uint64_t i = 0; i < kColumns; ++i) {
    importance.push_back(static_cast<float>(std::exp2(8.0 * UniformDouble(2, 0, i))));
  }
  for (const auto& [num_bits, code_max] : {std::pair(4, 7), std::pair(8, 127), std::pair(4, 3)}) {
    QuantizeSpec spec = SearchSpec(num_bits, 32);
    if (code_max < spec.grid.hi) spec.grid = {num_bits, -code_max, code_max};
    const std::vector<BFloat16> scale =
        ChooseScales(pool, {weight.data(), kRows, kColumns}, spec, importance);
    double sum_found = 0.0, sum_best = 0.0;
    for (int64_t group = 0; group < kRows * 3; ++group) {
      const BFloat16* w = weight.data() + group * 32;
      const float* h = importance.data() + group % 3 * 32;
      float amax = 0.0f;
      for (int64_t i = 0; i < 32; ++i) amax = std::max(amax, std::abs(ToFloat(w[i])));
      const float unit = amax / (static_cast<float>(code_max) + 0.5f);
      double best = INFINITY;
      for (uint16_t bits = ToBFloat16(0.4f * unit).bits; bits <= ToBFloat16(1.1f * unit).bits;
           ++bits) {
        best = std::min(best, GroupError(w, h, 32, BFloat16{bits}, spec.grid));
      }
      const double found = GroupError(w, h, 32, scale[static_cast<size_t>(group)], spec.grid);
      const double slack = num_bits == 8 ? 1.00001 : 1.02;  // sums in FP32 against FP64
      EXPECT_LE(found, slack * best) << "group " << group;
      sum_found += found;
      sum_best += best;
    }
    EXPECT_LE(sum_found, 1.001 * sum_best);
  }
}

TEST(ChooseScales, SearchBeatsBothAbsmaxRules) {
  ThreadPool pool(1);
  const std::vector<BFloat16> weight = RandomWeight(kRows * kColumns, 3);
  const std::vector<float> importance(kColumns, 1.0f);
  const WeightMatrix matrix{weight.data(), kRows, kColumns};
  double error[3] = {};
  const ScaleRule rules[3] = {ScaleRule::kSearched, ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5};
  for (int r = 0; r < 3; ++r) {
    const QuantizeSpec spec{rules[r], GridOf(rules[r], 4), 32};
    const std::vector<BFloat16> scale = ChooseScales(pool, matrix, spec, importance);
    for (int64_t group = 0; group < kRows * 3; ++group) {
      error[r] += GroupError(weight.data() + group * 32, importance.data(), 32,
                             scale[static_cast<size_t>(group)], spec.grid);
    }
  }
  EXPECT_LT(error[0], 0.9 * error[1]);
  EXPECT_LT(error[0], 0.9 * error[2]);
}

TEST(ChooseScales, AbsmaxRulesAreThoseOfTheQuantiser) {
  ThreadPool pool(2);
  const std::vector<BFloat16> weight = RandomWeight(kRows * kColumns, 4);
  const std::vector<float> importance(kColumns, 1.0f);
  for (const ScaleRule rule : {ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5}) {
    for (const int num_bits : {4, 8}) {
      const QuantizeSpec spec{rule, GridOf(rule, num_bits), 48};
      const std::vector<BFloat16> scale =
          ChooseScales(pool, {weight.data(), kRows, kColumns}, spec, importance);
      std::vector<int32_t> packed(static_cast<size_t>(kRows * PackedWords(kColumns, num_bits)));
      std::vector<BFloat16> expected(scale.size());
      QuantizeMatrix(pool, weight.data(), kRows, kColumns, spec, packed.data(), expected.data());
      for (size_t i = 0; i < scale.size(); ++i) EXPECT_EQ(scale[i].bits, expected[i].bits);
    }
  }
}

TEST(ChooseScales, ThreadCountChangesNoBit) {
  const std::vector<BFloat16> weight = RandomWeight(kRows * kColumns, 5);
  const std::vector<float> importance(kColumns, 1.0f);
  std::vector<std::vector<BFloat16>> scales;
  for (const int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads);
    scales.push_back(
        ChooseScales(pool, {weight.data(), kRows, kColumns}, SearchSpec(4, 32), importance));
  }
  for (size_t i = 0; i < scales[0].size(); ++i) {
    EXPECT_EQ(scales[0][i].bits, scales[1][i].bits);
    EXPECT_EQ(scales[0][i].bits, scales[2][i].bits);
  }
}

TEST(ChooseScales, ZeroGroupsZeroImportancesAndTinyWeightsGetPositiveFiniteScales) {
  ThreadPool pool(1);
  std::vector<BFloat16> weight(64);
  weight[40] = BFloat16{0x0001};  // the smallest subnormal
  const std::vector<float> importance(64, 0.0f);
  const std::vector<BFloat16> scale =
      ChooseScales(pool, {weight.data(), 1, 64}, SearchSpec(4, 32), importance);
  EXPECT_EQ(scale[0].bits, 0x3C00);
  EXPECT_EQ(scale[1].bits, 0x0080);
  const std::vector<BFloat16> random = RandomWeight(64, 6);
  const std::vector<float> ones(64, 1.0f);
  const WeightMatrix matrix{random.data(), 1, 64};
  const std::vector<BFloat16> unweighted = ChooseScales(pool, matrix, SearchSpec(4, 32), ones);
  const std::vector<BFloat16> unknown = ChooseScales(pool, matrix, SearchSpec(4, 32), importance);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(unweighted[i].bits, unknown[i].bits);
}

}  // namespace
}  // namespace quatrain
