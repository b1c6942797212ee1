#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "text/tokenizer.h"

namespace quatrain {
namespace {

const std::string kRoot = QT_SOURCE_DIR;
const std::string kModelDir = kRoot + "/examples/models/tiny-llama";
const std::string kGoldens = kRoot + "/tests/goldens/chat/";

std::vector<Json> ReadCases(const std::string& name) {
  std::ifstream file(kGoldens + name);
  std::vector<Json> cases;
  for (std::string line; std::getline(file, line);) cases.push_back(ParseJson(line, name));
  return cases;
}

TEST(ChatTemplate, RendersTheModelsTemplateAsTransformersDoes) {
  const ChatTemplate chat_template = ChatTemplate::Load(kModelDir);
  const Tokenizer tokenizer = Tokenizer::Load(kModelDir);
  const std::vector<Json> cases = ReadCases("model_template.jsonl");
  ASSERT_EQ(cases.size(), 80u);
  for (const Json& row : cases) {
    ChatRenderOptions options;
    options.add_generation_prompt = row["add_generation_prompt"];
    const std::string text = chat_template.Render(row["messages"], options);
    EXPECT_EQ(text, row["text"].get<std::string>());
    EXPECT_EQ(tokenizer.Encode(text), row["ids"].get<std::vector<int32_t>>()) << row.dump();
  }
}

TEST(ChatTemplate, AFailureIsToldInOneLine) {
  const Json messages = Json::array({{{"role", "user"}, {"content", "x"}}});
  for (const char* source : {"{{ messages[5].content }}", "{{ 1 / 0 }}", "a\n{{ x.y.z }}\nb"}) {
    try {
      ChatTemplate::FromSource(source, "t.jinja", Json::object()).Render(messages, {});
      ADD_FAILURE() << source;
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      EXPECT_NE(text.find("t.jinja"), std::string::npos);
      EXPECT_NE(text.find("line "), std::string::npos) << text;
    }
  }
}

TEST(ChatTemplate, RendersLargerTemplatesAsTransformersDoes) {
  const std::vector<Json> cases = ReadCases("templates.jsonl");
  ASSERT_EQ(cases.size(), 82u);
  for (const Json& row : cases) {
    const std::string name = row["template"];
    const ChatTemplate chat_template =
        ChatTemplate::LoadWithTemplate(kModelDir, kGoldens + "templates/" + name);
    const ChatRenderOptions options = {
        .tools = row["tools"],
        .kwargs = row["kwargs"],
        .add_generation_prompt = row["add_generation_prompt"].get<bool>()};
    try {
      const std::string text = chat_template.Render(row["messages"], options);
      ASSERT_TRUE(row.contains("text")) << row.dump();
      EXPECT_EQ(text, row["text"].get<std::string>()) << row.dump();
    } catch (const TemplateRefusal& refusal) {
      ASSERT_TRUE(row.contains("error")) << row.dump() << refusal.what();
      EXPECT_EQ(refusal.message(), row["error"].get<std::string>());
    }
  }
}

}  // namespace
}  // namespace quatrain
