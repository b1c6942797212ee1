#include "calibrate/hessian.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"

namespace quatrain {
namespace {

std::vector<BFloat16> RandomInputs(int64_t tokens, int64_t features, uint64_t seed) {
  std::vector<BFloat16> inputs(static_cast<size_t>(tokens * features));
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i] = ToBFloat16(static_cast<float>(UniformDouble(seed, 0, i) - 0.5));
  }
  return inputs;
}

std::vector<float> ToFloats(const std::vector<BFloat16>& values) {
  std::vector<float> floats;
  for (const BFloat16 value : values) floats.push_back(ToFloat(value));
  return floats;
}

Hessian HessianOf(int num_threads, const std::vector<BFloat16>& inputs, int64_t features) {
  ThreadPool pool(num_threads);
  Hessian hessian(features);
  AccumulateHessian(pool, inputs.data(), static_cast<int64_t>(inputs.size()) / features, hessian);
  return hessian;
}

TEST(Hessian, IsTwiceTheSumOfOuterProducts) {
  constexpr int64_t kTokens = 1500, kFeatures = 50;
  const std::vector<BFloat16> inputs = RandomInputs(kTokens, kFeatures, 1);
  const Hessian hessian = HessianOf(2, inputs, kFeatures);
  EXPECT_EQ(hessian.num_tokens, kTokens);
  for (int64_t i = 0; i < kFeatures; ++i) {
    for (int64_t j = i; j < kFeatures; ++j) {
      double sum = 0.0;
      for (int64_t t = 0; t < kTokens; ++t) {
        sum += 2.0 * static_cast<double>(ToFloat(inputs[static_cast<size_t>(t * kFeatures + i)])) *
               static_cast<double>(ToFloat(inputs[static_cast<size_t>(t * kFeatures + j)]));
      }
      ASSERT_NEAR(static_cast<double>(hessian.At(i, j)), sum, 2e-4);  // of a diagonal of about 250
    }
  }
}

TEST(Hessian, ThreadCountAndInputTypeChangeNoBit) {
  constexpr int64_t kFeatures = 200;
  const std::vector<BFloat16> inputs = RandomInputs(2000, kFeatures, 2);
  const Hessian one = HessianOf(1, inputs, kFeatures);
  EXPECT_EQ(one.upper_II, HessianOf(2, inputs, kFeatures).upper_II);
  EXPECT_EQ(one.upper_II, HessianOf(3, inputs, kFeatures).upper_II);
  ThreadPool pool(2);
  Hessian from_floats(kFeatures);
  AccumulateHessian(pool, ToFloats(inputs).data(), 2000, from_floats);
  EXPECT_EQ(one.upper_II, from_floats.upper_II);
}

TEST(Hessian, OfNoTokensStaysZero) {
  ThreadPool pool(1);
  Hessian hessian(3);
  AccumulateHessian(pool, static_cast<const BFloat16*>(nullptr), 0, hessian);
  EXPECT_EQ(hessian.upper_II, AlignedBuffer(9));
  EXPECT_EQ(hessian.num_tokens, 0);
}

TEST(Hessian, MergingTwoPartsGivesTheWhole) {
  ThreadPool pool(2);
  const std::vector<BFloat16> first = RandomInputs(100, 40, 3), second = RandomInputs(30, 40, 4);
  Hessian whole(40), part(40);
  AccumulateHessian(pool, first.data(), 100, whole);
  AccumulateHessian(pool, second.data(), 30, part);
  Hessian merged = HessianOf(1, first, 40);
  MergeHessian(pool, part, merged);
  AccumulateHessian(pool, second.data(), 30, whole);
  EXPECT_EQ(merged.num_tokens, 130);
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = i; j < 40; ++j) EXPECT_EQ(merged.At(i, j), whole.At(i, j));
  }
}

TEST(Hessian, BlendWeighsTheLayerByThePrior) {
  ThreadPool pool(1);
  Hessian expert(2), layer(2);
  expert.upper_II = {8.0f, 2.0f, 0.0f, 4.0f};
  expert.num_tokens = 4;
  layer.upper_II = {100.0f, 10.0f, 0.0f, 200.0f};
  layer.num_tokens = 100;
  const Hessian blend = BlendHessian(pool, expert, layer, 10.0);
  EXPECT_FLOAT_EQ(blend.At(0, 0), 18.0f);
  EXPECT_FLOAT_EQ(blend.At(0, 1), 3.0f);
  EXPECT_FLOAT_EQ(blend.At(1, 1), 24.0f);
  EXPECT_EQ(blend.num_tokens, 4);
}

TEST(Hessian, BlendOfAColdExpertIsTheLayersAndOfAColdLayerTheExperts) {
  ThreadPool pool(1);
  const Hessian cold(40);
  const Hessian hot = HessianOf(1, RandomInputs(64, 40, 5), 40);
  const Hessian from_layer = BlendHessian(pool, cold, hot, 64.0);
  const Hessian from_expert = BlendHessian(pool, hot, cold, 64.0);
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = i; j < 40; ++j) {
      EXPECT_EQ(from_layer.At(i, j), hot.At(i, j));
      EXPECT_EQ(from_expert.At(i, j), hot.At(i, j));
    }
  }
}

TEST(Hessian, OutputErrorIsTheQuadraticForm) {
  ThreadPool pool(2);
  constexpr int64_t kFeatures = 150, kRows = 35;
  const Hessian hessian = HessianOf(1, RandomInputs(300, kFeatures, 6), kFeatures);
  const std::vector<float> error = ToFloats(RandomInputs(kRows, kFeatures, 7));
  const std::vector<double> rows =
      OutputError(pool, hessian, kRows, [&](int64_t row, float* error_I) {
        std::copy_n(error.data() + row * kFeatures, kFeatures, error_I);
      });
  ASSERT_EQ(rows.size(), static_cast<size_t>(kRows));
  for (int64_t o = 0; o < kRows; ++o) {
    double expected = 0.0;
    for (int64_t i = 0; i < kFeatures; ++i) {
      for (int64_t j = 0; j < kFeatures; ++j) {
        expected += static_cast<double>(error[static_cast<size_t>(o * kFeatures + i)]) *
                    static_cast<double>(hessian.At(std::min(i, j), std::max(i, j))) *
                    static_cast<double>(error[static_cast<size_t>(o * kFeatures + j)]);
      }
    }
    EXPECT_NEAR(rows[static_cast<size_t>(o)], expected, 1e-5 * expected);
  }
}

TEST(FindBadInput, FindsOneAnywhereInManyValues) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    for (const int64_t place : {0, 255, 256, 300, 1099}) {
      std::vector<BFloat16> inputs = RandomInputs(100, 11, 8);
      EXPECT_FALSE(FindBadInput(inputs.data(), 100, 11).has_value());
      inputs[static_cast<size_t>(place)] = ToBFloat16(bad);
      inputs.back() = ToBFloat16(bad);
      const auto found = FindBadInput(inputs.data(), 100, 11);
      ASSERT_TRUE(found.has_value());
      EXPECT_EQ(found->token, place / 11);
      EXPECT_EQ(found->feature, place % 11);
    }
  }
}

TEST(FindBadInput, NamesTokenAndFeatureOfTheFirstNaN) {
  std::vector<BFloat16> inputs = RandomInputs(4, 5, 8);
  EXPECT_FALSE(FindBadInput(inputs.data(), 4, 5).has_value());
  inputs[13] = ToBFloat16(std::numeric_limits<float>::infinity());
  inputs[17] = ToBFloat16(std::numeric_limits<float>::quiet_NaN());
  const auto bad = FindBadInput(inputs.data(), 4, 5);
  ASSERT_TRUE(bad.has_value());
  EXPECT_EQ(bad->token, 2);
  EXPECT_EQ(bad->feature, 3);
  EXPECT_TRUE(std::isinf(bad->value));
}

}  // namespace
}  // namespace quatrain
