// Advantages of a group of samples of one prompt, and which groups are worth training on.
#pragma once

#include <span>
#include <vector>

#include "rl/sample.h"

namespace quatrain {

enum class RewardNormalization {
  kNone,        // --disable-rewards-normalization: the reward itself
  kMean,        // --disable-grpo-std-normalization: reward - group mean
  kMeanAndStd,  // GRPO
};

// (r - mean) / (std + 1e-6) with the unbiased standard deviation of the group; the division is left
// out where std is 0 or the group has one sample, whose advantage is then 0: it teaches nothing.
// Source: GRPO, arXiv:2402.03300 4.1.2.
std::vector<double> GroupAdvantages(std::span<const double> rewards,
                                    RewardNormalization normalization);

// Sets `advantage` of every sample; samples with one group_id stand together.
void AssignAdvantages(std::span<Sample> samples, RewardNormalization normalization);

// The consecutive samples of each group_id.
std::vector<std::span<const Sample>> Groups(std::span<const Sample> samples);

// Dynamic sampling's filter "check_reward_nonzero_std": keep a group whose rewards' standard
// deviation exceeds 1e-8.
bool HasNonzeroRewardStd(std::span<const double> rewards);

}  // namespace quatrain
