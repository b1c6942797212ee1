// Rewards: a pure function of the response and the label, which never hides why a reward is 0.
#pragma once

#include <memory>
#include <string>
#include <string_view>

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

// Thread-safe: Score changes nothing.
class Reward {
 public:
  virtual ~Reward() = default;
  // `response_text` is the decoded completion; </think> must not have been skipped in decoding.
  virtual RewardResult Score(const std::string& response_text, const std::string& label) const = 0;
};

// --rm-type. Error kUsage listing the known types otherwise.
//   math        1 if the response's last \boxed{} equals the label (math_answer.h), else 0; a
//               label may be boxed itself
//   deepscaler  the same, reading only behind the last </think>, or else between the first and the
//               second "###Response"; a response with neither has no answer
// Source: THUDM/slime:slime/rollout/rm_hub.
// Unlike the field's string rules, numbers compare by value: 14/2 equals 7.
std::unique_ptr<Reward> MakeReward(const std::string& rm_type);

}  // namespace quatrain
