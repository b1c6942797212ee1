#include "rl/advantage.h"

#include <cmath>

namespace quatrain {
namespace {

constexpr double kStdEpsilon = 1e-6;    // THUDM/slime: GRPO reward normalisation
constexpr double kMinRewardStd = 1e-8;  // THUDM/slime: check_reward_nonzero_std

double Mean(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

// Unbiased; 0 for fewer than two values.
double Std(std::span<const double> values) {
  if (values.size() < 2) return 0.0;
  const double mean = Mean(values);
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

// Calls body(begin, end) for each run of equal group ids.
template <class Body>
void ForEachGroup(std::span<const Sample> samples, Body body) {
  for (size_t begin = 0; begin < samples.size();) {
    size_t end = begin + 1;
    while (end < samples.size() && samples[end].group_id == samples[begin].group_id) ++end;
    body(begin, end);
    begin = end;
  }
}

}  // namespace

std::vector<double> GroupAdvantages(std::span<const double> rewards,
                                    RewardNormalization normalization) {
  std::vector<double> advantages(rewards.begin(), rewards.end());
  if (normalization == RewardNormalization::kNone) return advantages;
  const double mean = Mean(rewards);
  const double std = normalization == RewardNormalization::kMeanAndStd ? Std(rewards) : 0.0;
  for (double& advantage : advantages) {
    advantage -= mean;
    if (std > 0) advantage /= std + kStdEpsilon;
  }
  return advantages;
}

void AssignAdvantages(std::span<Sample> samples, RewardNormalization normalization) {
  ForEachGroup(samples, [&](size_t begin, size_t end) {
    std::vector<double> rewards;
    for (size_t i = begin; i < end; ++i) rewards.push_back(samples[i].reward.reward);
    const std::vector<double> advantages = GroupAdvantages(rewards, normalization);
    for (size_t i = begin; i < end; ++i) {
      samples[i].advantage = static_cast<float>(advantages[i - begin]);
    }
  });
}

std::vector<std::span<const Sample>> Groups(std::span<const Sample> samples) {
  std::vector<std::span<const Sample>> groups;
  ForEachGroup(samples, [&](size_t begin, size_t end) {
    groups.push_back(samples.subspan(begin, end - begin));
  });
  return groups;
}

bool HasNonzeroRewardStd(std::span<const double> rewards) { return Std(rewards) > kMinRewardStd; }

}  // namespace quatrain
