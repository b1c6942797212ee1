#include "cli/conversion_plan.h"

#include <gtest/gtest.h>

#include "cli/conversion_test_support.h"

namespace quatrain {
namespace {

TEST(ConversionPlan, WordsForSizesAndTimes) {
  EXPECT_EQ(GuessText(0.2), "about 1 s");
  EXPECT_EQ(GuessText(600), "about 10 min");
  EXPECT_EQ(GuessText(7200), "about 2.0 h");
}

TEST_F(ConversionTest, PlanForetellsTheBytesThatAreWritten) {
  for (const char* model : {"tiny-llama", "tiny-qwen3-moe"}) {
    ConversionConfig config = Config(model, CalibrateMethod::kGptq);
    config.output_dir = root_ / model;
    const ConversionSummary summary = Run(config);
    EXPECT_EQ(summary.plan.output_bytes, TensorSet(config.output_dir).total_bytes()) << model;
    EXPECT_GT(summary.plan.seconds, 0.0);
    EXPECT_GT(summary.plan.cache_bytes, 0u);
  }
}

TEST_F(ConversionTest, PlanOfRoundToNearestNeedsNoCacheAndLessMemory) {
  const ConversionSummary gptq = Run(Config("tiny-llama", CalibrateMethod::kGptq));
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kRtn);
  config.output_dir = root_ / "rtn";
  const ConversionSummary rtn = Run(config);
  EXPECT_EQ(rtn.plan.cache_bytes, 0u);
  EXPECT_LT(rtn.plan.memory_bytes, gptq.plan.memory_bytes);
}

}  // namespace
}  // namespace quatrain
