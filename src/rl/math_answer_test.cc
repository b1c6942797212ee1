#include "rl/math_answer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

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
  EXPECT_EQ(NormalizeMathAnswer("5\\,\\mathrm{cm}^2"), "5");
  EXPECT_EQ(NormalizeMathAnswer("12 cm"), "12");
  EXPECT_EQ(NormalizeMathAnswer("2 \\text{ and } 3"), "2 , 3");
  EXPECT_EQ(NormalizeMathAnswer("x \\in [0, 1]"), "[0, 1]");
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

constexpr const char* kPairs = "/tests/goldens/answers/pairs.tsv";

const char* NameOf(AnswerComparison comparison) {
  if (comparison == AnswerComparison::kSame) return "same";
  return comparison == AnswerComparison::kDifferent ? "different" : "unknown";
}

TEST(CompareMathAnswers, JudgesTheTableOfPairsBothWaysRound) {
  std::ifstream file(std::string(QT_SOURCE_DIR) + kPairs);
  ASSERT_TRUE(file.is_open());
  int num_pairs = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    const size_t first = line.find('\t'), second = line.find('\t', first + 1);
    ASSERT_NE(second, std::string::npos) << line;
    const std::string expected = line.substr(0, first), b = line.substr(second + 1);
    const std::string a = line.substr(first + 1, second - first - 1);
    EXPECT_EQ(NameOf(CompareMathAnswers(a, b)), expected) << a << "   " << b;
    EXPECT_EQ(NameOf(CompareMathAnswers(b, a)), expected) << b << "   " << a;
    EXPECT_EQ(NameOf(CompareMathAnswers(a, a)), std::string("same")) << a;
    ++num_pairs;
  }
  EXPECT_GE(num_pairs, 200);
}

TEST(CompareMathAnswers, EmptyIsNeverTheSame) {
  EXPECT_EQ(CompareMathAnswers("", ""), AnswerComparison::kNotComparable);
  EXPECT_EQ(CompareMathAnswers("$", "%"), AnswerComparison::kNotComparable);
  EXPECT_EQ(CompareMathAnswers("", "7"), AnswerComparison::kNotComparable);
}

}  // namespace
}  // namespace quatrain
