#include "rl/reward.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/json.h"

namespace quatrain {
namespace {

RewardResult Score(const RewardOptions& options, const std::string& response,
                   const std::string& label, uint64_t key = 0) {
  return MakeReward(options)->Score({response, label, nullptr, nullptr, key});
}

RewardVerdict Verdict(const char* rm_type, const std::string& response, const std::string& label) {
  const RewardResult result = Score({.rm_type = rm_type}, response, label);
  EXPECT_EQ(result.reward, result.verdict == RewardVerdict::kCorrect ? 1.0 : 0.0) << response;
  return result.verdict;
}

RewardVerdict Deepscaler(const std::string& response, const std::string& label) {
  return Verdict("deepscaler", response, label);
}

TEST(DeepscalerReward, ReadsTheBoxBehindTheThinking) {
  EXPECT_EQ(Deepscaler("<think>x</think> \\boxed{7}", "7"), RewardVerdict::kCorrect);
  EXPECT_EQ(Deepscaler("<think>x</think> \\boxed{7}<|im_end|>", "7"), RewardVerdict::kCorrect);
  EXPECT_EQ(Deepscaler("\\boxed{7}</think> 7", "7"), RewardVerdict::kNoAnswer);
  EXPECT_EQ(Deepscaler("a</think> \\boxed{1} b</think> \\boxed{2}", "2"), RewardVerdict::kCorrect);
  EXPECT_EQ(Deepscaler("\\boxed{7}", "7"), RewardVerdict::kNoAnswer);
  EXPECT_EQ(Deepscaler("", "7"), RewardVerdict::kNoAnswer);
}

TEST(DeepscalerReward, ReadsTheFirstResponseSectionWhereThereIsNoThinking) {
  EXPECT_EQ(Deepscaler("###Response \\boxed{7}", "7"), RewardVerdict::kCorrect);
  EXPECT_EQ(Deepscaler("###Response \\boxed{7}###Response \\boxed{8}", "7"),
            RewardVerdict::kCorrect);
  EXPECT_EQ(Deepscaler("###Response \\boxed{7}</think> none", "7"), RewardVerdict::kNoAnswer);
}

TEST(DeepscalerReward, TellsWrongFromNoAnswerFromUnparsable) {
  EXPECT_EQ(Deepscaler("</think>\\boxed{8}", "7"), RewardVerdict::kWrong);
  EXPECT_EQ(Deepscaler("</think>\\boxed{7", "7"), RewardVerdict::kNoAnswer);
  EXPECT_EQ(Deepscaler("</think>\\boxed{seven}", "7"), RewardVerdict::kUnparsable);
  EXPECT_EQ(Deepscaler("</think>\\boxed{}", "7"), RewardVerdict::kUnparsable);
}

TEST(DeepscalerReward, ALabelMayBeBoxedItself) {
  EXPECT_EQ(Deepscaler("</think>\\boxed{0.5}", "so \\boxed{\\frac{1}{2}}"),
            RewardVerdict::kCorrect);
  EXPECT_EQ(Deepscaler("</think>\\boxed{0.4}", "\\boxed{\\frac{1}{2}}"), RewardVerdict::kWrong);
}

TEST(MathReward, NeedsNoThinking) {
  EXPECT_EQ(Verdict("math", "so \\boxed{7}", "7"), RewardVerdict::kCorrect);
  EXPECT_EQ(Verdict("math", "so 7", "7"), RewardVerdict::kNoAnswer);
}

TEST(Reward, KeepsTheAnswerAsItStoodInTheResponse) {
  EXPECT_EQ(Score({.rm_type = "math"}, "\\boxed{ 1,000 }", "1000").answer, " 1,000 ");
  EXPECT_EQ(Score({.rm_type = "math"}, "none", "1000").answer, "");
}

TEST(MathReward, ComparesExpressionsByValue) {
  EXPECT_EQ(Verdict("math", "\\boxed{\\frac{\\sqrt 8}{2}}", "\\sqrt{2}"), RewardVerdict::kCorrect);
  EXPECT_EQ(Verdict("math", "\\boxed{x = \\pm 2}", "2, -2"), RewardVerdict::kCorrect);
  EXPECT_EQ(Verdict("math", "\\boxed{(x+1)^2}", "x^2+1"), RewardVerdict::kWrong);
}

TEST(DapoReward, GivesAScoreOrAnAccuracyByItsKey) {
  RewardOptions dapo = {.rm_type = "dapo"};
  EXPECT_EQ(Score(dapo, "so\nAnswer: $42$", "42").reward, 1.0);
  EXPECT_EQ(Score(dapo, "so\nAnswer: 41", "42").reward, -1.0);
  EXPECT_EQ(Score(dapo, "no line", "42").reward, -1.0);
  EXPECT_EQ(Score(dapo, "no line", "42").verdict, RewardVerdict::kNoAnswer);
  dapo.reward_key = "score";
  EXPECT_EQ(Score(dapo, "Answer: 41", "42").reward, -1.0);
  dapo.reward_key = "acc";
  EXPECT_EQ(Score(dapo, "Answer: 41", "42").reward, 0.0);
  EXPECT_EQ(Score(dapo, "Answer: 42", "42").reward, 1.0);
  dapo.reward_key = "accuracy";
  EXPECT_THROW(MakeReward(dapo), Error);
  EXPECT_THROW(MakeReward({.rm_type = "math", .reward_key = "acc"}), Error);
}

TEST(RandomReward, DependsOnTheKeyAlone) {
  for (const char* type : {"random", "deterministic_random"}) {
    int num_ones = 0;
    for (uint64_t key = 0; key < 1000; ++key) {
      const double reward = Score({.rm_type = type}, "a", "b", key).reward;
      EXPECT_EQ(reward, Score({.rm_type = type}, "c", "d", key).reward);
      num_ones += reward == 1.0 ? 1 : 0;
    }
    EXPECT_NEAR(num_ones, 500, 65);
  }
}

TEST(BoxedReward, JudgesWhatStandsInTheBox) {
  EXPECT_EQ(Score({.rm_type = "f1"}, "a long story", "red fish").reward, 0.0);
  EXPECT_EQ(Score({.rm_type = "boxed_f1"}, "a long story \\boxed{red fish}", "red fish").reward,
            1.0);
  EXPECT_EQ(Verdict("boxed_gpqa", "Not A. \\boxed{B}", "B"), RewardVerdict::kCorrect);
  EXPECT_EQ(Verdict("boxed_gpqa", "It is B.", "B"), RewardVerdict::kNoAnswer);
  EXPECT_THROW(MakeReward({.rm_type = "boxed_math"}), Error);
  EXPECT_THROW(MakeReward({.rm_type = "boxed_nothing"}), Error);
}

TEST(Reward, AnUnknownTypeListsTheKnownOnes) {
  try {
    MakeReward({.rm_type = "deepscalar"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("deepscaler, math, dapo"), std::string::npos);
  }
}

// Texts of four models, eight prompts each; how many are right is known from where they were made.
TEST(DeepscalerReward, CountsTheRightAnswersOfRealModels) {
  const std::pair<const char*, int> models[] = {
      {"tiny-llama", 7}, {"tiny-qwen3-moe", 7}, {"tiny-deepseek-v3", 7}, {"small-qwen3-moe", 6}};
  for (const auto& [model, expected] : models) {
    std::ifstream file(std::string(QT_SOURCE_DIR) + "/tests/goldens/greedy/" + model + ".jsonl");
    ASSERT_TRUE(file.is_open()) << model;
    int num_rows = 0, num_correct = 0, num_wrong = 0;
    for (std::string line; std::getline(file, line); ++num_rows) {
      const Json row = ParseJson(line, model);
      const RewardVerdict verdict = Deepscaler(row["text"], row["label"]);
      num_correct += verdict == RewardVerdict::kCorrect ? 1 : 0;
      num_wrong += verdict == RewardVerdict::kWrong ? 1 : 0;
    }
    EXPECT_EQ(num_rows, 8) << model;
    EXPECT_EQ(num_correct, expected) << model;
    EXPECT_EQ(num_wrong, 8 - expected) << model;
  }
}

}  // namespace
}  // namespace quatrain
