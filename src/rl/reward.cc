#include "rl/reward.h"

#include <optional>

#include "base/error.h"
#include "rl/math_answer.h"

namespace quatrain {
namespace {

// The part of a response that a verifier reads; nothing if the response never got there.
using AnswerPart = std::optional<std::string_view> (*)(std::string_view response);

std::optional<std::string_view> WholeResponse(std::string_view response) { return response; }

std::optional<std::string_view> BehindThinking(std::string_view response) {
  constexpr std::string_view kThinkEnd = "</think>";
  constexpr std::string_view kResponse = "###Response";
  const size_t think_end = response.rfind(kThinkEnd);
  if (think_end != std::string_view::npos) return response.substr(think_end + kThinkEnd.size());
  const size_t first = response.find(kResponse);
  if (first == std::string_view::npos) return std::nullopt;
  const std::string_view rest = response.substr(first + kResponse.size());
  return rest.substr(0, rest.find(kResponse));
}

class BoxedAnswerReward : public Reward {
 public:
  explicit BoxedAnswerReward(AnswerPart answer_part) : answer_part_(answer_part) {}

  RewardResult Score(const std::string& response_text, const std::string& label) const override {
    const std::optional<std::string_view> part = answer_part_(response_text);
    const std::optional<std::string> answer = part ? LastBoxed(*part) : std::nullopt;
    if (!answer) return {0.0, RewardVerdict::kNoAnswer, ""};
    switch (CompareMathAnswers(*answer, LastBoxed(label).value_or(label))) {
      case AnswerComparison::kSame:
        return {1.0, RewardVerdict::kCorrect, *answer};
      case AnswerComparison::kDifferent:
        return {0.0, RewardVerdict::kWrong, *answer};
      case AnswerComparison::kNotComparable:
        break;
    }
    return {0.0, RewardVerdict::kUnparsable, *answer};
  }

 private:
  AnswerPart answer_part_;
};

}  // namespace

std::string_view RewardVerdictName(RewardVerdict verdict) {
  switch (verdict) {
    case RewardVerdict::kCorrect:
      return "correct";
    case RewardVerdict::kWrong:
      return "wrong";
    case RewardVerdict::kNoAnswer:
      return "no_answer";
    case RewardVerdict::kUnparsable:
      break;
  }
  return "unparsable";
}

std::unique_ptr<Reward> MakeReward(const std::string& rm_type) {
  if (rm_type == "deepscaler") return std::make_unique<BoxedAnswerReward>(&BehindThinking);
  if (rm_type == "math") return std::make_unique<BoxedAnswerReward>(&WholeResponse);
  throw Error(ErrorCode::kUsage, {.where = "--rm-type",
                                  .what = "unknown reward",
                                  .expected = "deepscaler or math",
                                  .found = "'" + rm_type + "'"});
}

}  // namespace quatrain
