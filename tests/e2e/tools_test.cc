// score, generate, tokenize and eval as a user runs them: their numbers agree with each other, and
// wrong use is answered in one paragraph with exit code 2 and nothing written.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

const std::string kSource = QT_SOURCE_DIR;
const std::string kDense = kSource + "/examples/models/tiny-llama";
const std::string kMoe = kSource + "/examples/models/tiny-qwen3-moe";

struct Outcome {
  int status;
  std::string out, error;

  std::vector<Json> Rows() const {
    std::vector<Json> rows;
    std::istringstream stream(out);
    for (std::string line; std::getline(stream, line);) rows.push_back(Json::parse(line));
    return rows;
  }
};

class Tools : public testing::Test {
 protected:
  Tools() : folder_(fs::temp_directory_path() / ("quatrain_tools_" + std::to_string(getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Tools() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  Outcome Run(const std::string& arguments, const std::string& input = "") const {
    std::ofstream(Path("in")) << input;
    const std::string command = std::string(QT_CLI) + " " + arguments + " < " + Path("in") + " > " +
                                Path("out") + " 2> " + Path("err");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadFile(Path("out")),
            ReadFile(Path("err"))};
  }

  // Exit code 2 and one paragraph with all of `words`.
  void ExpectRefused(const std::string& arguments, const std::vector<std::string>& words,
                     const std::string& input = "") const {
    const Outcome outcome = Run(arguments, input);
    EXPECT_EQ(outcome.status, 2) << arguments << "\n" << outcome.error;
    const size_t begin = outcome.error.find("quatrain: error: ");
    ASSERT_NE(begin, std::string::npos) << arguments << "\n" << outcome.error;
    EXPECT_EQ(outcome.error.find('\n', begin), outcome.error.size() - 1) << outcome.error;
    for (const std::string& word : words)
      EXPECT_NE(outcome.error.find(word), std::string::npos)
          << arguments << ": '" << word << "' in\n"
          << outcome.error;
  }

  fs::path folder_;
};

TEST_F(Tools, PerplexityIsThatOfTheLogprobsAndRoutingHasItsShape) {
  const Outcome outcome = Run("score --routed-experts --model " + kMoe,
                              "{\"text\": \"What is 2 + 2?\"}\n{\"ids\": [5, 6, 7, 8]}\n");
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const std::vector<Json> rows = outcome.Rows();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].at("logprobs").size(), 3u);
  for (const Json& row : rows) {
    double sum = 0.0;
    for (const Json& logprob : row.at("logprobs")) sum += logprob.get<double>();
    const auto count = static_cast<double>(row.at("logprobs").size());
    EXPECT_NEAR(row.at("perplexity").get<double>() / std::exp(-sum / count), 1.0, 1e-6);
    const Json& routing = row.at("routed_experts");
    ASSERT_EQ(routing.size(), row.at("logprobs").size() + 1);
    for (const Json& token : routing) {
      ASSERT_EQ(token.size(), 4u);
      for (const Json& layer : token) {
        ASSERT_EQ(layer.size(), 2u);
        EXPECT_NE(layer[0], layer[1]);
        EXPECT_LT(layer[0].get<int>(), 8);
      }
    }
  }
}

TEST_F(Tools, GenerationDependsOnTheSeedAloneAndScoreGivesItsLogprobs) {
  const std::string input = "{\"prompt\": \"What is 41 * 5?\"}\n{\"prompt\": [9, 8, 7]}\n";
  const std::string call = "generate --n 3 --max-new-tokens 8 --model " + kMoe;
  const Outcome one = Run(call + " --threads 1", input);
  ASSERT_EQ(one.status, 0) << one.error;
  EXPECT_EQ(one.out, Run(call + " --threads 3", input).out);
  EXPECT_NE(one.out, Run(call + " --threads 1 --seed 1", input).out);
  const std::vector<Json> rows = one.Rows();
  ASSERT_EQ(rows.size(), 6u);
  const Json& row = rows[3];
  Json ids = {9, 8, 7};
  for (const Json& id : row.at("ids")) ids.push_back(id);
  const Outcome scored = Run("score --model " + kMoe, Json({{"ids", ids}}).dump() + "\n");
  ASSERT_EQ(scored.status, 0) << scored.error;
  const Json logprobs = scored.Rows()[0].at("logprobs");
  for (size_t i = 0; i < row.at("logprobs").size(); ++i)
    EXPECT_EQ(logprobs[2 + i], row.at("logprobs")[i]) << "the same bits";
}

TEST_F(Tools, GreedyIsOneTextHoweverItIsAskedFor) {
  const std::string input = "{\"prompt\": \"What is 41 * 5?\"}\n";
  const std::string call = "generate --apply-chat-template --max-new-tokens 12 --model " + kDense;
  const std::vector<Json> rows = Run(call + " --temperature 0 --n 2", input).Rows();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0], rows[1]);
  EXPECT_EQ(rows[0].at("ids"), Run(call + " --top-k 1 --seed 5", input).Rows()[0].at("ids"));
  const std::vector<Json> wide = Run(call + " --top-k 100000", input).Rows();
  EXPECT_EQ(wide, Run(call, input).Rows()) << "more than the vocabulary is no limit";
}

TEST_F(Tools, ABadLineIsReportedByItsNumberAndTheGoodOnesAreAnswered) {
  const std::vector<std::string> bad = {"{\"prompt\": [1, \"a\"]}",
                                        "{\"prompt\": [1, 2.5]}",
                                        "{\"prompt\": [4294967301]}",
                                        "{\"prompt\": []}",
                                        "{\"prompt\": null}",
                                        "{\"prompt\": \"\"}",
                                        "{\"prompt\"",
                                        "{\"prompt\": \"x\", \"tools\": 5}"};
  std::string input = "{\"prompt\": \"x\"}\n";
  for (const std::string& line : bad) {
    // tools are for templates
    input += line + "\n";
  }
  const Outcome outcome =
      Run("generate --apply-chat-template --max-new-tokens 2 --model " + kDense, input);
  EXPECT_EQ(outcome.status, 2) << outcome.error;
  const std::vector<Json> rows = outcome.Rows();
  ASSERT_EQ(rows.size(), bad.size() + 1);
  EXPECT_TRUE(rows[0].contains("text"));
  for (size_t i = 0; i < bad.size(); ++i) {
    if (bad[i] == "{\"prompt\": \"\"}") continue;  // an empty message is a message
    ASSERT_TRUE(rows[i + 1].contains("error")) << bad[i] << rows[i + 1];
    const std::string text = rows[i + 1].at("error");
    EXPECT_NE(text.find("line " + std::to_string(i + 2)), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

TEST_F(Tools, WrongFlagsSayWhatWasExpected) {
  const std::string generate = "generate --model " + kDense;
  const std::string prompt = "{\"prompt\": \"x\"}\n";
  ExpectRefused(generate + " --temperature nan", {"--temperature", "from 0 up", "'nan'"}, prompt);
  ExpectRefused(generate + " --top-p nan", {"--top-p", "to 1"}, prompt);
  ExpectRefused(generate + " --n 0", {"--n", "above 0"}, prompt);
  ExpectRefused(generate + " --n 1000000000000", {"--n", "1048576"}, prompt);
  ExpectRefused(generate + " --tempurature 1", {"--tempurature"}, prompt);
  ExpectRefused(generate + " --output " + Path("no/out"), {Path("no/out"), "folder"}, prompt);
  ExpectRefused("eval --model " + kDense + " --temperature nan --prompt-data x", {"--temperature"});
  ExpectRefused("frobnicate", {"frobnicate", "convert", "generate"});
  ExpectRefused("", {"subcommand"});
  ExpectRefused("score --routed-experts --model " + kDense, {"--routed-experts", "no experts"});
  EXPECT_FALSE(fs::exists(Path("no")));
}

TEST_F(Tools, ABrokenTemplateIsToldInOneParagraph) {
  std::ofstream(Path("bad.jinja")) << "{{ messages[5].content }}";
  const Outcome outcome =
      Run("tokenize --model " + kDense + " --chat-template " + Path("bad.jinja"),
          "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n");
  EXPECT_EQ(outcome.status, 2);
  const std::string text = outcome.Rows()[0].at("error");
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  EXPECT_NE(text.find("bad.jinja"), std::string::npos);
  EXPECT_NE(text.find("content"), std::string::npos);
}

TEST_F(Tools, ClosedStandardInputIsNoEmptyInput) {
  for (const char* command : {"score", "generate", "tokenize"}) {
    const std::string call = std::string(QT_CLI) + " " + command + " --model " + kDense +
                             " <&- > /dev/null 2> " + Path("err");
    const int status = std::system(call.c_str());
    EXPECT_EQ(WEXITSTATUS(status), 2) << command;
    EXPECT_NE(ReadFile(Path("err")).find("standard input"), std::string::npos);
  }
}

TEST_F(Tools, TheExamplesOfHelpTextsWorkAsTheyStand) {
  for (const char* command : {"score", "generate", "tokenize"}) {
    const Outcome help = Run(std::string(command) + " --help");
    EXPECT_EQ(help.status, 0);
    const size_t begin = help.out.find("Example: ");
    ASSERT_NE(begin, std::string::npos) << command;
    std::string example = help.out.substr(begin + 9);
    for (char& letter : example) {
      if (letter == '\n') letter = ' ';
    }
    const size_t name = example.find("quatrain ");
    ASSERT_NE(name, std::string::npos) << example;
    example.replace(name, 8, QT_CLI);
    const std::string call =
        "cd " + kSource + " && " + example + " > " + Path("out") + " 2> " + Path("err");
    EXPECT_EQ(std::system(call.c_str()), 0) << call << ReadFile(Path("err"));
    EXPECT_NE(ReadFile(Path("out")), "");
  }
}

}  // namespace
}  // namespace quatrain
