// What a rollout looked like, in numbers, under the field's names where it has them.
#pragma once

#include <map>
#include <span>
#include <string>

#include "base/json.h"
#include "rl/sample.h"

namespace quatrain {

struct RolloutMetrics {
  int64_t num_samples = 0;
  double raw_reward = 0;         // mean reward before normalisation
  double response_len_mean = 0;  // tokens, the stop token included
  double response_len_median = 0;
  int64_t response_len_max = 0;
  int64_t response_len_min = 0;
  double truncated_ratio = 0;   // share of samples stopped by the length limit
  double rollout_logprobs = 0;  // mean over samples of the mean over tokens, nats
  // Groups of two or more samples that all got one reward, by that reward to one decimal ("0",
  // "0.5", "1"); these have no gradient. "0" and "1" are always present.
  std::map<std::string, int64_t> zero_std_counts;
  int64_t num_correct = 0, num_wrong = 0, num_no_answer = 0, num_unparsable = 0;

  // Adds "rollout/raw_reward", "rollout/response_len/mean", "rollout/zero_std/count_0",
  // "rollout/num_no_answer", ...
  void AppendTo(Json& row) const;
};

// Samples of one group_id stand together; at least one sample.
RolloutMetrics ComputeRolloutMetrics(std::span<const Sample> samples);

// Logs why nothing can be learned if no sample got a reward: answers wrong, not found or not
// comparable, or cut off.
void WarnIfNothingRewarded(const RolloutMetrics& metrics);

}  // namespace quatrain
