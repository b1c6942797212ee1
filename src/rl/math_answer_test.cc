#include "rl/math_answer.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

TEST(LastBoxed, TakesTheLastBoxWithBalancedBraces) {
  EXPECT_EQ(LastBoxed("\\boxed{1} then \\boxed{\\frac{1}{2}}."), "\\frac{1}{2}");
  EXPECT_EQ(LastBoxed("\\boxed{}"), "");
  EXPECT_EQ(LastBoxed("\\boxed{ 7 }x"), " 7 ");
}

TEST(LastBoxed, FindsNothingWhereNoBoxCloses) {
  EXPECT_EQ(LastBoxed("the answer is 7"), std::nullopt);
  EXPECT_EQ(LastBoxed("\\boxed{1} and \\boxed{2"), std::nullopt);
  EXPECT_EQ(LastBoxed("\\boxed"), std::nullopt);
  EXPECT_EQ(LastBoxed("\\boxed 7"), std::nullopt);
  EXPECT_EQ(LastBoxed(""), std::nullopt);
}

TEST(NormalizeMathAnswer, StripsWhatDoesNotChangeTheValue) {
  EXPECT_EQ(NormalizeMathAnswer(" \\$1{,}000 "), "1,000");
  EXPECT_EQ(NormalizeMathAnswer("50\\%"), "50");
  EXPECT_EQ(NormalizeMathAnswer("90^\\circ"), "90");
  EXPECT_EQ(NormalizeMathAnswer("\\left( x, y \\right)"), "( x, y )");
  EXPECT_EQ(NormalizeMathAnswer("\\dfrac{1}{2}"), "\\frac{1}{2}");
  EXPECT_EQ(NormalizeMathAnswer("x = 5"), "5");
  EXPECT_EQ(NormalizeMathAnswer("speed = 5"), "speed = 5");
  EXPECT_EQ(NormalizeMathAnswer("5\\text{ cm}"), "5");
  EXPECT_EQ(NormalizeMathAnswer("\\text{Tuesday}"), "Tuesday");
  EXPECT_EQ(NormalizeMathAnswer("\\sqrt3"), "\\sqrt{3}");
  EXPECT_EQ(NormalizeMathAnswer("\xE2\x88\x92"
                                "5"),
            "-5");
  EXPECT_EQ(NormalizeMathAnswer("1\n\t 2"), "1 2");
}

TEST(CompareMathAnswers, NumbersCompareByValue) {
  EXPECT_EQ(CompareMathAnswers("14/2", "7"), AnswerComparison::kSame);
  EXPECT_EQ(CompareMathAnswers("1,000", "1000"), AnswerComparison::kSame);
  EXPECT_EQ(CompareMathAnswers("0.50", "\\dfrac{1}{2}"), AnswerComparison::kSame);
  EXPECT_EQ(CompareMathAnswers("x=-3", "-3.0"), AnswerComparison::kSame);
  EXPECT_EQ(CompareMathAnswers("8", "7"), AnswerComparison::kDifferent);
  EXPECT_EQ(CompareMathAnswers("3 1/2", "31/2"), AnswerComparison::kDifferent);
}

TEST(CompareMathAnswers, ExpressionsCompareBySpellingOnly) {
  EXPECT_EQ(CompareMathAnswers("x + 1", "x+1"), AnswerComparison::kSame);
  EXPECT_EQ(CompareMathAnswers("\\sqrt{2}", "\\sqrt2"), AnswerComparison::kSame);
  EXPECT_EQ(CompareMathAnswers("1+x", "x+1"), AnswerComparison::kNotComparable);
  EXPECT_EQ(CompareMathAnswers("\\sqrt{4}", "2"), AnswerComparison::kNotComparable);
  EXPECT_EQ(CompareMathAnswers("2", "\\sqrt{4}"), AnswerComparison::kNotComparable);
}

TEST(CompareMathAnswers, EmptyIsNeverTheSame) {
  EXPECT_EQ(CompareMathAnswers("", ""), AnswerComparison::kNotComparable);
  EXPECT_EQ(CompareMathAnswers("$", "%"), AnswerComparison::kNotComparable);
  EXPECT_EQ(CompareMathAnswers("", "7"), AnswerComparison::kNotComparable);
}

}  // namespace
}  // namespace quatrain
