#include "rl/advantage.h"

#include <cmath>

#include "base/error.h"

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

// Calls body(batch, begin, end) for the trained tokens [begin, end) of each sequence, which stand
// together at its end.
template <class Body>
void ForEachResponse(std::span<std::vector<TrainBatch>> steps, Body body) {
  for (std::vector<TrainBatch>& step : steps) {
    for (TrainBatch& batch : step) {
      for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
        auto begin = static_cast<size_t>(batch.cu_seqlens[s]);
        const auto end = static_cast<size_t>(batch.cu_seqlens[s + 1]);
        while (begin < end && batch.loss_mask_T[begin] == 0) ++begin;
        if (begin < end) body(batch, begin, end);
      }
    }
  }
}

// -kl_coef times the KL of old against reference, by token of a response.
std::vector<double> KlPenalties(const TokenAdvantageOptions& options, const TrainBatch& batch,
                                size_t begin, size_t end) {
  std::vector<double> penalties(end - begin, 0.0);
  if (options.kl_coef == 0.0) return penalties;
  if (batch.old_logprobs_T.empty() || batch.ref_logprobs_T.empty()) {
    throw Error(ErrorCode::kUsage,
                {.where = "--kl-coef",
                 .what = "the KL penalty needs old and reference log-probabilities",
                 .todo = "Drop --skip-actor-forward-only, or --kl-coef"});
  }
  for (size_t t = begin; t < end; ++t) {
    const KlEstimate kl =
        EstimateKl(options.kl_type, batch.old_logprobs_T[t], batch.ref_logprobs_T[t]);
    penalties[t - begin] = -options.kl_coef * kl.value;
  }
  return penalties;
}

void Whiten(std::span<std::vector<TrainBatch>> steps) {
  constexpr double kVarianceEpsilon = 1e-8;
  double sum = 0, squares = 0, count = 0;
  const auto for_each_token = [&](auto body) {
    ForEachResponse(steps, [&](TrainBatch& batch, size_t begin, size_t end) {
      for (size_t t = begin; t < end; ++t) body(batch.advantages_T[t]);
    });
  };
  for_each_token([&](float advantage) {
    sum += advantage;
    count += 1;
  });
  const double mean = count > 0 ? sum / count : 0.0;
  for_each_token([&](float advantage) { squares += (advantage - mean) * (advantage - mean); });
  const double variance = count > 1 ? squares / (count - 1) : 0.0;
  const double scale = 1.0 / std::sqrt(variance + kVarianceEpsilon);
  for_each_token(
      [&](float& advantage) { advantage = static_cast<float>((advantage - mean) * scale); });
}

}  // namespace

AdvantageEstimator ParseAdvantageEstimator(const std::string& name) {
  if (name == "grpo") return AdvantageEstimator::kGrpo;
  if (name == "gspo") return AdvantageEstimator::kGspo;
  if (name == "reinforce_plus_plus") return AdvantageEstimator::kReinforcePlusPlus;
  if (name == "reinforce_plus_plus_baseline") return AdvantageEstimator::kReinforcePlusPlusBaseline;
  throw Error(ErrorCode::kUsage,
              {.where = "--advantage-estimator",
               .what = "unknown estimator",
               .expected = "grpo, gspo, reinforce_plus_plus or reinforce_plus_plus_baseline",
               .found = "'" + name + "'"});
}

bool NeedsTokenAdvantages(const TokenAdvantageOptions& options) {
  return options.normalize || (options.estimator != AdvantageEstimator::kGrpo &&
                               options.estimator != AdvantageEstimator::kGspo);
}

void AssignTokenAdvantages(const TokenAdvantageOptions& options,
                           std::span<std::vector<TrainBatch>> steps) {
  if (!NeedsTokenAdvantages(options)) return;
  ForEachResponse(steps, [&](TrainBatch& batch, size_t begin, size_t end) {
    if (options.estimator == AdvantageEstimator::kReinforcePlusPlus) {
      const std::vector<double> penalties = KlPenalties(options, batch, begin, end);
      double value = batch.advantages_T[end - 1];  // the reward, at the last token
      for (size_t t = end; t-- > begin;) {
        value = penalties[t - begin] + (t + 1 == end ? value : options.gamma * value);
        batch.advantages_T[t] = static_cast<float>(value);
      }
    } else if (options.estimator == AdvantageEstimator::kReinforcePlusPlusBaseline) {
      const std::vector<double> penalties = KlPenalties(options, batch, begin, end);
      for (size_t t = begin; t < end; ++t) {
        batch.advantages_T[t] = static_cast<float>(batch.advantages_T[t] + penalties[t - begin]);
      }
    }
  });
  Whiten(steps);
}

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
