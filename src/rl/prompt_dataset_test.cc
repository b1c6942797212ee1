#include "rl/prompt_dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/error.h"

namespace quatrain {
namespace {

const PromptDatasetOptions kLabelled = {.input_key = "prompt", .label_key = "label"};

std::vector<Json> Rows(int64_t n) {
  std::vector<Json> rows;
  for (int64_t i = 0; i < n; ++i) {
    rows.push_back({{"prompt", fmt::format("question {}", i)}, {"label", fmt::format("{}", i)}});
  }
  return rows;
}

std::string MessageOf(const std::vector<Json>& rows, const PromptDatasetOptions& options) {
  try {
    PromptsOfRows(rows, "data.jsonl", options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

std::vector<int64_t> Ids(const std::vector<Prompt>& prompts) {
  std::vector<int64_t> ids;
  for (const Prompt& prompt : prompts) ids.push_back(prompt.id);
  return ids;
}

PromptDataset Dataset(int64_t n, PromptOrder order, uint64_t seed = 42) {
  PromptDatasetOptions options = kLabelled;
  options.order = order;
  options.seed = seed;
  return PromptDataset(PromptsOfRows(Rows(n), "data.jsonl", options), options);
}

TEST(PromptsOfRows, KeepMessagesLabelAndMetadata) {
  const Json messages = Json::parse(R"([{"role": "user", "content": "2 + 2?"}])");
  const std::vector<Json> rows = {
      {{"prompt", messages}, {"label", 4}, {"metadata", {{"level", 1}}}},
      {{"prompt", "raw"}, {"label", "five"}}};
  const std::vector<Prompt> prompts = PromptsOfRows(rows, "data.jsonl", kLabelled);
  EXPECT_EQ(prompts[0].messages, messages);
  EXPECT_EQ(prompts[0].label, "4");
  EXPECT_EQ(prompts[0].metadata["level"], 1);
  EXPECT_EQ(prompts[1].id, 1);
  EXPECT_EQ(prompts[1].messages, "raw");
  EXPECT_TRUE(prompts[1].metadata.is_null());
}

TEST(PromptsOfRows, TakeToolsAsAnArrayOrItsText) {
  const Json tool = {{"type", "function"}, {"function", {{"name", "add"}}}};
  const std::vector<Json> rows = {
      {{"prompt", "a"}, {"label", "1"}, {"tools", {tool}}},
      {{"prompt", "b"}, {"label", "1"}, {"tools", DumpJson(Json::array({tool}))}},
      {{"prompt", "c"}, {"label", "1"}, {"tools", nullptr}}};
  const std::vector<Prompt> prompts = PromptsOfRows(rows, "f", kLabelled);
  EXPECT_EQ(prompts[0].tools, Json::array({tool}));
  EXPECT_EQ(prompts[1].tools, prompts[0].tools);
  EXPECT_TRUE(prompts[2].tools.is_null());
  PromptDatasetOptions other = kLabelled;
  other.tool_key = "functions";
  EXPECT_TRUE(PromptsOfRows(rows, "f", other)[0].tools.is_null());
  EXPECT_NE(MessageOf({{{"prompt", "a"}, {"label", "1"}, {"tools", "[1]"}}}, kLabelled)
                .find("--tool-key"),
            std::string::npos);
}

TEST(PromptsOfRows, WithoutALabelKeyHaveNoLabel) {
  EXPECT_EQ(PromptsOfRows(Rows(1), "f", {.input_key = "prompt"})[0].label, "");
}

TEST(PromptsOfRows, AMissingLabelNamesFileRowKeyAndTheKeysThatAreThere) {
  std::vector<Json> rows = Rows(3);
  rows[2] = {{"prompt", "q"}, {"answer", "3"}};
  const std::string message = MessageOf(rows, kLabelled);
  for (const char* part : {"data.jsonl", "row 3", "'label'", "--label-key", "'prompt', 'answer'"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
}

TEST(PromptsOfRows, RefuseWhatCannotBeAPromptOrALabel) {
  EXPECT_NE(MessageOf({}, kLabelled).find("empty"), std::string::npos);
  EXPECT_NE(MessageOf({Json("text")}, kLabelled).find("row 1"), std::string::npos);
  EXPECT_NE(MessageOf(Rows(1), {.input_key = "question"}).find("--input-key"), std::string::npos);
  for (const char* prompt : {R"("")", "[]", "7", R"(["a"])", R"([{"role": "user"}])"}) {
    EXPECT_NE(
        MessageOf({{{"prompt", Json::parse(prompt)}, {"label", "1"}}}, kLabelled).find("prompt"),
        std::string::npos)
        << prompt;
  }
  for (const char* label : {R"("")", "null", "[1]", "true"}) {
    EXPECT_NE(
        MessageOf({{{"prompt", "q"}, {"label", Json::parse(label)}}}, kLabelled).find("label"),
        std::string::npos)
        << label;
  }
}

TEST(PromptDataset, InFileOrderGivesEveryPromptAndThenBeginsAgain) {
  PromptDataset dataset = Dataset(5, PromptOrder::kFile);
  EXPECT_EQ(Ids(dataset.Next(3)), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(Ids(dataset.Next(3)), (std::vector<int64_t>{3, 4, 0}));
  EXPECT_EQ(dataset.epoch(), 1);
  EXPECT_EQ(dataset.position(), 1);
}

TEST(PromptDataset, ShufflesEveryEpochAnewAndLosesNothing) {
  PromptDataset dataset = Dataset(50, PromptOrder::kShuffled);
  const std::vector<int64_t> first = Ids(dataset.Next(50));
  const std::vector<int64_t> second = Ids(dataset.Next(50));
  EXPECT_NE(first, second);
  EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()).size(), 50u);
  EXPECT_EQ(std::set<int64_t>(second.begin(), second.end()).size(), 50u);
  EXPECT_EQ(Ids(Dataset(50, PromptOrder::kShuffled).Next(50)), first);
  EXPECT_NE(Ids(Dataset(50, PromptOrder::kShuffled, 43).Next(50)), first);
}

TEST(PromptDataset, ContinuesFromItsStateAsIfItHadNeverStopped) {
  PromptDataset dataset = Dataset(7, PromptOrder::kShuffled);
  dataset.Next(10);
  const Json state = ParseJson(DumpJson(dataset.State()), "state");
  const std::vector<int64_t> expected = Ids(dataset.Next(20));
  PromptDataset resumed = Dataset(7, PromptOrder::kShuffled);
  resumed.Restore(state);
  EXPECT_EQ(Ids(resumed.Next(20)), expected);
}

TEST(PromptDataset, RefusesTheStateOfAnotherRun) {
  const Json state = Dataset(7, PromptOrder::kShuffled).State();
  for (PromptDataset other : {Dataset(8, PromptOrder::kShuffled), Dataset(7, PromptOrder::kFile),
                              Dataset(7, PromptOrder::kShuffled, 1)}) {
    EXPECT_THROW(other.Restore(state), Error);
  }
  PromptDataset same = Dataset(7, PromptOrder::kShuffled);
  Json damaged = state;
  damaged["position"] = 8;
  EXPECT_THROW(same.Restore(damaged), Error);
  EXPECT_THROW(same.Restore(Json::object()), Error);
}

TEST(NumRollouts, CountsWholeBatchesOfEveryEpoch) {
  EXPECT_EQ(NumRollouts(100, 32, 2), 6);
  EXPECT_EQ(NumRollouts(32, 32, 1), 1);
  EXPECT_THROW(NumRollouts(31, 32, 1), Error);
}

}  // namespace
}  // namespace quatrain
