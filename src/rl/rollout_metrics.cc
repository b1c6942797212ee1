#include "rl/rollout_metrics.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "rl/advantage.h"

namespace quatrain {
namespace {

void CountVerdict(RewardVerdict verdict, RolloutMetrics& metrics) {
  switch (verdict) {
    case RewardVerdict::kCorrect:
      ++metrics.num_correct;
      break;
    case RewardVerdict::kWrong:
      ++metrics.num_wrong;
      break;
    case RewardVerdict::kNoAnswer:
      ++metrics.num_no_answer;
      break;
    case RewardVerdict::kUnparsable:
      ++metrics.num_unparsable;
      break;
  }
}

double MeanLogprob(const Completion& completion) {
  double sum = 0;
  for (const float logprob : completion.rollout_logprobs) sum += logprob;
  return sum / static_cast<double>(std::max<size_t>(completion.rollout_logprobs.size(), 1));
}

void SummariseLengths(std::vector<int64_t> lengths, RolloutMetrics& metrics) {
  std::sort(lengths.begin(), lengths.end());
  const size_t n = lengths.size();
  double sum = 0;
  for (const int64_t length : lengths) sum += static_cast<double>(length);
  metrics.response_len_mean = sum / static_cast<double>(n);
  metrics.response_len_median = 0.5 * static_cast<double>(lengths[(n - 1) / 2] + lengths[n / 2]);
  metrics.response_len_min = lengths.front();
  metrics.response_len_max = lengths.back();
}

void CountZeroStdGroups(std::span<const Sample> samples, RolloutMetrics& metrics) {
  metrics.zero_std_counts = {{"0", 0}, {"1", 0}};
  for (const std::span<const Sample> group : Groups(samples)) {
    const double reward = group[0].reward.reward;
    const bool all_equal = std::all_of(group.begin(), group.end(), [&](const Sample& sample) {
      return sample.reward.reward == reward;
    });
    if (group.size() < 2 || !all_equal) continue;
    const double rounded = std::round(reward * 10) / 10 + 0.0;  // + 0.0: no "-0"
    ++metrics.zero_std_counts[fmt::format("{:g}", rounded)];
  }
}

}  // namespace

RolloutMetrics ComputeRolloutMetrics(std::span<const Sample> samples) {
  QT_CHECK(!samples.empty());
  RolloutMetrics metrics;
  metrics.num_samples = static_cast<int64_t>(samples.size());
  std::vector<int64_t> lengths;
  int64_t num_truncated = 0;
  for (const Sample& sample : samples) {
    metrics.raw_reward += sample.reward.reward;
    metrics.rollout_logprobs += MeanLogprob(sample.completion);
    num_truncated += sample.completion.finish_reason == FinishReason::kLength ? 1 : 0;
    lengths.push_back(sample.response_length());
    CountVerdict(sample.reward.verdict, metrics);
  }
  const auto n = static_cast<double>(samples.size());
  metrics.raw_reward /= n;
  metrics.rollout_logprobs /= n;
  metrics.truncated_ratio = static_cast<double>(num_truncated) / n;
  SummariseLengths(std::move(lengths), metrics);
  CountZeroStdGroups(samples, metrics);
  return metrics;
}

void RolloutMetrics::AppendTo(Json& row) const {
  row["rollout/raw_reward"] = raw_reward;
  row["rollout/response_len/mean"] = response_len_mean;
  row["rollout/response_len/median"] = response_len_median;
  row["rollout/response_len/max"] = response_len_max;
  row["rollout/response_len/min"] = response_len_min;
  row["rollout/truncated_ratio"] = truncated_ratio;
  row["rollout/rollout_log_probs"] = rollout_logprobs;
  for (const auto& [reward, count] : zero_std_counts) {
    row["rollout/zero_std/count_" + reward] = count;
  }
  row["rollout/num_correct"] = num_correct;
  row["rollout/num_wrong"] = num_wrong;
  row["rollout/num_no_answer"] = num_no_answer;
  row["rollout/num_unparsable"] = num_unparsable;
}

void WarnIfNothingRewarded(const RolloutMetrics& metrics) {
  if (metrics.num_correct > 0 || metrics.raw_reward != 0) return;
  Log().warn(
      "no sample of this rollout got a reward: of {} answers {} are "
      "wrong, {} not found, {} not "
      "comparable with the label; {:.0f} % of the responses were cut "
      "off at the length limit",
      metrics.num_samples, metrics.num_wrong, metrics.num_no_answer, metrics.num_unparsable,
      100 * metrics.truncated_ratio);
}

}  // namespace quatrain
