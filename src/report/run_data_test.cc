#include "report/run_data.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

// A fresh folder named `name` with a metrics.jsonl.
fs::path RunFolder(const std::string& name, const std::string& metrics) {
  const fs::path folder = fs::path(testing::TempDir()) / "run_data_test" / name;
  fs::remove_all(folder);
  fs::create_directories(folder);
  std::ofstream(folder / "metrics.jsonl") << metrics;
  return folder;
}

std::string MessageOf(const fs::path& folder) {
  try {
    ReadRun(folder);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

TEST(ReadRun, LinesUpMetricsByRollout) {
  const RunData run = ReadRun(RunFolder("plain",
                                        "{\"rollout\": 0, \"a\": 1, \"text\": \"x\"}\n\n"
                                        "{\"rollout\": 2, \"b\": 2.5}\n"));
  EXPECT_EQ(run.name, "plain");
  EXPECT_EQ(run.rollouts, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(run.metrics.size(), 2u);
  EXPECT_EQ(run.metrics.at("a"), (MetricSeries{1.0, std::nullopt}));
  EXPECT_EQ(run.metrics.at("b"), (MetricSeries{std::nullopt, 2.5}));
}

TEST(ReadRun, JoinsTheObjectsOfARolloutAndLetsTheLaterWin) {
  const RunData run =
      ReadRun(RunFolder("resumed",
                        "{\"rollout\": 0, \"a\": 1}\n{\"rollout\": 1, \"a\": 2}\n"
                        "{\"rollout\": 1, \"a\": 3}\n{\"rollout\": 1, \"b\": 4}\n"));
  EXPECT_EQ(run.metrics.at("a"), (MetricSeries{1.0, 3.0}));
  EXPECT_EQ(run.metrics.at("b"), (MetricSeries{std::nullopt, 4.0}));
}

TEST(ReadRun, IgnoresALastLineThatIsStillBeingWritten) {
  const RunData run =
      ReadRun(RunFolder("live", "{\"rollout\": 0, \"a\": 1}\n{\"rollout\": 1, \"a"));
  EXPECT_EQ(run.rollouts, (std::vector<int64_t>{0}));
}

TEST(ReadRun, ReadsTablesSamplesAndConfiguration) {
  const fs::path folder = RunFolder("full", "{\"rollout\": 0}\n");
  std::ofstream(folder / "eval.json") << R"([{"model": "BF16 base", "greedy_accuracy": 0.869}])";
  std::ofstream(folder / "samples.jsonl") << "{\"rollout\": 0, \"response\": \"hi\"}\n";
  std::ofstream(folder / "config.json") << R"({"a": {"b": 1, "c": "x"}, "d": [1, 2]})";
  const RunData run = ReadRun(folder);
  EXPECT_EQ(run.evaluations.at(0)["model"], "BF16 base");
  EXPECT_EQ(run.samples.at(0)["response"], "hi");
  EXPECT_EQ(run.config, (std::vector<std::pair<std::string, std::string>>{
                            {"a.b", "1"}, {"a.c", "x"}, {"d", "[1,2]"}}));
  EXPECT_EQ(ReadRun(folder / "").name, "full");
}

TEST(ReadRun, ALiveRunMayBeEmptyAndItsSamplesCut) {
  const fs::path folder = RunFolder("young", "");
  std::ofstream samples(folder / "samples.jsonl");
  for (int i = 0; i < 100; ++i) samples << "{\"rollout\": " << 100 + i << "}\n";
  samples.close();
  const RunData run = ReadRun(folder, {.empty = EmptyRun::kAllow, .max_sample_bytes = 40});
  EXPECT_TRUE(run.rollouts.empty());
  ASSERT_EQ(run.samples.size(), 2u);  // 17 bytes a line: the one that was cut is left out
  EXPECT_EQ(run.samples[0]["rollout"], 198);
  fs::remove(folder / "metrics.jsonl");
  EXPECT_TRUE(ReadRun(folder, {.empty = EmptyRun::kAllow}).rollouts.empty());
}

TEST(ReadRun, SaysWhatIsWrongWithAFolder) {
  const fs::path folder = RunFolder("bad", "");
  EXPECT_NE(MessageOf(folder).find("no complete rollout"), std::string::npos);
  fs::remove(folder / "metrics.jsonl");
  EXPECT_NE(MessageOf(folder).find("not a run directory"), std::string::npos);
  EXPECT_NE(MessageOf(folder / "none").find("found nothing"), std::string::npos);
}

TEST(ReadRun, NamesTheLineThatCannotBeRead) {
  for (const char* line : {"{\"a\": 1}", "[1]", "{\"rollout\": \"x\"}", "{broken"}) {
    const std::string metrics = std::string("{\"rollout\": 0}\n") + line + "\n";
    EXPECT_NE(MessageOf(RunFolder("line", metrics)).find("metrics.jsonl, line 2"),
              std::string::npos)
        << line;
  }
}

TEST(ReadEvaluations, TakesAnArrayOfObjectsOrLines) {
  const fs::path folder = RunFolder("evaluations", "");
  std::ofstream(folder / "a.jsonl") << "{\"model\": \"x\"}\n{\"model\": \"y\"}\n";
  EXPECT_EQ(ReadEvaluations(folder / "a.jsonl").size(), 2u);
  std::ofstream(folder / "object.json") << "{}";
  EXPECT_THROW(ReadEvaluations(folder / "object.json"), Error);
  std::ofstream(folder / "rows.json") << "[1]";
  EXPECT_THROW(ReadEvaluations(folder / "rows.json"), Error);
  EXPECT_THROW(ReadEvaluations(folder / "none.json"), Error);
}

}  // namespace
}  // namespace quatrain
