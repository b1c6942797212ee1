#include "cli/algorithm_options.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>

#include "base/error.h"

namespace quatrain {
namespace {

AlgorithmArgs Parse(const std::string& text) {
  CLI::App app;
  AlgorithmFlags flags;
  AlgorithmArgs args;
  AddAlgorithmOptions(app, &flags, &args);
  app.parse(text);
  FinishAlgorithm(flags, &args);
  return args;
}

TEST(AlgorithmOptions, DefaultsAreTheFields) {
  const AlgorithmArgs args = Parse("");
  EXPECT_EQ(args.advantage_estimator, AdvantageEstimator::kGrpo);
  EXPECT_EQ(args.loss.clip_eps_low, 0.2);
  EXPECT_EQ(args.loss.clip_eps_high, 0.2);
  EXPECT_FALSE(args.loss.tis || args.loss.kl_loss || args.loss.opsm_delta || args.loss.clip_eps_c);
  EXPECT_EQ(args.loss.ratio_level, RatioLevel::kToken);
  EXPECT_EQ(args.gamma, 1.0);
}

TEST(AlgorithmOptions, FlagsThatActTogetherBecomeOneSetting) {
  const AlgorithmArgs args = Parse(
      "--advantage-estimator gspo --eps-clip 0.1 --eps-clip-high 0.3 --use-kl-loss --kl-loss-coef "
      "0.01 --kl-loss-type low_var_kl --use-unbiased-kl --use-tis --tis-clip 5 --tis-clip-low 0.5 "
      "--custom-tis-function-path miles.backends.corrections.icepop_function --use-opsm "
      "--opsm-delta 0.2 --ref-update-interval 10");
  EXPECT_EQ(args.loss.ratio_level, RatioLevel::kSequence);
  EXPECT_EQ(args.loss.clip_eps_high, 0.3);
  EXPECT_EQ(args.loss.kl_loss->type, KlLossType::kLowVarKl);
  EXPECT_TRUE(args.loss.kl_loss->is_unbiased);
  EXPECT_EQ(args.loss.tis->mode, TisMode::kIcePop);
  EXPECT_EQ(args.loss.tis->clip, 5.0);
  EXPECT_EQ(args.loss.opsm_delta, 0.2);
  EXPECT_EQ(args.ref_update_interval, 10);
}

TEST(AlgorithmOptions, WhatIsNotBuiltInIsRefused) {
  EXPECT_THROW(Parse("--use-tis --custom-tis-function-path my.module.function"), Error);
  EXPECT_THROW(Parse("--advantage-estimator ppo"), Error);
  EXPECT_THROW(Parse("--kl-loss-type k9"), Error);
}

}  // namespace
}  // namespace quatrain
