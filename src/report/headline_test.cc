#include "report/headline.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

const HeadlineFact* Find(const std::vector<HeadlineFact>& facts, const std::string& label) {
  for (const HeadlineFact& fact : facts) {
    if (fact.label == label) return &fact;
  }
  return nullptr;
}

RunData FortyRollouts() {
  RunData run;
  for (int64_t i = 0; i < 40; ++i) {
    run.rollouts.push_back(i);
    run.metrics["rollout/raw_reward"].push_back(i < 20 ? 0.5 : 0.75);
    run.metrics["train/train_rollout_logprob_abs_diff"].push_back(0.0);
    run.metrics["train/code_flip_rate"].push_back(0.0004);
    run.metrics["perf/step_time"].push_back(6.25);
    run.metrics["eval/arithmetic"].push_back(
        i % 10 == 0 ? std::optional(0.8 + 0.001 * static_cast<double>(i)) : std::nullopt);
    run.metrics["eval/arithmetic-truncated_ratio"].push_back(0.0);
  }
  return run;
}

TEST(Headline, SumsUpWhatTheRunLogged) {
  const std::vector<HeadlineFact> facts = Headline(FortyRollouts());
  ASSERT_EQ(facts.size(), 6u);
  EXPECT_EQ(facts[0].value, "40");
  EXPECT_EQ(Find(facts, "Reward")->value, "0.750");
  EXPECT_EQ(Find(facts, "Reward")->note, "mean of the last 10 rollouts; 0.500 in the first 10");
  EXPECT_EQ(Find(facts, "Eval arithmetic")->value, "0.830");
  EXPECT_EQ(Find(facts, "Eval arithmetic")->note, "last of 4 evaluations; 0.800 in the first");
  EXPECT_EQ(Find(facts, "INT4 codes flipped a step")->value, "0.04 %");
  EXPECT_EQ(Find(facts, "Time a step")->value, "6.2 s");
  EXPECT_EQ(Find(facts, "Time a step")->note, "4 min 10 s in all");
}

TEST(Headline, SaysExactlyZeroOnlyWhereEveryRolloutIs) {
  RunData run = FortyRollouts();
  const std::string label = "Train-rollout difference";
  EXPECT_EQ(Find(Headline(run), label)->value, "0");
  EXPECT_EQ(Find(Headline(run), label)->note, "of log-probabilities, exactly, in all 40 rollouts");
  run.metrics["train/train_rollout_logprob_abs_diff"][7] = 1e-9;
  EXPECT_EQ(Find(Headline(run), label)->value, "1e-09");
}

TEST(Headline, LeavesOutWhatWasNotLogged) {
  RunData run;
  run.rollouts = {4};
  const std::vector<HeadlineFact> facts = Headline(run);
  ASSERT_EQ(facts.size(), 1u);
  EXPECT_EQ(facts[0].label, "Rollouts");
  EXPECT_EQ(facts[0].value, "0");
  EXPECT_EQ(facts[0].note, "metrics up to rollout 4");
  run.metrics["rollout/raw_reward"] = {std::nullopt};
  EXPECT_EQ(Headline(run).size(), 1u);
  run.metrics["rollout/raw_reward"] = {0.25};
  EXPECT_EQ(Find(Headline(run), "Reward")->value, "0.250");
}

}  // namespace
}  // namespace quatrain
