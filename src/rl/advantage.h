// Advantages of a group of samples of one prompt, and which groups are worth training on.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "rl/sample.h"
#include "train/policy_loss.h"

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

enum class AdvantageEstimator {
  kGrpo,                       // every token has its sample's group-normalised reward
  kGspo,                       // the same; the ratio is the sequence's (train/policy_loss.h)
  kReinforcePlusPlus,          // discounted returns of KL-penalised rewards, whitened
  kReinforcePlusPlusBaseline,  // reward - group mean, KL-penalised, whitened
};

// "grpo", "gspo", "reinforce_plus_plus" or "reinforce_plus_plus_baseline"; Error kUsage otherwise.
AdvantageEstimator ParseAdvantageEstimator(const std::string& name);

struct TokenAdvantageOptions {
  AdvantageEstimator estimator = AdvantageEstimator::kGrpo;
  double kl_coef = 0.0;  // of the penalty in the reward; GRPO and GSPO ignore it
  KlLossType kl_type = KlLossType::kK1;
  double gamma = 1.0;
  bool normalize = false;  // --normalize-advantages: whiten, whatever the estimator
};

// Whether AssignTokenAdvantages changes anything.
bool NeedsTokenAdvantages(const TokenAdvantageOptions& options);

// From what the sample gave each of its tokens (batch.advantages_T: the reward, or the reward less
// its group's mean) to the advantages of tokens, over the response tokens of all micro-batches of
// the rollout. kl_t = KL estimate of old against reference, 0 where kl_coef is 0.
//   reinforce_plus_plus: r_t = -kl_coef kl_t, plus the sample's reward at its last token;
//     G_t = r_t + gamma G_(t+1); advantages = G whitened
//   reinforce_plus_plus_baseline: (reward - group mean) - kl_coef kl_t, whitened
// Whitening is (a - mean) / sqrt(variance + 1e-8) with the unbiased variance. Sources: REINFORCE++
// arXiv:2501.03262 section 3; the field's distributed_masked_whiten. Error kUsage if the KL penalty
// lacks old or reference log-probabilities.
void AssignTokenAdvantages(const TokenAdvantageOptions& options,
                           std::span<std::vector<TrainBatch>> steps);

// Sets `advantage` of every sample; samples with one group_id stand together.
void AssignAdvantages(std::span<Sample> samples, RewardNormalization normalization);

// The consecutive samples of each group_id.
std::vector<std::span<const Sample>> Groups(std::span<const Sample> samples);

enum class GroupFilter {
  kNone,
  kNonzeroRewardStd,  // --dynamic-sampling-filter-path ...check_reward_nonzero_std
};

// Dynamic sampling's filter "check_reward_nonzero_std": keep a group whose rewards' standard
// deviation exceeds 1e-8.
bool HasNonzeroRewardStd(std::span<const double> rewards);

}  // namespace quatrain
