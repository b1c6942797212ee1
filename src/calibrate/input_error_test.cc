#include "calibrate/input_error.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace quatrain {
namespace {

constexpr int64_t kTokens = 700, kFeatures = 70, kOut = 37;

// Inputs of both models: correlated features, the quantised model's off by a linear map and noise.
struct Inputs {
  explicit Inputs(uint64_t seed) {
    const auto uniform = [&](uint64_t stream, int64_t at) {
      return static_cast<float>(UniformDouble(seed, stream, static_cast<uint64_t>(at))) - 0.5f;
    };
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t i = 0; i < kFeatures; ++i) {
        const int64_t at = t * kFeatures + i;
        const float value = uniform(1, at) + uniform(2, t) * static_cast<float>(1 + i % 3);
        reference.push_back(ToBFloat16(value));
        const float neighbour = i > 0 ? ToFloat(reference[static_cast<size_t>(at - 1)]) : 0.0f;
        x.push_back(ToBFloat16(0.9f * value + 0.1f * neighbour + 0.02f * uniform(3, at)));
      }
    }
    for (int64_t at = 0; at < kOut * kFeatures; ++at) weight.push_back(ToBFloat16(uniform(4, at)));
  }
  WeightMatrix Matrix() const {
    return {.data = weight.data(), .out_features = kOut, .in_features = kFeatures};
  }
  Hessian H(ThreadPool& pool) const {
    Hessian hessian(kFeatures);
    AccumulateHessian(pool, x.data(), kTokens, hessian);
    return hessian;
  }
  MatrixRows<BFloat16> Reference() const { return {reference.data(), kFeatures}; }
  InputError Error(ThreadPool& pool) const {
    InputError error{.in_features = kFeatures};
    AccumulateInputError(pool, x.data(), Reference(), kTokens, error);
    return error;
  }
  // Sum over tokens and rows of (t x - w x*)^2.
  double OutputErrorOf(const std::vector<float>& target) const {
    double sum = 0.0;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t o = 0; o < kOut; ++o) {
        double difference = 0.0;
        for (int64_t i = 0; i < kFeatures; ++i) {
          const auto at = static_cast<size_t>(o * kFeatures + i);
          const auto token = static_cast<size_t>(t * kFeatures + i);
          difference += double{target[at]} * double{ToFloat(x[token])} -
                        double{ToFloat(weight[at])} * double{ToFloat(reference[token])};
        }
        sum += difference * difference;
      }
    }
    return sum;
  }
  std::vector<BFloat16> x, reference, weight;
};

std::vector<float> AsFloat(const std::vector<BFloat16>& values) {
  std::vector<float> result;
  for (const BFloat16 value : values) result.push_back(ToFloat(value));
  return result;
}

TEST(InputError, IsTheSameWithTheHessianAndFromRowsAnywhere) {
  ThreadPool pool(2);
  const Inputs inputs(1);
  std::vector<const BFloat16*> rows;
  for (int64_t t = 0; t < kTokens; ++t) rows.push_back(inputs.reference.data() + t * kFeatures);
  Hessian hessian(kFeatures);
  InputError error{.in_features = kFeatures};
  AccumulateHessianAndError(pool, inputs.x.data(), MatrixRows<BFloat16>{.scattered = rows.data()},
                            kTokens, hessian, error);
  EXPECT_EQ(error.moment_IM, inputs.Error(pool).moment_IM);
  const Hessian alone = inputs.H(pool);
  EXPECT_EQ(hessian.num_tokens, alone.num_tokens);
  for (int64_t i = 0; i < kFeatures; ++i) {
    for (int64_t j = i; j < kFeatures; ++j) ASSERT_EQ(hessian.At(i, j), alone.At(i, j));
  }
}

TEST(InputError, IsTheMomentOfInputsAndTheirDifferences) {
  ThreadPool pool(2);
  const Inputs inputs(1);
  const InputError error = inputs.Error(pool);
  for (int64_t i = 0; i < kFeatures; ++i) {
    for (int64_t j = 0; j < kFeatures; ++j) {
      double expected = 0.0;
      for (int64_t t = 0; t < kTokens; ++t) {
        const auto row = static_cast<size_t>(t * kFeatures);
        const auto x_j = static_cast<size_t>(j);
        expected +=
            2.0 * double{ToFloat(inputs.x[row + static_cast<size_t>(i)])} *
            (double{ToFloat(inputs.reference[row + x_j])} - double{ToFloat(inputs.x[row + x_j])});
      }
      EXPECT_NEAR(error.moment_IM[static_cast<size_t>(i * kFeatures + j)], expected, 2e-3);
    }
  }
}

TEST(InputError, MergesShares) {
  ThreadPool pool(1);
  const InputError one = Inputs(1).Error(pool);
  InputError sum{.in_features = kFeatures};
  MergeInputError({}, 1.0, sum);
  EXPECT_TRUE(sum.empty());
  MergeInputError(one, 0.5, sum);
  MergeInputError(one, 2.0, sum);
  for (size_t i = 0; i < one.moment_IM.size(); ++i) {
    EXPECT_FLOAT_EQ(sum.moment_IM[i], 2.5f * one.moment_IM[i]);
  }
}

TEST(InputCorrection, SolvesTheDampenedNormalEquations) {
  ThreadPool pool(2);
  const Inputs inputs(2);
  const Hessian hessian = inputs.H(pool);
  const InputError error = inputs.Error(pool);
  for (const ActOrder order : {ActOrder::kNone, ActOrder::kStatic}) {
    const HessianFactor factor = FactorHessian(pool, hessian, {.actorder = order}, "m");
    ASSERT_TRUE(factor.is_usable());
    const std::vector<float> target =
        InputCorrection(pool, factor, error).Apply(pool, inputs.Matrix());
    double mean_diagonal = 0.0;
    for (int64_t i = 0; i < kFeatures; ++i) mean_diagonal += double{hessian.At(i, i)} / kFeatures;
    for (int64_t o = 0; o < kOut; ++o) {
      for (int64_t i = 0; i < kFeatures; ++i) {  // ((t - w) (H + l I))_i = (w C^T)_i
        double left = 0.0, right = 0.0;
        for (int64_t k = 0; k < kFeatures; ++k) {
          const auto at = static_cast<size_t>(o * kFeatures + k);
          const double h = double{hessian.At(std::min(i, k), std::max(i, k))} +
                           (i == k ? 0.01 * mean_diagonal : 0.0);
          left += (double{target[at]} - double{ToFloat(inputs.weight[at])}) * h;
          right += double{ToFloat(inputs.weight[at])} *
                   double{error.moment_IM[static_cast<size_t>(i * kFeatures + k)]};
        }
        EXPECT_NEAR(left, right, 2e-4 * mean_diagonal);
      }
    }
  }
}

TEST(InputCorrection, BringsOutputsNearerToThoseOfTheUnquantisedModel) {
  ThreadPool pool(2);
  const Inputs inputs(3);
  const HessianFactor factor = FactorHessian(pool, inputs.H(pool), {}, "m");
  const std::vector<float> target =
      InputCorrection(pool, factor, inputs.Error(pool)).Apply(pool, inputs.Matrix());
  EXPECT_LT(inputs.OutputErrorOf(target), 0.1 * inputs.OutputErrorOf(AsFloat(inputs.weight)));
}

TEST(InputCorrection, IsTheSameFromErrorsOfOutputs) {
  ThreadPool pool(2);
  const Inputs inputs(6);
  std::vector<float> error_TO;  // w (x* - x)
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t o = 0; o < kOut; ++o) {
      double sum = 0.0;
      for (int64_t i = 0; i < kFeatures; ++i) {
        const auto at = static_cast<size_t>(t * kFeatures + i);
        sum += double{ToFloat(inputs.weight[static_cast<size_t>(o * kFeatures + i)])} *
               (double{ToFloat(inputs.reference[at])} - double{ToFloat(inputs.x[at])});
      }
      error_TO.push_back(static_cast<float>(sum));
    }
  }
  InputError error{.in_features = kFeatures, .num_outputs = kOut};
  AccumulateOutputError(pool, inputs.x.data(), error_TO.data(), kTokens, error);
  const HessianFactor factor = FactorHessian(pool, inputs.H(pool), {}, "m");
  const std::vector<float> target =
      InputCorrection(pool, factor, error).Apply(pool, inputs.Matrix());
  const std::vector<float> expected =
      InputCorrection(pool, factor, inputs.Error(pool)).Apply(pool, inputs.Matrix());
  for (size_t at = 0; at < target.size(); ++at) EXPECT_NEAR(target[at], expected[at], 1e-5);
}

TEST(InputCorrection, LeavesTheWeightWhereInputsAgree) {
  ThreadPool pool(2);
  const Inputs inputs(4);
  InputError error{.in_features = kFeatures};
  AccumulateInputError(pool, inputs.x.data(), MatrixRows<BFloat16>{inputs.x.data(), kFeatures},
                       kTokens, error);
  const HessianFactor factor = FactorHessian(pool, inputs.H(pool), {}, "m");
  EXPECT_EQ(InputCorrection(pool, factor, error).Apply(pool, inputs.Matrix()),
            AsFloat(inputs.weight));
}

TEST(InputCorrection, ThreadCountChangesNoBit) {
  const Inputs inputs(5);
  std::vector<std::vector<float>> targets;
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    const HessianFactor factor = FactorHessian(pool, inputs.H(pool), {}, "m");
    targets.push_back(
        InputCorrection(pool, factor, inputs.Error(pool)).Apply(pool, inputs.Matrix()));
  }
  EXPECT_EQ(targets[0], targets[1]);
  EXPECT_EQ(targets[0], targets[2]);
}

}  // namespace
}  // namespace quatrain
