#include "kernels/int4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace quatrain {
namespace {

std::vector<uint32_t> Pack(const std::vector<int>& codes, int num_bits) {
  const auto count = static_cast<int64_t>(codes.size());
  std::vector<int32_t> words(static_cast<size_t>(PackedWords(count, num_bits)), 0);
  for (int64_t i = 0; i < count; ++i) {
    PackCode(codes[static_cast<size_t>(i)], i, num_bits, words.data());
  }
  return {words.begin(), words.end()};
}

float AbsmaxOf(const std::vector<float>& weights) {
  float amax = 0.0f;
  for (float w : weights) amax = std::max(amax, std::fabs(ToFloat(ToBFloat16(w))));
  return amax;
}

BFloat16 ScaleOf(float amax, ScaleRule rule, int num_bits) {
  return ScaleFromAbsmax(amax, rule, GridOf(rule, num_bits));
}

// Codes of one group under a rule; weights are rounded to BF16 first.
std::vector<int> Codes(const std::vector<float>& weights, ScaleRule rule, float* scale_value) {
  const BFloat16 scale = ScaleOf(AbsmaxOf(weights), rule, 4);
  *scale_value = ToFloat(scale);
  std::vector<int> codes;
  for (float w : weights) {
    codes.push_back(QuantizeCode(ToFloat(ToBFloat16(w)), scale, GridOf(rule, 4)));
  }
  return codes;
}

using Words = std::vector<uint32_t>;
using Ints = std::vector<int>;

TEST(Int4, PacksLowNibbleFirst) {
  EXPECT_EQ(Pack({1, 2, 3, 4, 5, 6, 7, 0}, 4), (Words{0x8FEDCBA9}));
  EXPECT_EQ(Pack({0, 0, 0, 0, 0, 0, 0, 0}, 4), (Words{0x88888888}));
  EXPECT_EQ(Pack({-8, -8, -8, -8, -8, -8, -8, -8}, 4), (Words{0}));
  EXPECT_EQ(Pack({7, 7, 7, 7, 7, 7, 7, 7}, 4), (Words{0xFFFFFFFF}));
  EXPECT_EQ(Pack({-1, -1, -1, -1, -1, -1, -1, -1}, 4), (Words{0x77777777}));
  EXPECT_EQ(Pack({-8, -7, -6, -5, -4, -3, -2, -1}, 4), (Words{0x76543210}));
  EXPECT_EQ(Pack({0, 1, 2, 3, 4, 5, 6, 7}, 4), (Words{0xFEDCBA98}));
  EXPECT_EQ(Pack({-7, 7, -7, 7, -7, 7, -7, 7}, 4), (Words{0xF1F1F1F1}));
  EXPECT_EQ(Pack({-5, -4, -3, -2, -1, 0, 1, 2, 3, 4}, 4), (Words{0xA9876543, 0x000000CB}));
}

TEST(Int4, PacksInt8LowByteFirst) {
  EXPECT_EQ(Pack({1, 2, 3, 4}, 8), (Words{0x84838281}));
  EXPECT_EQ(Pack({0, 0, 0, 0}, 8), (Words{0x80808080}));
  EXPECT_EQ(Pack({-128, -1, 0, 127}, 8), (Words{0xFF807F00}));
  EXPECT_EQ(Pack({-127, 127, -1, 1, 5}, 8), (Words{0x817FFF01, 0x00000085}));
}

TEST(Int4, ZeroPointsPackLikeCodes) {
  EXPECT_EQ(Pack({-8, -6, 0, 7, 1, 2, 3, 4, -1, 5}, 4), (Words{0xCBA9F820, 0x000000D7}));
}

TEST(Int4, UnpackReturnsWhatWasPackedForAllCodesAndLengths) {
  for (int num_bits : {4, 8}) {
    const int count = 1 << num_bits;
    for (int length = 1; length <= 65; ++length) {
      for (int first = 0; first < count; ++first) {
        Ints codes;
        for (int i = 0; i < length; ++i) codes.push_back((first + 7 * i) % count - count / 2);
        const Words packed = Pack(codes, num_bits);
        const std::vector<int32_t> words(packed.begin(), packed.end());
        for (int i = 0; i < length; ++i) {
          ASSERT_EQ(UnpackCode(words.data(), i, num_bits), codes[static_cast<size_t>(i)]);
        }
      }
    }
  }
}

TEST(Int4, GridsAreSymmetricOnlyUnderAbsmax7) {
  const CodeGrid seven = GridOf(ScaleRule::kAbsmax7, 4);
  EXPECT_EQ(seven.lo, -7);
  EXPECT_EQ(seven.hi, 7);
  for (ScaleRule rule : {ScaleRule::kAbsmax7_5, ScaleRule::kSearched, ScaleRule::kFrozen}) {
    EXPECT_EQ(GridOf(rule, 4).lo, -8);
    EXPECT_EQ(GridOf(rule, 4).hi, 7);
    EXPECT_EQ(GridOf(rule, 8).lo, -128);
    EXPECT_EQ(GridOf(rule, 8).hi, 127);
  }
  EXPECT_EQ(GridOf(ScaleRule::kAbsmax7, 8).lo, -127);
  EXPECT_EQ(GridOf(ScaleRule::kAbsmax7, 8).hi, 127);
}

TEST(Int4, ScalesRoundToBFloat16) {
  EXPECT_EQ(ScaleOf(7.5f, ScaleRule::kAbsmax7_5, 4).bits, 0x3F80);
  EXPECT_EQ(ScaleOf(1.0f, ScaleRule::kAbsmax7_5, 4).bits, 0x3E09);
  EXPECT_EQ(ScaleOf(1.0f, ScaleRule::kAbsmax7, 4).bits, 0x3E12);
  EXPECT_EQ(ScaleOf(1.0f, ScaleRule::kAbsmax7_5, 8).bits, 0x3C01);
  EXPECT_EQ(ScaleOf(1.0f, ScaleRule::kAbsmax7, 8).bits, 0x3C01);
  EXPECT_EQ(ScaleOf(0.02f, ScaleRule::kAbsmax7_5, 4).bits, 0x3B2F);
}

TEST(Int4, ScalesHaveAFloor) {
  EXPECT_EQ(ScaleOf(0.0f, ScaleRule::kAbsmax7, 4).bits, ToBFloat16(1e-5f).bits);
  EXPECT_EQ(ScaleOf(6e-5f, ScaleRule::kAbsmax7, 4).bits, ToBFloat16(1e-5f).bits);
  EXPECT_EQ(ScaleOf(0.0f, ScaleRule::kAbsmax7, 8).bits, ToBFloat16(1e-5f * 7.0f / 127.0f).bits);
  EXPECT_EQ(ToFloat(ScaleOf(0.0f, ScaleRule::kAbsmax7_5, 4)), 0.0078125f);
  EXPECT_EQ(ToFloat(ScaleOf(0.0f, ScaleRule::kAbsmax7_5, 8)), 0.0078125f);
}

TEST(Int4, RowsQuantiseAsTheContractSays) {
  float scale = 0.0f;
  const std::vector<float> ties = {7.5f, -7.5f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 3.484375f};
  EXPECT_EQ(Codes(ties, ScaleRule::kAbsmax7_5, &scale), (Ints{7, -8, 0, 2, 2, 0, -2, 3}));
  EXPECT_EQ(scale, 1.0f);
  EXPECT_EQ(Codes(ties, ScaleRule::kAbsmax7, &scale), (Ints{7, -7, 0, 1, 2, 0, -1, 3}));
  EXPECT_EQ(scale, 1.0703125f);

  const std::vector<float> tenths = {0.1f, -0.2f, 0.3f, -0.4f, 0.5f, -0.6f, 0.7f, -0.8f};
  EXPECT_EQ(Codes(tenths, ScaleRule::kAbsmax7_5, &scale), (Ints{1, -2, 3, -4, 5, -6, 7, -7}));
  EXPECT_EQ(scale, 0.10693359375f);
  EXPECT_EQ(Codes(tenths, ScaleRule::kAbsmax7, &scale), (Ints{1, -2, 3, -4, 4, -5, 6, -7}));
  EXPECT_EQ(scale, 0.1142578125f);

  const std::vector<float> small = {0.02f,   -0.013f, 0.0071f,  -0.031f,
                                    0.0005f, 0.019f,  -0.0282f, 0.011f};
  EXPECT_EQ(Codes(small, ScaleRule::kAbsmax7_5, &scale), (Ints{5, -3, 2, -8, 0, 5, -7, 3}));
  EXPECT_EQ(scale, 0.004119873046875f);
}

// The FP32 quotient of two 8-bit significands is never rounded onto a tie it did not sit on, so
// double agrees.
TEST(Int4, CodesOfEveryWeightEqualTheExactQuotientRoundedToEven) {
  for (ScaleRule rule : {ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5}) {
    for (int num_bits : {4, 8}) {
      const CodeGrid grid = GridOf(rule, num_bits);
      for (uint32_t mantissa = 0; mantissa < 128; mantissa += 5) {
        const BFloat16 scale{static_cast<uint16_t>(0x3C00 | mantissa)};
        for (uint32_t bits = 0; bits < 0x10000; ++bits) {
          const float w = ToFloat(BFloat16{static_cast<uint16_t>(bits)});
          if (!std::isfinite(w)) continue;
          const double exact = std::nearbyint(static_cast<double>(w) / ToFloat(scale));
          const double q = std::clamp<double>(exact, grid.lo, grid.hi);
          ASSERT_EQ(QuantizeCode(w, scale, grid), static_cast<int>(q)) << bits << " " << mantissa;
        }
      }
    }
  }
}

TEST(Int4, ACodeSurvivesItsOwnValueUnderEveryMantissa) {
  for (int num_bits : {4, 8}) {
    const CodeGrid grid = GridOf(ScaleRule::kSearched, num_bits);
    for (uint32_t exponent : {20u, 100u, 120u, 127u, 200u, 240u}) {
      for (uint32_t mantissa = 0; mantissa < 128; ++mantissa) {
        const BFloat16 scale{static_cast<uint16_t>(exponent << 7 | mantissa)};
        for (int q = grid.lo; q <= grid.hi; ++q) {
          ASSERT_EQ(QuantizeCode(ToFloat(DequantizeCode(q, scale)), scale, grid), q)
              << ToFloat(scale);
        }
      }
    }
  }
}

// Every code, every mantissa of the scale, weights on both sides of every cell and far away.
TEST(Int4, AWeightOutsideItsCellMovesToTheCentre) {
  for (const CodeGrid& grid : {GridOf(ScaleRule::kFrozen, 4), GridOf(ScaleRule::kAbsmax7, 4)}) {
    for (uint16_t mantissa = 0; mantissa < 128; ++mantissa) {
      const BFloat16 scale{static_cast<uint16_t>(0x3C00 | mantissa)};
      for (int code = grid.lo; code <= grid.hi; ++code) {
        const float centre = ToFloat(DequantizeCode(code, scale));
        for (int step = -44; step <= 44; ++step) {
          const float weight =
              ToFloat(ToBFloat16(0.25f * static_cast<float>(step) * ToFloat(scale)));
          const bool is_inside = QuantizeCode(weight, scale, grid) == code;
          ASSERT_EQ(MoveIntoCell(weight, code, scale, grid), is_inside ? weight : centre)
              << weight << " " << mantissa;
        }
        ASSERT_EQ(QuantizeCode(centre, scale, grid), code) << mantissa;
      }
    }
  }
}

// Why the quotient is FP32: rounded to BF16 it moves 927 of the 128 x 256 INT8 codes.
TEST(Int4, ABFloat16QuotientWouldMoveInt8Codes) {
  int moved = 0;
  for (uint32_t mantissa = 0; mantissa < 128; ++mantissa) {
    const BFloat16 scale{static_cast<uint16_t>(0x3F80 | mantissa)};
    for (int q = -128; q <= 127; ++q) {
      const float quotient = ToFloat(DequantizeCode(q, scale)) / ToFloat(scale);
      moved += std::clamp(std::rint(ToFloat(ToBFloat16(quotient))), -128.0f, 127.0f) !=
               static_cast<float>(q);
    }
  }
  EXPECT_EQ(moved, 927);
}

// For every absmax a group can have: quantising w' again gives the same scale, codes and values.
TEST(Int4, FakeQuantisationUnderAbsmax7IsIdempotentForEveryAbsmax) {
  for (int num_bits : {4, 8}) {
    const CodeGrid grid = GridOf(ScaleRule::kAbsmax7, num_bits);
    for (uint32_t bits = 0; bits < 0x7F7F; ++bits) {
      const float amax = ToFloat(BFloat16{static_cast<uint16_t>(bits)});
      const BFloat16 scale = ScaleOf(amax, ScaleRule::kAbsmax7, num_bits);
      const float extremum = ToFloat(DequantizeCode(QuantizeCode(amax, scale, grid), scale));
      ASSERT_TRUE(std::isfinite(extremum)) << bits;
      const BFloat16 again = ScaleOf(extremum, ScaleRule::kAbsmax7, num_bits);
      ASSERT_EQ(again.bits, scale.bits) << bits;
      for (int sign : {1, -1}) {
        for (float fraction : {1.0f, 0.9f, 0.61f, 0.5f, 0.33f, 0.07f, 0.0f}) {
          const float w = ToFloat(ToBFloat16(static_cast<float>(sign) * amax * fraction));
          const int code = QuantizeCode(w, scale, grid);
          const BFloat16 value = DequantizeCode(code, scale);
          ASSERT_EQ(QuantizeCode(ToFloat(value), again, grid), code);
          ASSERT_EQ(DequantizeCode(code, again).bits, value.bits);
        }
      }
    }
  }
}

// A narrower grid in the same container: the divisor is its largest code, and w' stays a fixed
// point.
TEST(Int4, ANarrowGridDividesByItsLargestCodeAndIsIdempotent) {
  for (int hi = 1; hi <= 7; ++hi) {
    const CodeGrid grid = {4, -hi, hi};
    EXPECT_EQ(ToFloat(ScaleFromAbsmax(static_cast<float>(hi), ScaleRule::kAbsmax7, grid)), 1.0f);
    EXPECT_EQ(ScaleFromAbsmax(0.0f, ScaleRule::kAbsmax7, grid).bits,
              ToBFloat16(7e-5f / static_cast<float>(hi)).bits);
    for (uint32_t bits = 0; bits < 0x7F7F; ++bits) {
      const float amax = ToFloat(BFloat16{static_cast<uint16_t>(bits)});
      const BFloat16 scale = ScaleFromAbsmax(amax, ScaleRule::kAbsmax7, grid);
      const CodeGrid wider = {4, -hi - 1, hi + 1};
      ASSERT_LE(QuantizeCode(amax, scale, wider), hi) << "nothing is clipped";
      const float extremum = ToFloat(DequantizeCode(QuantizeCode(amax, scale, grid), scale));
      ASSERT_EQ(ScaleFromAbsmax(extremum, ScaleRule::kAbsmax7, grid).bits, scale.bits) << bits;
    }
  }
}

TEST(Int4, OnlyTheLargestFiniteAbsmaxOverflowsUnderAbsmax7) {
  for (int num_bits : {4, 8}) {
    const float amax = ToFloat(BFloat16{0x7F7F});
    const BFloat16 scale = ScaleOf(amax, ScaleRule::kAbsmax7, num_bits);
    const int code = QuantizeCode(amax, scale, GridOf(ScaleRule::kAbsmax7, num_bits));
    EXPECT_TRUE(std::isinf(ToFloat(DequantizeCode(code, scale)))) << num_bits;
  }
}

TEST(Int4, Absmax7_5IsNotIdempotent) {
  const float amax = 7.5f;
  const BFloat16 scale = ScaleOf(amax, ScaleRule::kAbsmax7_5, 4);
  const int code = QuantizeCode(amax, scale, GridOf(ScaleRule::kAbsmax7_5, 4));
  const float value = ToFloat(DequantizeCode(code, scale));
  EXPECT_NE(ScaleOf(value, ScaleRule::kAbsmax7_5, 4).bits, scale.bits);
}

}  // namespace
}  // namespace quatrain
