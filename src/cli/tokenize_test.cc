#include "cli/tokenize.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace quatrain {
namespace {

const std::string kRoot = QT_SOURCE_DIR;

class TokenizeTest : public testing::Test {
 protected:
  TokenizeTest()
      : dir_(std::filesystem::path(testing::TempDir()) /
             (std::string("tokenize_") +
              testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  ~TokenizeTest() override { std::filesystem::remove_all(dir_); }

  // Runs the command on `input`; the records are in the output file even when it throws.
  void Run(const std::string& input, std::vector<std::string> flags = {}) {
    std::ofstream(dir_ / "in.jsonl") << input;
    CLI::App app;
    AddTokenizeCommand(app);
    std::vector<std::string> arguments = {
        "tokenize", "--model=" + kRoot + "/examples/models/tiny-llama",
        "--input=" + (dir_ / "in.jsonl").string(), "--output=" + (dir_ / "out.jsonl").string()};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    std::reverse(arguments.begin(), arguments.end());
    app.parse(std::move(arguments));
  }

  std::vector<Json> Records() {
    std::ifstream file(dir_ / "out.jsonl");
    std::vector<Json> records;
    for (std::string line; std::getline(file, line);) records.push_back(ParseJson(line, "output"));
    return records;
  }

  std::filesystem::path dir_;
};

TEST_F(TokenizeTest, AnswersTextsWithTheirIds) {
  Run(ReadFile(kRoot + "/tests/goldens/tokenizer/encode.jsonl"));
  const std::vector<Json> records = Records();
  ASSERT_EQ(records.size(), 338u);
  std::ifstream file(kRoot + "/tests/goldens/tokenizer/encode.jsonl");
  std::string line;
  for (const Json& record : records) {
    ASSERT_TRUE(std::getline(file, line));
    EXPECT_EQ(record["ids"], ParseJson(line, "encode.jsonl")["ids"]) << line;
  }
}

TEST_F(TokenizeTest, AnswersMessagesWithTheRenderedTextAndItsIds) {
  const std::string goldens = kRoot + "/tests/goldens/chat/";
  Run(ReadFile(goldens + "model_template.jsonl"));
  std::ifstream file(goldens + "model_template.jsonl");
  std::string line;
  for (const Json& record : Records()) {
    ASSERT_TRUE(std::getline(file, line));
    const Json row = ParseJson(line, "model_template.jsonl");
    EXPECT_EQ(record["text"], row["text"]);
    EXPECT_EQ(record["ids"], row["ids"]);
  }
  EXPECT_FALSE(std::getline(file, line));
}

TEST_F(TokenizeTest, ATemplateThatRefusesIsAnAnswerAndNoFailure) {
  std::ofstream(dir_ / "refuse.jinja")
      << "{{ raise_exception('no \\'' ~ messages[0].role ~ '\\'') }}";
  Run(R"({"messages": [{"role": "tool"}]})", {"--chat-template", (dir_ / "refuse.jinja").string()});
  ASSERT_EQ(Records().size(), 1u);
  EXPECT_EQ(Records()[0], Json({{"error", "no 'tool'"}}));
}

TEST_F(TokenizeTest, ToolsKwargsAndThePromptReachTheTemplate) {
  std::ofstream(dir_ / "all.jinja") << "{{ tools[0] }} {{ word }} {{ add_generation_prompt }} "
                                       "{{ eos_token }}";
  Run(R"({"messages": [], "tools": ["t"], "kwargs": {"word": "w"}, "add_generation_prompt": true})",
      {"--chat-template=" + (dir_ / "all.jinja").string()});
  EXPECT_EQ(Records()[0]["text"], "t w True <|im_end|>");
}

TEST_F(TokenizeTest, ABadLineIsReportedWithItsNumberAndTheOthersAreAnswered) {
  EXPECT_THROW(Run("{\"text\": \"a\"}\n{\"text\": \n\n[1]\n{\"text\": 7}\n{\"messages\": "
                   "{}}\n{\"text\": \"b\"}\n"),
               Error);
  const std::vector<Json> records = Records();
  ASSERT_EQ(records.size(), 6u);
  EXPECT_EQ(records[0]["text"], "a");
  EXPECT_EQ(records[5]["text"], "b");
  const int bad_lines[] = {2, 4, 5, 6};
  for (size_t i = 0; i < std::size(bad_lines); ++i) {
    const std::string message = records[i + 1].value("error", "");
    EXPECT_EQ(message.find("line " + std::to_string(bad_lines[i])), 0u) << message;
  }
}

TEST_F(TokenizeTest, AMissingModelOrInputIsAnErrorAndWritesNothing) {
  EXPECT_THROW(Run("{}", {"--chat-template=" + (dir_ / "none.jinja").string()}), Error);
  EXPECT_FALSE(std::filesystem::exists(dir_ / "out.jsonl"));
  EXPECT_THROW(Run("{}", {"--no-such-flag"}), CLI::ParseError);
}

}  // namespace
}  // namespace quatrain
