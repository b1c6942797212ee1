#include "cli/option_checks.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

// What the check says to a value; empty if it passes.
std::string Answer(CLI::Validator check, const std::string& value) {
  std::string text = value;
  return check(text);
}

TEST(OptionChecks, TheRightNumbersPass) {
  for (const char* value : {"1", "0.5", "1e-9", "99999999999"})
    EXPECT_EQ(Answer(Positive(), value), "");
  EXPECT_EQ(Answer(NonNegative(), "0"), "");
  EXPECT_EQ(Answer(Between(1e-6, 1.0), "1"), "");
  EXPECT_EQ(Answer(Between(1e-6, 1.0), "0.000001"), "");
}

TEST(OptionChecks, OthersAreToldWhatWasExpected) {
  for (const char* value : {"0", "-1", "nan", "inf", "-inf", "x", "", "1x"}) {
    EXPECT_EQ(Answer(Positive(), value),
              fmt::format("expected a number above 0, found '{}'", value));
  }
  EXPECT_EQ(Answer(NonNegative(), "-0.5"), "expected a number from 0 up, found '-0.5'");
  EXPECT_EQ(Answer(NonNegative(), "nan"), "expected a number from 0 up, found 'nan'");
  EXPECT_EQ(Answer(Between(0, 1024), "1025"), "expected a number from 0 to 1024, found '1025'");
  EXPECT_EQ(Answer(Between(1e-6, 1.0), "nan"), "expected a number from 1e-06 to 1, found 'nan'");
}

}  // namespace
}  // namespace quatrain
