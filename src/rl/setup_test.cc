#include "rl/setup.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

QuantScheme Int4(int64_t group_size) {
  QuantScheme scheme;
  scheme.group_size = group_size;
  return scheme;
}

TEST(DecideQat, TheFlagAndTheCheckpointNameTheFourCases) {
  QatArgs on, off;
  on.fake_qat_flag = true;
  EXPECT_EQ(DecideQat(on, Int4(32)).mode, QatMode::kQat);
  EXPECT_EQ(DecideQat(off, std::nullopt).mode, QatMode::kBf16);
  EXPECT_EQ(DecideQat(off, Int4(32)).mode, QatMode::kBf16TrainInt4Rollout);
  EXPECT_THROW(DecideQat(on, std::nullopt), Error);
  on.rollout_weights = "bf16";
  EXPECT_THROW(DecideQat(on, std::nullopt), Error) << "the group size is not known";
  on.quant_group_size = 64;
  const QatDecision decision = DecideQat(on, std::nullopt);
  EXPECT_EQ(decision.mode, QatMode::kQatTrainBf16Rollout);
  EXPECT_EQ(decision.group_size, 64);
  EXPECT_THROW(DecideQat(on, Int4(32)), Error) << "flags of a BF16 checkpoint";
}

TEST(DecideQat, AGroupSizeThatDisagreesIsRefusedUnlessAskedFor) {
  QatArgs args;
  args.fake_qat_flag = true;
  args.group_size = 32;
  EXPECT_EQ(DecideQat(args, Int4(32)).group_size, 0);
  EXPECT_THROW(DecideQat(args, Int4(128)), Error);
  args.requantise_group_size = 32;
  EXPECT_EQ(DecideQat(args, Int4(128)).group_size, 32);
  args.requantise_group_size = 64;
  EXPECT_THROW(DecideQat(args, Int4(128)), Error);
}

TEST(DecideGrid, TheCheckpointOrTheFlagSaysHowFarCodesReach) {
  QatArgs args;
  EXPECT_EQ(DecideGrid(args, Int4(32), {4, -8, 7}).lo, -7);
  EXPECT_EQ(DecideGrid(args, Int4(32), {4, -3, 3}).hi, 3);
  EXPECT_EQ(DecideGrid(args, std::nullopt, {}).hi, 7);
  args.code_max = 3;
  EXPECT_EQ(DecideGrid(args, Int4(32), {4, -3, 3}).lo, -3);
  EXPECT_EQ(DecideGrid(args, std::nullopt, {}).lo, -3);
  EXPECT_THROW(DecideGrid(args, Int4(32), {4, -7, 7}), Error) << "two numbers";
  args.code_max = 8;
  EXPECT_THROW(DecideGrid(args, std::nullopt, {}), Error) << "four bits end at 7";
}

}  // namespace
}  // namespace quatrain
