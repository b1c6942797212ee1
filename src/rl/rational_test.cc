#include "rl/rational.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

bool Same(std::string_view a, std::string_view b) {
  const std::optional<Rational> x = ParseRational(a);
  const std::optional<Rational> y = ParseRational(b);
  EXPECT_TRUE(x.has_value()) << a;
  EXPECT_TRUE(y.has_value()) << b;
  return x && y && SameValue(*x, *y);
}

TEST(Rational, EqualValuesAreEqualInEveryForm) {
  EXPECT_TRUE(Same("7", "007"));
  EXPECT_TRUE(Same("7", "+7"));
  EXPECT_TRUE(Same("7", "7.000"));
  EXPECT_TRUE(Same("7", "14/2"));
  EXPECT_TRUE(Same("0.5", "1/2"));
  EXPECT_TRUE(Same(".5", "\\frac{1}{2}"));
  EXPECT_TRUE(Same("5.", "5"));
  EXPECT_TRUE(Same("\\frac12", "\\frac{2}{4}"));
  EXPECT_TRUE(Same("\\frac{0.5}{1.5}", "1/3"));
  EXPECT_TRUE(Same("-0", "0"));
  EXPECT_TRUE(Same("0/5", "-0.00"));
}

TEST(Rational, DifferentValuesAreDifferent) {
  EXPECT_FALSE(Same("7", "-7"));
  EXPECT_FALSE(Same("1/3", "0.3333333333333333"));
  EXPECT_FALSE(Same("12", "1.2"));
  EXPECT_FALSE(Same("10", "100"));
}

TEST(Rational, SignsStandBeforeNumbersAndInsideFractions) {
  EXPECT_TRUE(Same("-\\frac{1}{2}", "-0.5"));
  EXPECT_TRUE(Same("\\frac{-1}{2}", "-0.5"));
  EXPECT_TRUE(Same("\\frac{1}{-2}", "-0.5"));
  EXPECT_TRUE(Same("-\\frac{-1}{2}", "0.5"));
  EXPECT_TRUE(Same("- 3", "-3"));
  EXPECT_FALSE(ParseRational("--3"));
}

TEST(Rational, ThousandsSeparatorsStandBeforeGroupsOfThree) {
  EXPECT_TRUE(Same("1,234,567", "1234567"));
  EXPECT_TRUE(Same("1 234 567.5", "1234567.5"));
  EXPECT_TRUE(Same("-12,345", "-12345"));
  EXPECT_FALSE(ParseRational("1,23"));
  EXPECT_FALSE(ParseRational("1234,567"));
  EXPECT_FALSE(ParseRational("1,2345"));
  EXPECT_FALSE(ParseRational("2, 3"));
}

TEST(Rational, MixedNumbersAddTheirParts) {
  EXPECT_TRUE(Same("3 1/2", "3.5"));
  EXPECT_TRUE(Same("-3 1/2", "-3.5"));
  EXPECT_TRUE(Same("2\\frac{3}{4}", "2.75"));
  EXPECT_FALSE(ParseRational("2\\frac{-3}{4}"));
  EXPECT_FALSE(ParseRational("2.5 1/2"));
}

TEST(Rational, WhatIsNoRationalIsRefused) {
  for (const char* text : {"",
                           " ",
                           "-",
                           ".",
                           "x",
                           "1/0",
                           "\\frac{1}{0}",
                           "3x",
                           "1e5",
                           "2^{10}",
                           "\\frac{1}{2",
                           "\\frac{}{2}",
                           "\\frac",
                           "1/2/3",
                           "3 4",
                           "(5)",
                           "1..2",
                           "\\sqrt{4}",
                           "\\frac{1}{2}3",
                           "1/-2"}) {
    EXPECT_FALSE(ParseRational(text)) << text;
  }
}

TEST(Rational, LongNumbersStayExact) {
  const std::string big(300, '9');
  EXPECT_TRUE(Same(big + "/" + big, "1"));
  EXPECT_FALSE(Same(big + "/1" + std::string(299, '0'), "10"));
  EXPECT_TRUE(Same("1" + std::string(400, '0') + "/1" + std::string(399, '0'), "10"));
  EXPECT_FALSE(ParseRational(std::string(kMaxRationalDigits + 1, '1')));
}

}  // namespace
}  // namespace quatrain
