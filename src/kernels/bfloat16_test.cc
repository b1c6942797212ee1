#include "kernels/bfloat16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace quatrain {
namespace {

TEST(BFloat16, EveryPatternSurvivesTheWayThroughFloat) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = ToFloat(BFloat16{static_cast<uint16_t>(bits)});
    const uint32_t expected = std::isnan(value) ? bits | 0x40u : bits;  // NaNs become quiet
    ASSERT_EQ(ToBFloat16(value).bits, expected);
  }
}

TEST(BFloat16, RoundsToNearestWithTiesToEvenBetweenEveryTwoNeighbours) {
  for (uint32_t bits = 0; bits < 0x7F7F; ++bits) {
    const uint32_t low = bits << 16;
    const uint32_t tie = bits + (bits & 1);
    ASSERT_EQ(ToBFloat16(FloatFromBits(low + 0x7FFF)).bits, bits);
    ASSERT_EQ(ToBFloat16(FloatFromBits(low + 0x8000)).bits, tie);
    ASSERT_EQ(ToBFloat16(FloatFromBits(low + 0x8001)).bits, bits + 1);
    ASSERT_EQ(ToBFloat16(FloatFromBits((low + 0x8000) | 0x80000000u)).bits, tie | 0x8000u);
  }
}

TEST(BFloat16, OverflowGoesToInfinity) {
  EXPECT_EQ(ToBFloat16(std::numeric_limits<float>::max()).bits, 0x7F80);
  EXPECT_EQ(ToBFloat16(-std::numeric_limits<float>::max()).bits, 0xFF80);
  EXPECT_EQ(ToBFloat16(FloatFromBits(0x7F7F7FFF)).bits, 0x7F7F);
}

TEST(BFloat16, RoundToFloatKeepsEveryBit) {
  EXPECT_EQ(RoundTo<float>(1.0f / 3.0f), 1.0f / 3.0f);
  EXPECT_EQ(RoundTo<BFloat16>(1.0f / 3.0f).bits, 0x3EAB);
}

}  // namespace
}  // namespace quatrain
