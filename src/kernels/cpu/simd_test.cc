#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/simd_targets.h"
#include "kernels/kernel_test.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/simd_test.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

void ExpOf16(const float* x, float* y) { Store16(Exp16(Load16(x)), y); }
float SumOf16(const float* x) { return SumLanes(Load16(x)); }
float LargestOf16(const float* x) { return LargestLane(Load16(x)); }
void Round16ToBFloat16(const float* x, float* rounded, BFloat16* stored) {
  Store16(Round16<BFloat16>(Load16(x)), rounded);
  Store16(Load16(x), stored);
}
void ScoresOf16Keys(const float* q, const float* keys, int64_t dim, float* scores) {
  ScoreRow(q, keys, 16, dim, scores);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(ExpOf16);
HWY_EXPORT(SumOf16);
HWY_EXPORT(LargestOf16);
HWY_EXPORT(Round16ToBFloat16);
HWY_EXPORT(ScoresOf16Keys);

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> Exp(std::vector<float> x) {
  while (x.size() % 16 != 0) x.push_back(0.0f);
  std::vector<float> y(x.size());
  for (size_t i = 0; i < x.size(); i += 16) HWY_DYNAMIC_DISPATCH(ExpOf16)(&x[i], &y[i]);
  return y;
}

// Distance in units in the last place of the correctly rounded result.
double UlpError(float value, double exact) {
  const auto rounded = static_cast<float>(exact);
  const float next = std::nextafter(rounded, kInf);
  return std::fabs(static_cast<double>(value) - exact) / (static_cast<double>(next) - rounded);
}

TEST(Exp16, StaysCloseToOneUlpOverItsNormalRange) {
  std::vector<float> x;
  for (float value = -87.3365f; value < 88.37f; value += 0.000613f) x.push_back(value);
  for (float value = 1e-9f; value < 1.0f; value *= 1.001f) {
    x.push_back(value);
    x.push_back(-value);
  }
  ForEachInstructionSet([&] {
    const std::vector<float> y = Exp(x);
    double worst = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
      worst = std::max(worst, UlpError(y[i], std::exp(static_cast<double>(x[i]))));
    }
    // 1/2 for the last addition, 1/4 each for r and r + r^2 q(r), 0.08 for q.
    EXPECT_LT(worst, 1.08);
  });
}

TEST(Exp16, IsExactWhereSoftmaxNeedsIt) {
  ForEachInstructionSet([] {
    const std::vector<float> y =
        Exp({0.0f, -0.0f, -kInf, -88.0f, -1e30f, std::numeric_limits<float>::lowest(), 88.38f, kInf,
             1e30f, std::numeric_limits<float>::quiet_NaN()});
    EXPECT_EQ(y[0], 1.0f);
    EXPECT_EQ(y[1], 1.0f);
    for (size_t i = 2; i < 6; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(y[i]), 0u) << i;
    for (size_t i = 6; i < 9; ++i) EXPECT_EQ(y[i], kInf) << i;
    EXPECT_TRUE(std::isnan(y[9]));
  });
}

TEST(SumLanes, AddsByTheFixedTree) {
  ForEachInstructionSet([] {
    for (uint64_t seed = 0; seed < 50; ++seed) {
      const std::vector<float> x = RandomFloats(16, seed);
      float lanes[16];
      std::copy(x.begin(), x.end(), lanes);
      EXPECT_EQ(HWY_DYNAMIC_DISPATCH(SumOf16)(x.data()), TreeSum(lanes));
      EXPECT_EQ(HWY_DYNAMIC_DISPATCH(LargestOf16)(x.data()), *std::max_element(x.begin(), x.end()));
    }
  });
}

TEST(Round16, IsToBFloat16) {
  ForEachInstructionSet([] {
    for (uint64_t block = 0; block < 4096; ++block) {
      float x[16], rounded[16];
      BFloat16 stored[16];
      for (uint64_t i = 0; i < 16; ++i) {
        // Every sign and exponent with mantissas around the ties, NaN and infinity included.
        const auto high = static_cast<uint32_t>(block * 16 + i);
        const uint32_t low[] = {0x0000, 0x7FFF, 0x8000, 0x8001};
        x[i] = std::bit_cast<float>((high << 16) | low[HashBits(block, i, 0) % 4]);
      }
      HWY_DYNAMIC_DISPATCH(Round16ToBFloat16)(x, rounded, stored);
      for (int i = 0; i < 16; ++i) {
        ASSERT_EQ(stored[i].bits, ToBFloat16(x[i]).bits) << std::bit_cast<uint32_t>(x[i]);
        ASSERT_EQ(std::bit_cast<uint32_t>(rounded[i]), uint32_t{stored[i].bits} << 16);
      }
    }
  });
}

TEST(ScoreRow, GivesEveryKeyItsOwn16PartialSums) {
  for (const int64_t dim : {16, 32, 48, 128, 256}) {
    const std::vector<float> q = RandomFloats(dim, 1);
    const std::vector<float> keys = RandomFloats(16 * dim, 2);
    ForEachInstructionSet([&] {
      float scores[16];
      HWY_DYNAMIC_DISPATCH(ScoresOf16Keys)(q.data(), keys.data(), dim, scores);
      for (int64_t j = 0; j < 16; ++j) {
        EXPECT_EQ(scores[j], Dot16(q.data(), keys.data() + j * dim, dim)) << j;
      }
    });
  }
}

}  // namespace
}  // namespace quatrain
#endif  // HWY_ONCE
