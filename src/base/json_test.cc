#include "base/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"

namespace quatrain {
namespace {

std::string MessageOf(std::string_view text) {
  try {
    ParseJson(text, "config.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "no error";
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Json, KeepsKeyOrderAndEveryKindOfValue) {
  const std::string text =
      R"({"z":1,"a":[true,false,null,-2,18446744073709551615,0.5,"x\u00e9\n"],"m":{"":{}},"n":[]})";
  const Json json = ParseJson(text, "f");
  EXPECT_EQ(json.size(), 4u);
  EXPECT_EQ(json.begin().key(), "z");
  EXPECT_EQ(json["a"][4].get<uint64_t>(), 18446744073709551615ull);
  EXPECT_EQ(json["a"][6], "x\xC3\xA9\n");
  EXPECT_EQ(DumpJson(json), text);
  EXPECT_EQ(json, Json::parse(text));
}

TEST(Json, ScalarsAreWholeTexts) {
  EXPECT_EQ(ParseJson(" 7 ", "f"), 7);
  EXPECT_TRUE(ParseJson("null", "f").is_null());
  EXPECT_EQ(ParseJson("\"a\"", "f"), "a");
}

TEST(Json, ADuplicateKeyIsAnErrorWithItsPlace) {
  const std::string message = MessageOf("{\n  \"a\": 1,\n  \"b\": {\"x\": 1, \"x\": 2}\n}");
  EXPECT_TRUE(Contains(message, "config.json: line 3, column 19")) << message;
  EXPECT_TRUE(Contains(message, "the key \"x\" appears twice")) << message;
  EXPECT_TRUE(Contains(MessageOf(R"({"a":1,"\u0061":2})"), "\"a\" appears twice"));
  // The same key in different objects is fine.
  EXPECT_EQ(ParseJson(R"({"a":{"a":[{"a":1},{"a":2}]}})", "f")["a"]["a"][1]["a"], 2);
}

TEST(Json, ABrokenTextNamesFileLineAndColumn) {
  EXPECT_TRUE(
      Contains(MessageOf("{\"a\": 1,\n \"b\": tru}"), "config.json: line 2, column 10: not JSON"));
  EXPECT_TRUE(Contains(MessageOf("[1, 2"), "config.json: line 1, column 6: not JSON"));
  EXPECT_TRUE(Contains(MessageOf(""), "there is no text"));
  EXPECT_TRUE(Contains(MessageOf(" \n "), "there is no text"));
  EXPECT_TRUE(Contains(MessageOf("{} x"), "not JSON"));
  EXPECT_TRUE(Contains(MessageOf("[NaN]"), "not JSON"));
  EXPECT_TRUE(Contains(MessageOf("[1e999]"), "not JSON"));
  EXPECT_TRUE(Contains(MessageOf("[\"\xFF\"]"), "UTF-8"));
}

TEST(Json, ALineOfALongerFileKeepsItsNumber) {
  try {
    ParseJson("{\"a\": }", "rows.jsonl", 17);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_TRUE(Contains(error.what(), "rows.jsonl: line 17, column 7: not JSON")) << error.what();
  }
}

TEST(Json, HostileNestingIsRefusedNotFollowed) {
  EXPECT_TRUE(Contains(MessageOf(std::string(1000000, '[')), "nested too deeply"));
  const std::string deep = std::string(512, '[') + std::string(512, ']');
  EXPECT_EQ(DumpJson(ParseJson(deep, "f")), deep);
}

TEST(Json, AVocabularyOfManyKeysIsReadInLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200000; ++i) text += fmt::format("{}\"token{}\":{}", i == 0 ? "" : ",", i, i);
  text += "}";
  const Json json = ParseJson(text, "f");  // the map's own insertion would need 2e10 comparisons
  EXPECT_EQ(json.size(), 200000u);
  EXPECT_EQ((--json.end()).key(), "token199999");
}

TEST(Json, DumpIsAsciiAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(DumpJson(Json("\xC3\xA9\xF0\x9F\x98\x80")), "\"\\u00e9\\ud83d\\ude00\"");
  EXPECT_EQ(DumpJson(Json("a\xFFz")), "\"a\\ufffdz\"");
}

TEST(Json, DoublesRoundTripBitForBit) {
  for (const double value :
       {0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123456789, 3.0}) {
    const Json back = ParseJson(DumpJson(Json(value)), "f");
    ASSERT_TRUE(back.is_number_float()) << value;
    EXPECT_EQ(back.get<double>(), value);
    EXPECT_EQ(std::signbit(back.get<double>()), std::signbit(value));
  }
  EXPECT_EQ(DumpJson(Json(std::numeric_limits<double>::quiet_NaN())), "null");
}

}  // namespace
}  // namespace quatrain
