#include "rl/reward.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/json.h"

namespace quatrain {
namespace {

RewardVerdict Verdict(const char* rm_type, const std::string& response, const std::string& label) {
  const RewardResult result = MakeReward(rm_type)->Score(response, label);
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
  EXPECT_EQ(MakeReward("math")->Score("\\boxed{ 1,000 }", "1000").answer, " 1,000 ");
  EXPECT_EQ(MakeReward("math")->Score("none", "1000").answer, "");
}

TEST(Reward, AnUnknownTypeListsTheKnownOnes) {
  try {
    MakeReward("deepscalar");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("deepscaler or math"), std::string::npos);
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
