#include "report/run_warnings.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

constexpr double kEnded = -1.0;

RunData Healthy(size_t n) {
  RunData run;
  run.config = {{"rollout-batch-size", "8"}, {"num-rollout", "100"}};
  for (size_t i = 0; i < n; ++i) run.rollouts.push_back(static_cast<int64_t>(i + 1));
  const std::pair<const char*, double> values[] = {
      {"rollout/raw_reward", 0.5},     {"rollout/zero_std/count_0", 1},
      {"rollout/zero_std/count_1", 1}, {"rollout/truncated_ratio", 0.1},
      {"train/entropy_loss", 0.4},     {"train/train_rollout_logprob_abs_diff", 0},
      {"perf/step_time", 20},          {"perf/disk_free_bytes", 1e11},
      {"perf/resident_bytes", 1e9}};
  for (const auto& [name, value] : values) run.metrics[name] = MetricSeries(n, value);
  return run;
}

// The titles, joined.
std::string Titles(const RunData& run, double seconds_since_row = kEnded) {
  std::string titles;
  for (const RunWarning& warning : RunWarnings(run, seconds_since_row)) {
    titles += (titles.empty() ? "" : "; ") + warning.title;
  }
  return titles;
}

TEST(RunWarnings, AHealthyRunHasNone) {
  EXPECT_EQ(Titles(Healthy(40), 30), "");
  EXPECT_EQ(Titles(RunData{}), "");
}

TEST(RunWarnings, NameRolloutsWithoutReward) {
  RunData run = Healthy(40);
  run.metrics["rollout/raw_reward"][6] = 0.0;
  EXPECT_EQ(Titles(run), "Rollouts without any reward");
  EXPECT_NE(RunWarnings(run, kEnded)[0].detail.find("1 rollout (7)"), std::string::npos);
}

TEST(RunWarnings, TellGroupsThatAreTooHardFromThoseThatAreTooEasy) {
  RunData run = Healthy(40);
  run.metrics["rollout/zero_std/count_0"] = MetricSeries(40, 4.0);
  EXPECT_EQ(Titles(run), "Most groups have no right answer: the prompts are too hard");
  run = Healthy(40);
  run.metrics["rollout/zero_std/count_1"] = MetricSeries(40, 5.0);
  EXPECT_EQ(Titles(run), "Most groups have no wrong answer: the prompts are too easy");
  run.metrics["rollout/zero_std/count_1"] = MetricSeries(40, 3.0);
  EXPECT_EQ(Titles(run), "Most groups have one reward");
  run.config = {{"defaults.rollout-batch-size", "16"}};
  EXPECT_EQ(Titles(run), "");
}

TEST(RunWarnings, TruncationCountsFromAQuarter) {
  RunData run = Healthy(40);
  run.metrics["rollout/truncated_ratio"] = MetricSeries(40, 0.25);
  EXPECT_EQ(Titles(run), "Many responses are cut off");
  run.metrics["rollout/truncated_ratio"] = MetricSeries(40, 0.24);
  EXPECT_EQ(Titles(run), "");
}

TEST(RunWarnings, EntropyIsComparedWithTheFirstRollouts) {
  RunData run = Healthy(40);
  for (size_t i = 20; i < 40; ++i) run.metrics["train/entropy_loss"][i] = 0.07;
  EXPECT_EQ(Titles(run), "The entropy has collapsed");
}

TEST(RunWarnings, AnyDifferenceOfTrainerAndRolloutCounts) {
  RunData run = Healthy(40);
  run.metrics["train/train_rollout_logprob_abs_diff"][3] = 1e-12;
  EXPECT_EQ(Titles(run), "Trainer and rollout are not one policy");
}

TEST(RunWarnings, AStallIsSixMediansAndAMinute) {
  RunData run = Healthy(40);
  run.metrics["perf/step_time"][9] = 121.0;
  EXPECT_EQ(Titles(run), "Stalled steps");
  EXPECT_EQ(Titles(Healthy(40), 119), "");
  EXPECT_EQ(Titles(Healthy(40), 121), "No rollout has ended for long");
  run.metrics["perf/step_time"] = MetricSeries(40, 1.0);
  run.metrics["perf/step_time"][9] = 59.0;  // short steps of small models jump
  EXPECT_EQ(Titles(run), "");
}

TEST(RunWarnings, ADiskThatFillsIsSeenAhead) {
  RunData run = Healthy(40);
  for (size_t i = 0; i < 40; ++i) {
    run.metrics["perf/disk_free_bytes"][i] = 1e11 - 2e9 * static_cast<double>(i);
  }
  EXPECT_EQ(Titles(run), "The disk will be full before the run ends");
  run.metrics["perf/disk_free_bytes"][39] = 1e9;
  EXPECT_EQ(Titles(run), "The disk is nearly full");
}

TEST(RunWarnings, MemoryThatGrowsIsSeen) {
  RunData run = Healthy(40);
  for (size_t i = 0; i < 40; ++i) {
    run.metrics["perf/resident_bytes"][i] = 1e9 + 1e7 * static_cast<double>(i);
  }
  EXPECT_EQ(Titles(run), "Memory grows");
}

TEST(RunWarnings, TheGravestComeFirst) {
  RunData run = Healthy(40);
  run.metrics["rollout/truncated_ratio"] = MetricSeries(40, 0.9);
  EXPECT_EQ(Titles(run, 1e4), "No rollout has ended for long; Many responses are cut off");
}

}  // namespace
}  // namespace quatrain
