#include "rl/advantage.h"

#include <gtest/gtest.h>

#include <cmath>

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

}  // namespace
}  // namespace quatrain
