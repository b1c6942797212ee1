#include "rl/rollout_metrics.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

Sample MakeSample(int64_t group_id, RewardVerdict verdict, size_t length) {
  Sample sample;
  sample.group_id = group_id;
  sample.reward = {verdict == RewardVerdict::kCorrect ? 1.0 : 0.0, verdict, ""};
  sample.completion.token_ids.assign(length, 1);
  sample.completion.rollout_logprobs.assign(length, -0.5f);
  return sample;
}

TEST(RolloutMetrics, CountEveryWayARewardCanBeMissed) {
  std::vector<Sample> samples = {
      MakeSample(0, RewardVerdict::kCorrect, 10),  MakeSample(0, RewardVerdict::kWrong, 20),
      MakeSample(1, RewardVerdict::kNoAnswer, 64), MakeSample(1, RewardVerdict::kUnparsable, 6),
      MakeSample(2, RewardVerdict::kCorrect, 8),   MakeSample(2, RewardVerdict::kCorrect, 12)};
  samples[2].completion.finish_reason = FinishReason::kLength;
  Json row;
  ComputeRolloutMetrics(samples).AppendTo(row);
  EXPECT_DOUBLE_EQ(row["rollout/raw_reward"], 0.5);
  EXPECT_DOUBLE_EQ(row["rollout/response_len/mean"], 20.0);
  EXPECT_DOUBLE_EQ(row["rollout/response_len/median"], 11.0);
  EXPECT_EQ(row["rollout/response_len/max"], 64);
  EXPECT_EQ(row["rollout/response_len/min"], 6);
  EXPECT_DOUBLE_EQ(row["rollout/truncated_ratio"], 1.0 / 6);
  EXPECT_DOUBLE_EQ(row["rollout/rollout_log_probs"], -0.5);
  EXPECT_EQ(row["rollout/zero_std/count_0"], 1);
  EXPECT_EQ(row["rollout/zero_std/count_1"], 1);
  EXPECT_EQ(row["rollout/num_correct"], 3);
  EXPECT_EQ(row["rollout/num_wrong"], 1);
  EXPECT_EQ(row["rollout/num_no_answer"], 1);
  EXPECT_EQ(row["rollout/num_unparsable"], 1);
}

TEST(RolloutMetrics, DoNotCallAGroupOfOneAGroupWithoutSpread) {
  const std::vector<Sample> samples = {MakeSample(0, RewardVerdict::kCorrect, 3)};
  const RolloutMetrics metrics = ComputeRolloutMetrics(samples);
  EXPECT_EQ(metrics.zero_std_counts.at("1"), 0);
  EXPECT_EQ(metrics.response_len_median, 3.0);
}

}  // namespace
}  // namespace quatrain
