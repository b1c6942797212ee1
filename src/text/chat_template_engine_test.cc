// The Jinja engine behind chat_template.h, with the patches of cmake/patches, against Jinja2
// itself.
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "base/file.h"
#include "base/json.h"
#include "text/chat_template.h"

namespace quatrain {
namespace {

const std::string kGoldens = std::string(QT_SOURCE_DIR) + "/tests/goldens/chat/";

ChatTemplate Parse(const std::string& source) {
  return ChatTemplate::FromSource(source, "test.jinja", Json::object());
}

std::string Render(const std::string& source, const Json& variables = Json::object()) {
  return Parse(source).Render(Json::array(), {.tools = nullptr, .kwargs = variables});
}

// What Error says, or nothing.
std::string FailureOf(const std::string& source, const Json& variables = Json::object()) {
  try {
    Render(source, variables);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

std::string Repeat(const std::string& unit, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += unit;
  return text;
}

TEST(ChatTemplateEngine, AgreesWithJinja2OnEveryCase) {
  Json variables = ParseJson(ReadFile(kGoldens + "engine_variables.json"), "engine_variables.json");
  const Json messages = variables["messages"];
  variables.erase("messages");
  std::ifstream file(kGoldens + "engine.jsonl");
  int num_cases = 0;
  for (std::string line; std::getline(file, line); ++num_cases) {
    const Json row = ParseJson(line, "engine.jsonl");
    Json answer;
    try {
      answer["text"] =
          Parse(row["template"]).Render(messages, {.tools = nullptr, .kwargs = variables});
    } catch (const TemplateRefusal& refusal) {
      answer["error"] = refusal.message();
    } catch (const Error&) {
      answer["fails"] = true;
    }
    for (const char* outcome : {"text", "error", "fails"}) {
      EXPECT_EQ(answer.value(outcome, Json()), row.value(outcome, Json())) << line;
    }
  }
  EXPECT_GT(num_cases, 350);
}

TEST(ChatTemplateEngine, KeepsWholeNumbersOf64Bits) {
  const Json variables = {{"u", UINT64_MAX}, {"i", INT64_MIN}, {"p", (int64_t{1} << 53) + 1}};
  EXPECT_EQ(Render("{{ u }} {{ i }} {{ p + 1 }} {{ [u, i] | tojson }}", variables),
            "18446744073709551615 -9223372036854775808 9007199254740994 "
            "[18446744073709551615, -9223372036854775808]");
  EXPECT_NE(FailureOf("{{ 9223372036854775807 + 1 }}").find("beyond 64 bits"), std::string::npos);
}

TEST(ChatTemplateEngine, DeepNestingIsAnErrorAndNoCrash) {
  const std::pair<std::string, std::string> brackets[] = {
      {"(", ")"}, {"[", "]"},  {"{'a': ", "}"},     {"not ", ""},
      {"- ", ""}, {"f(", ")"}, {"1 if 1 else ", ""}};
  for (const auto& [open, close] : brackets) {
    const std::string source = "{{ " + Repeat(open, 20000) + "1" + Repeat(close, 20000) + " }}";
    EXPECT_NE(FailureOf(source).find("nested deeper"), std::string::npos) << open;
  }
  EXPECT_NE(FailureOf(Repeat("{% if 1 %}", 20000)).find("nested deeper"), std::string::npos);
  EXPECT_NE(FailureOf("{% if 1 %}" + Repeat("{% elif 1 %}", 20000) + "{% endif %}").find("nested"),
            std::string::npos);
  EXPECT_EQ(Render("{{ " + Repeat("(", 40) + "1" + Repeat(")", 40) + " }}"), "1");
}

TEST(ChatTemplateEngine, AMacroThatCallsItselfForEverIsAnErrorAndNoCrash) {
  const std::string message =
      FailureOf("{% macro m(x) %}{% if x %}{{ m(x + 1) }}{% endif %}{% endmacro %}{{ m(1) }}");
  EXPECT_NE(message.find("recursion deeper"), std::string::npos) << message;
  // The count is per rendering: the next one starts anew.
  EXPECT_EQ(
      Render("{% macro m(x) %}{{ x }}{% if x %}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(9) }}"),
      "9876543210");
}

TEST(ChatTemplateEngine, ChainsOfOperatorsMayBeLongButNotEndless) {
  EXPECT_EQ(Render("{{ 0" + Repeat(" + 1", 200) + " }}"), "200");
  for (const char* link : {" + 1", " * 1", " ** 1", " and 1", " or 0", " | int", ".x", "[0]"}) {
    const std::string message = FailureOf("{{ 1" + Repeat(link, 300000) + " }}");
    EXPECT_NE(message.find("operators in a row"), std::string::npos) << link;
  }
}

TEST(ChatTemplateEngine, DeepValuesAreAnError) {
  Json deep = 1;
  for (int i = 0; i < 400; ++i) deep = Json::array({deep});
  EXPECT_NE(FailureOf("{{ deep }}", {{"deep", deep}}).find("nested too deeply"), std::string::npos);
}

TEST(ChatTemplateEngine, EveryTruncationParsesOrIsAnError) {
  const std::string whole = ReadFile(kGoldens + "templates/qwen3_style.jinja");
  for (size_t size = 0; size < whole.size(); size += 7) {
    try {
      Parse(whole.substr(0, size));
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("test.jinja"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace quatrain
