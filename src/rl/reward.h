// Rewards: a pure function of the response and the label, which never hides why a reward is 0.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"

namespace quatrain {

enum class RewardVerdict {
  kCorrect,
  kWrong,
  kNoAnswer,    // nothing that counts as a final answer was found in the response
  kUnparsable,  // an answer was found, but it or the label cannot be compared
};

// "correct", "wrong", "no_answer" or "unparsable".
std::string_view RewardVerdictName(RewardVerdict verdict);

struct RewardResult {
  double reward = 0;
  RewardVerdict verdict = RewardVerdict::kNoAnswer;
  std::string answer;  // as extracted from the response; empty if none was
};

// What a reward may look at; borrowed.
struct RewardInput {
  const std::string& response;  // decoded; </think> must not have been skipped in decoding
  const std::string& label;
  const Json& prompt;    // as in the data file: text or messages
  const Json& metadata;  // of the row; null if it has none
  uint64_t key = 0;      // of the sample's draws: what random rewards draw by
};

// Thread-safe: Score changes nothing.
class Reward {
 public:
  virtual ~Reward() = default;
  virtual RewardResult Score(const RewardInput& input) const = 0;
  // How many calls of Score are worth making at once, where it waits for others.
  virtual int concurrency() const { return 1; }
};

struct RewardOptions {
  std::string rm_type = "deepscaler";
  std::string reward_key = {};  // which of a reward's numbers counts; empty: its first
  std::string rm_url = {};      // of remote_rm
  double rm_timeout = 120;      // seconds for a request
  int rm_max_attempts = 10;
  double rm_backoff = 1;  // seconds before the second attempt, doubled for each further one
};

// --rm-type. Error kUsage listing the known types otherwise.
//   math           1 if the response's last \boxed{} equals the label (math_answer.h), else 0; a
//                  label may be boxed itself
//   deepscaler     the same, reading only behind the last </think>, or else between the first and
//                  the second "###Response"; a response with neither has no answer
//   dapo           text_rewards.h: "Answer: ..."; score 1 or -1, acc 1 or 0 by --reward-key
//   f1, gpqa       text_rewards.h
//   random         0 or 1; deterministic_random is the same: ours is drawn by the sample's key, so
//                  a seed always gives the same rewards
//   remote_rm      remote_reward.h
//   boxed_TYPE     TYPE of the content of the last \boxed{}, of "" if there is none
// Source: THUDM/slime:slime/rollout/rm_hub.
// Unlike the field's string rules, mathematical answers compare by value: 14/2 equals 7.
std::unique_ptr<Reward> MakeReward(const RewardOptions& options);

}  // namespace quatrain
