#include "rl/text_rewards.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

RewardVerdict Dapo(const std::string& response, const std::string& label) {
  return ScoreDapo(response, label).verdict;
}

TEST(ScoreDapo, ReadsTheLastAnswerLineOfTheLastCharacters) {
  EXPECT_EQ(Dapo("Answer: 7", "7"), RewardVerdict::kCorrect);
  EXPECT_EQ(Dapo("aNsWeR \t :\n 7\nmore", "7"), RewardVerdict::kCorrect);
  EXPECT_EQ(Dapo("Answer: 7\nAnswer: 8", "8"), RewardVerdict::kCorrect);
  EXPECT_EQ(Dapo("Answer: 7\nAnswer: 8", "7"), RewardVerdict::kWrong);
  EXPECT_EQ(Dapo("the answer is 7", "7"), RewardVerdict::kNoAnswer);
  EXPECT_EQ(Dapo("Answer:", "7"), RewardVerdict::kNoAnswer);
  EXPECT_EQ(Dapo("Answer: 7\n" + std::string(292, 'x'), "7"), RewardVerdict::kNoAnswer);
  EXPECT_EQ(Dapo("Answer: 7\n" + std::string(290, 'x'), "7"), RewardVerdict::kCorrect);
  std::string wide;  // 290 characters of two bytes
  for (int i = 0; i < 290; ++i) wide += "\xC3\xA9";
  EXPECT_EQ(Dapo("Answer: 7\n" + wide, "7"), RewardVerdict::kCorrect);
  EXPECT_EQ(ScoreDapo("Answer: $7$ apples", "7").answer, "$7$ apples");
}

TEST(ScoreDapo, LabelsAreWholeNumbers) {
  EXPECT_EQ(Dapo("Answer: 7", "7.0"), RewardVerdict::kCorrect);
  EXPECT_EQ(Dapo("Answer: 7.0", "7"), RewardVerdict::kWrong) << "as in the field";
  EXPECT_EQ(Dapo("Answer: x+1", "x + 1"), RewardVerdict::kCorrect);
}

TEST(NormalizeDapoAnswer, FollowsMinerva) {
  const std::pair<const char*, const char*> cases[] = {
      {"x = 5", "5"},           {"1,234", "1234"},
      {"$12$", "12"},           {"so $12$.", "12"},
      {"\\$12", "12"},          {"12 cm", "12"},
      {"90^\\circ", "90"},      {"\\text{five}", "five"},
      {"\\boxed{12}", "12"},    {"\\frac12", "\\frac{1}{2}"},
      {"\\sqrt2", "\\sqrt{2}"}, {"\\frac{1}{2}", "\\frac{1}{2}"},
      {"12 dollars", "12"},     {"1{,}000", "1000"},
      {"12<|im_end|>", "12"},   {"an 8", "8"},
  };
  for (const auto& [answer, expected] : cases)
    EXPECT_EQ(NormalizeDapoAnswer(answer), expected) << answer;
}

RewardResult Judge(RewardResult (*score)(const RewardInput&), const std::string& response,
                   const std::string& label, const Json& metadata = nullptr) {
  return score({response, label, nullptr, metadata, 0});
}

TEST(ScoreF1, CountsCommonWordsAsBags) {
  EXPECT_EQ(Judge(&ScoreF1, "The red fish.", "a RED fish").reward, 1.0);
  EXPECT_EQ(Judge(&ScoreF1, "The red fish.", "a RED fish").verdict, RewardVerdict::kCorrect);
  // 2 of 4 words given, 2 of 2 wanted: P = 1/2, R = 1.
  EXPECT_DOUBLE_EQ(Judge(&ScoreF1, "one small red fish", "red fish").reward, 2.0 / 3);
  // 1 of 2, 1 of 3.
  EXPECT_DOUBLE_EQ(Judge(&ScoreF1, "red red", "red green blue").reward, 0.4);
  EXPECT_EQ(Judge(&ScoreF1, "cat", "dog").reward, 0.0);
  EXPECT_EQ(Judge(&ScoreF1, "", "dog").verdict, RewardVerdict::kNoAnswer);
  EXPECT_EQ(Judge(&ScoreF1, "yes it is", "yes").reward, 0.0);
  EXPECT_EQ(Judge(&ScoreF1, "Yes!", "yes").reward, 1.0);
}

TEST(ScoreGpqa, FindsTheLetterThatWasChosen) {
  const auto verdict = [](const char* response, const char* label) {
    return Judge(&ScoreGpqa, response, label).verdict;
  };
  EXPECT_EQ(verdict("The answer is B.", "B"), RewardVerdict::kCorrect);
  EXPECT_EQ(verdict("Answer: (c)", "C"), RewardVerdict::kCorrect);
  EXPECT_EQ(verdict("Option D", "d"), RewardVerdict::kCorrect);
  EXPECT_EQ(verdict("A looks good, but C is correct.", "C"), RewardVerdict::kCorrect);
  EXPECT_EQ(verdict("Not A. Rather D.", "D"), RewardVerdict::kCorrect);
  EXPECT_EQ(verdict("answer A</think> answer B", "A"), RewardVerdict::kWrong);
  EXPECT_EQ(verdict("the answer is a mystery", "A"), RewardVerdict::kNoAnswer);
  EXPECT_EQ(verdict("", "A"), RewardVerdict::kNoAnswer);
}

TEST(ScoreGpqa, KnowsTheChoicesOfTheMetadata) {
  const Json metadata = {{"choices", {"red fish", "blue fish", "no fish"}}};
  EXPECT_EQ(Judge(&ScoreGpqa, "Answer: B", "blue fish", metadata).reward, 1.0);
  EXPECT_EQ(Judge(&ScoreGpqa, "Answer: B", "1", metadata).reward, 1.0) << "from 0";
  EXPECT_EQ(Judge(&ScoreGpqa, "Answer: A", "blue fish", metadata).reward, 0.0);
  EXPECT_EQ(Judge(&ScoreGpqa, "It is the Blue Fish!", "B", metadata).reward, 1.0);
  EXPECT_EQ(Judge(&ScoreGpqa, "Answer: D", "B", metadata).verdict, RewardVerdict::kNoAnswer)
      << "no such choice";
  const Json other = {{"choices", {"x", "y"}}, {"correct_letter", "b"}};
  EXPECT_EQ(Judge(&ScoreGpqa, "Answer: B", "x", other).reward, 1.0);
}

}  // namespace
}  // namespace quatrain
