#include "text/python_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace quatrain {
namespace {

using Texts = std::vector<std::string>;

TEST(PythonText, FloatsPrintAsRepr) {
  const std::pair<double, const char*> cases[] = {
      {2.0, "2.0"},
      {-0.0, "-0.0"},
      {0.1 + 0.2, "0.30000000000000004"},
      {1e15, "1000000000000000.0"},
      {1e16, "1e+16"},
      {1e22, "1e+22"},
      {123456789012345680.0, "1.2345678901234568e+17"},
      {1e-4, "0.0001"},
      {2.5e-5, "2.5e-05"},
      {-3e-9, "-3e-09"},
      {5e-324, "5e-324"},
      {1.7976931348623157e308, "1.7976931348623157e+308"},
      {-INFINITY, "-inf"},
      {NAN, "nan"}};
  for (const auto& [value, text] : cases) EXPECT_EQ(PythonFloatRepr(value), text);
}

TEST(PythonText, StringsPrintAsRepr) {
  EXPECT_EQ(PythonStringRepr("a\"b"), "'a\"b'");
  EXPECT_EQ(PythonStringRepr("it's"), "\"it's\"");
  EXPECT_EQ(PythonStringRepr("'\"\\"), "'\\'\"\\\\'");
  EXPECT_EQ(PythonStringRepr("\n\t\r\x01\x7F\xC2\xA0\xE2\x80\x8B\xC3\xA9"),
            "'\\n\\t\\r\\x01\\x7f\\xa0\\u200b\xC3\xA9'");
  EXPECT_EQ(PythonStringRepr("\xF3\xA0\x80\x81\xF0\x9F\x98\x80"), "'\\U000e0001\xF0\x9F\x98\x80'");
}

TEST(PythonText, StripKnowsUnicodeSpaces) {
  const std::string spaces = " \t\n\x0B\x0C\r\x1C\x1F\xC2\x85\xC2\xA0\xE3\x80\x80\xE2\x80\xA8";
  EXPECT_EQ(PythonStrip(spaces + "a b" + spaces, StripSide::kBoth), "a b");
  EXPECT_EQ(PythonStrip(spaces + "a", StripSide::kRight), spaces + "a");
  EXPECT_EQ(PythonStrip("a" + spaces, StripSide::kLeft), "a" + spaces);
  EXPECT_EQ(PythonStrip("\xE2\x80\x8B", StripSide::kBoth), "\xE2\x80\x8B");  // no space: U+200B
  EXPECT_EQ(PythonStrip("xyaxy\xC3\xA9", StripSide::kBoth, "\xC3\xA9yx"), "a");
  EXPECT_EQ(PythonStrip(" a ", StripSide::kBoth, ""), " a ");
  EXPECT_EQ(PythonStrip(spaces, StripSide::kBoth), "");
}

TEST(PythonText, SplitsFromBothSides) {
  EXPECT_EQ(PythonSplit("a,b,,c", ",", -1), (Texts{"a", "b", "", "c"}));
  EXPECT_EQ(PythonSplit("a,b,,c", ",", 1), (Texts{"a", "b,,c"}));
  EXPECT_EQ(PythonSplit("", ",", -1), Texts{""});
  EXPECT_EQ(PythonSplit("  a \xC2\xA0 b  c ", std::nullopt, -1), (Texts{"a", "b", "c"}));
  EXPECT_EQ(PythonSplit("  a  b  c ", std::nullopt, 1), (Texts{"a", "b  c "}));
  EXPECT_EQ(PythonSplit("  ", std::nullopt, -1), Texts{});
  EXPECT_EQ(PythonSplitFromRight("a,b,c", ",", 1), (Texts{"a,b", "c"}));
  EXPECT_EQ(PythonSplitFromRight(" a  b  c ", std::nullopt, 1), (Texts{" a  b", "c"}));
  EXPECT_EQ(PythonSplitLines("a\r\nb\n\nc\xE2\x80\xA8", LineEnds::kDrop),
            (Texts{"a", "b", "", "c"}));
  EXPECT_EQ(PythonSplitLines("a\r\nb", LineEnds::kKeep), (Texts{"a\r\n", "b"}));
}

TEST(PythonText, ReplacesWithALimit) {
  EXPECT_EQ(PythonReplace("aaa", "a", "bb", -1), "bbbbbb");
  EXPECT_EQ(PythonReplace("aaa", "a", "bb", 2), "bbbba");
  EXPECT_EQ(PythonReplace("aaa", "a", "bb", 0), "aaa");
  EXPECT_EQ(PythonReplace("\xC3\xA9x", "", "-", -1), "-\xC3\xA9-x-");
  EXPECT_EQ(PythonReplace("ab", "", "-", 2), "-a-b");
}

TEST(PythonText, ChangesCaseBeyondAscii) {
  EXPECT_EQ(PythonUpper("stra\xC3\x9F"
                        "e \xC3\xA9"),
            "STRASSE \xC3\x89");
  EXPECT_EQ(PythonLower("\xC3\x89"
                        "A"),
            "\xC3\xA9"
            "a");
  EXPECT_EQ(PythonCapitalize("\xC3\xA9"
                             "COLE x"),
            "\xC3\x89"
            "cole x");
  EXPECT_EQ(PythonTitle("they're o-k"), "They'Re O-K");
}

TEST(PythonText, ClassifiesTexts) {
  EXPECT_TRUE(
      IsPythonClass("\xC3\xA9"
                    "a",
                    TextClass::kAlpha));
  EXPECT_FALSE(IsPythonClass("", TextClass::kAlpha));
  EXPECT_TRUE(IsPythonClass("12\xD9\xA3", TextClass::kDigit));
  EXPECT_TRUE(IsPythonClass("a1", TextClass::kAlnum));
  EXPECT_TRUE(IsPythonClass(" \xE3\x80\x80", TextClass::kSpace));
  EXPECT_TRUE(IsPythonClass("a1-", TextClass::kLower));
  EXPECT_FALSE(IsPythonClass("1-", TextClass::kLower));
  EXPECT_TRUE(IsPythonClass("A\xC3\x89 1", TextClass::kUpper));
}

TEST(PythonText, ParsesNumbersOrNothing) {
  EXPECT_EQ(PythonParseInt(" +0012_3\n"), "123");
  EXPECT_EQ(PythonParseInt("-123456789012345678901234567890"), "-123456789012345678901234567890");
  EXPECT_EQ(PythonParseInt("-0"), "0");
  for (const char* bad : {"", "-", "1.0", "12a", "_1", "1_", "1__2"}) {
    EXPECT_EQ(PythonParseInt(bad), std::nullopt) << bad;
  }
  EXPECT_EQ(PythonParseFloat(" 1.5e3 "), 1500.0);
  EXPECT_EQ(PythonParseFloat("-inf"), -std::numeric_limits<double>::infinity());
  for (const char* bad : {"", "0x10", "nan(1)", "1.5x"}) {
    EXPECT_EQ(PythonParseFloat(bad), std::nullopt) << bad;
  }
}

TEST(PythonText, CountsCodePoints) {
  EXPECT_EQ(NumCodePoints("a\xC3\xA9\xF0\x9F\x98\x80"), 3);
  EXPECT_EQ(TextOfCodePoints(CodePointsOf("a\xC3\xA9\xF0\x9F\x98\x80")),
            "a\xC3\xA9\xF0\x9F\x98\x80");
}

}  // namespace
}  // namespace quatrain
