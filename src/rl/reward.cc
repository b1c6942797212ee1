#include "rl/reward.h"

#include <optional>

#include "base/error.h"
#include "base/random.h"
#include "rl/math_answer.h"
#include "rl/remote_reward.h"
#include "rl/text_rewards.h"

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

  RewardResult Score(const RewardInput& input) const override {
    const std::optional<std::string_view> part = answer_part_(input.response);
    const std::optional<std::string> answer = part ? LastBoxed(*part) : std::nullopt;
    if (!answer) return {0.0, RewardVerdict::kNoAnswer, ""};
    switch (CompareMathAnswers(*answer, LastBoxed(input.label).value_or(input.label))) {
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

// A function of the response, the label and the metadata.
class TextReward : public Reward {
 public:
  using Function = RewardResult (*)(const RewardInput& input);
  explicit TextReward(Function function) : function_(function) {}
  RewardResult Score(const RewardInput& input) const override { return function_(input); }

 private:
  Function function_;
};

class DapoReward : public Reward {
 public:
  explicit DapoReward(const std::string& reward_key) : is_accuracy_(reward_key == "acc") {
    if (reward_key.empty() || reward_key == "score" || reward_key == "acc") return;
    throw Error(ErrorCode::kUsage, {.where = "--reward-key",
                                    .what = "dapo has no such number",
                                    .expected = "score (1 or -1) or acc (1 or 0)",
                                    .found = "'" + reward_key + "'"});
  }

  RewardResult Score(const RewardInput& input) const override {
    RewardResult result = ScoreDapo(input.response, input.label);
    if (result.verdict != RewardVerdict::kCorrect) result.reward = is_accuracy_ ? 0.0 : -1.0;
    return result;
  }

 private:
  bool is_accuracy_;
};

class RandomReward : public Reward {
 public:
  RewardResult Score(const RewardInput& input) const override {
    constexpr uint64_t kStream = 0x7265776172640000;
    const bool is_one = HashBits(input.key, kStream, 0) % 2 == 1;
    return {is_one ? 1.0 : 0.0, is_one ? RewardVerdict::kCorrect : RewardVerdict::kWrong, ""};
  }
};

class BoxedReward : public Reward {
 public:
  explicit BoxedReward(std::unique_ptr<Reward> inner) : inner_(std::move(inner)) {}

  RewardResult Score(const RewardInput& input) const override {
    const std::optional<std::string> boxed = LastBoxed(input.response);
    const std::string response = boxed.value_or("");
    RewardResult result =
        inner_->Score({response, input.label, input.prompt, input.metadata, input.key});
    if (!boxed) result.verdict = RewardVerdict::kNoAnswer;
    return result;
  }
  int concurrency() const override { return inner_->concurrency(); }

 private:
  std::unique_ptr<Reward> inner_;
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

std::unique_ptr<Reward> MakeReward(const RewardOptions& options) {
  constexpr std::string_view kBoxed = "boxed_";
  const std::string& type = options.rm_type;
  const bool reads_the_box = type.ends_with("deepscaler") || type.ends_with("math");
  if (type.starts_with(kBoxed) && !reads_the_box) {
    RewardOptions inner = options;
    inner.rm_type = type.substr(kBoxed.size());
    return std::make_unique<BoxedReward>(MakeReward(inner));
  }
  if (type == "dapo") return std::make_unique<DapoReward>(options.reward_key);
  if (type == "remote_rm") return MakeRemoteReward(options);
  if (!options.reward_key.empty()) {
    throw Error(ErrorCode::kUsage, {.where = "--reward-key",
                                    .what = "--rm-type " + type + " gives one number",
                                    .expected = "no key, or --rm-type dapo or remote_rm"});
  }
  if (type == "deepscaler") return std::make_unique<BoxedAnswerReward>(&BehindThinking);
  if (type == "math") return std::make_unique<BoxedAnswerReward>(&WholeResponse);
  if (type == "f1") return std::make_unique<TextReward>(&ScoreF1);
  if (type == "gpqa") return std::make_unique<TextReward>(&ScoreGpqa);
  if (type == "random" || type == "deterministic_random") return std::make_unique<RandomReward>();
  throw Error(ErrorCode::kUsage,
              {.where = "--rm-type",
               .what = "unknown reward",
               .expected = "deepscaler, math, dapo, f1, gpqa, random, deterministic_random or "
                           "remote_rm; boxed_ before one that does not read a box by itself",
               .found = "'" + type + "'"});
}

}  // namespace quatrain
