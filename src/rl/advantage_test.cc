#include "rl/advantage.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace quatrain {
namespace {

TEST(GroupAdvantages, AreNormalisedByTheUnbiasedStandardDeviation) {
  const std::vector<double> rewards = {1, 0, 0, 0, 1, 0, 1, 1};  // mean 0.5, variance 8 * 0.25 / 7
  const std::vector<double> advantages = GroupAdvantages(rewards, RewardNormalization::kMeanAndStd);
  const double expected = 0.5 / (std::sqrt(2.0 / 7) + 1e-6);
  for (size_t i = 0; i < rewards.size(); ++i) {
    EXPECT_NEAR(advantages[i], rewards[i] == 1 ? expected : -expected, 1e-12);
  }
}

TEST(GroupAdvantages, OfEqualRewardsAreZero) {
  const std::vector<double> rewards = {1, 1, 1};
  EXPECT_EQ(GroupAdvantages(rewards, RewardNormalization::kMeanAndStd),
            std::vector<double>({0, 0, 0}));
}

TEST(GroupAdvantages, OfAGroupOfOneAreZero) {
  const std::vector<double> rewards = {1};
  EXPECT_EQ(GroupAdvantages(rewards, RewardNormalization::kMeanAndStd), std::vector<double>({0}));
}

TEST(GroupAdvantages, CanLeaveOutTheDivisionOrEverything) {
  const std::vector<double> rewards = {2, 0, 1};
  EXPECT_EQ(GroupAdvantages(rewards, RewardNormalization::kMean), std::vector<double>({1, -1, 0}));
  EXPECT_EQ(GroupAdvantages(rewards, RewardNormalization::kNone), rewards);
}

TEST(AssignAdvantages, NormalisesEachGroupByItself) {
  std::vector<Sample> samples(5);
  const int64_t groups[] = {0, 0, 1, 1, 1};
  const double rewards[] = {1, 0, 1, 1, 1};
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i].group_id = groups[i];
    samples[i].reward.reward = rewards[i];
  }
  AssignAdvantages(samples, RewardNormalization::kMeanAndStd);
  const double expected = 0.5 / (std::sqrt(0.5) + 1e-6);
  EXPECT_FLOAT_EQ(samples[0].advantage, static_cast<float>(expected));
  EXPECT_FLOAT_EQ(samples[1].advantage, static_cast<float>(-expected));
  for (size_t i = 2; i < 5; ++i) EXPECT_EQ(samples[i].advantage, 0.0f);
  const std::vector<std::span<const Sample>> runs = Groups(samples);
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].size(), 2u);
  EXPECT_EQ(runs[1].size(), 3u);
}

TEST(HasNonzeroRewardStd, IsFalseForGroupsThatTeachNothing) {
  EXPECT_TRUE(HasNonzeroRewardStd(std::vector<double>{1, 0}));
  EXPECT_FALSE(HasNonzeroRewardStd(std::vector<double>{1, 1}));
  EXPECT_FALSE(HasNonzeroRewardStd(std::vector<double>{1}));
  EXPECT_FALSE(HasNonzeroRewardStd(std::vector<double>{0.1, 0.1 + 1e-9}));
}

// Two micro-batches: a prompt of 1 and responses of 3 and 2 tokens; then one of 1.
std::vector<std::vector<TrainBatch>> Steps(float first, float second, float third) {
  TrainBatch two, one;
  two.cu_seqlens = {0, 4, 7};
  two.loss_mask_T = {0, 1, 1, 1, 0, 1, 1};
  two.advantages_T = {0, first, first, first, 0, second, second};
  two.old_logprobs_T = {0, -1, -2, -3, 0, -1, -1};
  two.ref_logprobs_T = {0, -1.5f, -1.5f, -3, 0, -2, -1};
  one.cu_seqlens = {0, 2};
  one.loss_mask_T = {0, 1};
  one.advantages_T = {0, third};
  one.old_logprobs_T = {0, -2};
  one.ref_logprobs_T = {0, -1};
  return {{two}, {one}};
}

std::vector<double> Whitened(const std::vector<double>& values) {
  double mean = 0, variance = 0;
  for (const double v : values) mean += v / static_cast<double>(values.size());
  for (const double v : values) {
    variance += (v - mean) * (v - mean) / (static_cast<double>(values.size()) - 1);
  }
  std::vector<double> whitened;
  for (const double v : values) whitened.push_back((v - mean) / std::sqrt(variance + 1e-8));
  return whitened;
}

void ExpectAdvantages(const std::vector<std::vector<TrainBatch>>& steps,
                      const std::vector<double>& expected) {
  const std::vector<float>& two = steps[0][0].advantages_T;
  const std::vector<float>& one = steps[1][0].advantages_T;
  const std::vector<float> found = {two[1], two[2], two[3], two[5], two[6], one[1]};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-6) << i;
  EXPECT_EQ(two[0], 0.0f);
}

TEST(TokenAdvantages, ReinforcePlusPlusDiscountsPenalisedRewardsToTheirStart) {
  auto steps = Steps(1, 0, 2);
  const TokenAdvantageOptions options{.estimator = AdvantageEstimator::kReinforcePlusPlus,
                                      .kl_coef = 0.1,
                                      .kl_type = KlLossType::kK1,
                                      .gamma = 0.5};
  AssignTokenAdvantages(options, steps);
  // k1 by token: .5, -.5, 0; 1, 0; -1. Rewards by token: -.05, .05, 1; -.1, 0; 2.1.
  ExpectAdvantages(steps, Whitened({-0.05 + 0.5 * (0.05 + 0.5 * 1), 0.05 + 0.5, 1, -0.1, 0, 2.1}));
}

TEST(TokenAdvantages, TheBaselineFormPenalisesEachTokenAlone) {
  auto steps = Steps(0.5f, -0.5f, 0);
  const TokenAdvantageOptions options{.estimator = AdvantageEstimator::kReinforcePlusPlusBaseline,
                                      .kl_coef = 0.1,
                                      .kl_type = KlLossType::kK2};
  AssignTokenAdvantages(options, steps);
  // k2 by token: .125, .125, 0; .5, 0; .5.
  ExpectAdvantages(steps, Whitened({0.4875, 0.4875, 0.5, -0.55, -0.5, -0.05}));
}

TEST(TokenAdvantages, GrpoIsLeftAloneUnlessAskedToNormalise) {
  auto steps = Steps(1, -1, 0.5f);
  AssignTokenAdvantages({.kl_coef = 0.1}, steps);
  ExpectAdvantages(steps, {1, 1, 1, -1, -1, 0.5});
  AssignTokenAdvantages({.normalize = true}, steps);
  ExpectAdvantages(steps, Whitened({1, 1, 1, -1, -1, 0.5}));
}

TEST(TokenAdvantages, AKlPenaltyWithoutLogprobsIsWrongUse) {
  auto steps = Steps(1, 0, 2);
  steps[0][0].old_logprobs_T.clear();
  EXPECT_THROW(AssignTokenAdvantages(
                   {.estimator = AdvantageEstimator::kReinforcePlusPlus, .kl_coef = 0.1}, steps),
               Error);
}

TEST(TokenAdvantages, EstimatorsHaveTheFieldsNames) {
  EXPECT_EQ(ParseAdvantageEstimator("gspo"), AdvantageEstimator::kGspo);
  EXPECT_THROW(ParseAdvantageEstimator("ppo"), Error);
}

}  // namespace
}  // namespace quatrain
