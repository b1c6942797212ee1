#ifdef QT_WITH_CUDA
#include <numeric>

#include "kernels/cuda/device_test.h"
#include "kernels/cuda/moe_backward.h"
#include "kernels/elementwise.h"
#include "kernels/kernel_test.h"
#include "kernels/moe.h"

namespace quatrain::cuda {
namespace {

constexpr LaunchOrder kAfter = LaunchOrder::kAfterPrevious;

std::vector<float> Floats(const std::vector<BFloat16>& values) {
  std::vector<float> floats;
  for (const BFloat16 v : values) floats.push_back(ToFloat(v));
  return floats;
}

// Two roundings to BF16 apart at most; FP32 sums of a row in two orders.
void ExpectNear(const std::vector<float>& found, const std::vector<float>& expected, float scale) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], expected[i], scale * (1.0f + std::fabs(expected[i]))) << i;
  }
}

class MoeBackwardGpu : public testing::Test {
 protected:
  static constexpr int64_t kTokens = 37, kSlots = 3, kExperts = 5, kHidden = 264, kInner = 40;
  ThreadPool pool{1};
  std::vector<int32_t> ids;
  MoePermutation permutation;

  void SetUp() override {
    for (int64_t i = 0; i < kTokens * kSlots; ++i) {
      ids.push_back(static_cast<int32_t>((i % kSlots * 2 + i / kSlots) % kExperts));
    }
    permutation = PermuteByExpert(ids, kExperts, kSlots);
  }
};

TEST_F(MoeBackwardGpu, CombineAnswersAsTheCpu) {
  QT_NEEDS_DEVICE();
  const int64_t rows = kTokens * kSlots;
  const std::vector<BFloat16> dout = RandomRounded<BFloat16>(kTokens * kHidden, 1);
  const std::vector<BFloat16> y = RandomRounded<BFloat16>(rows * kHidden, 2);
  const std::vector<float> weights = RandomFloats(rows, 3);
  DeviceVector<BFloat16> device_dout(dout), device_y(y), dy(rows * kHidden);
  DeviceVector<float> device_weights(weights), dweights(rows);
  DeviceVector<int32_t> slot_row(permutation.slot_row);
  MoeCombineGrad({.dout = device_dout.data(),
                  .y = device_y.data(),
                  .weights = device_weights.data(),
                  .slot_row = slot_row.data(),
                  .num_tokens = kTokens,
                  .num_slots = kSlots,
                  .hidden = kHidden,
                  .dy = dy.data(),
                  .dweights = dweights.data()},
                 nullptr, kAfter);
  std::vector<float> expected_dy(rows * kHidden), expected_dweights(rows);
  const std::vector<float> dout_float = Floats(dout);
  CombineBackward<BFloat16>(pool,
                            {.y = y.data(),
                             .weights = weights.data(),
                             .dout = dout_float.data(),
                             .dy = expected_dy.data(),
                             .dweights = expected_dweights.data()},
                            permutation, kHidden);
  EXPECT_EQ(CountDifferences(dy.Download(), RoundAll<BFloat16>(expected_dy)), 0);
  ExpectNear(dweights.Download(), expected_dweights, 1e-4f);
}

TEST_F(MoeBackwardGpu, SwiGluAnswersAsTheCpu) {
  QT_NEEDS_DEVICE();
  const int64_t rows = 19;
  const std::vector<BFloat16> gate_up = RandomRounded<BFloat16>(rows * 2 * kInner, 4, 3.0f);
  const std::vector<BFloat16> dh = RandomRounded<BFloat16>(rows * kInner, 5);
  DeviceVector<BFloat16> device_gate_up(gate_up), device_dh(dh), dgate_up(rows * 2 * kInner);
  SwiGluGrad({.gate_up = device_gate_up.data(),
              .dh = device_dh.data(),
              .rows = rows,
              .inner = kInner,
              .dgate_up = dgate_up.data()},
             nullptr, kAfter);
  const std::vector<float> found = Floats(dgate_up.Download());
  const std::vector<float> dh_float = Floats(dh);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<float> expected(2 * kInner);
    SiluMulBackward<BFloat16>(
        pool, gate_up.data() + r * 2 * kInner, gate_up.data() + r * 2 * kInner + kInner,
        dh_float.data() + r * kInner, kInner, expected.data(), expected.data() + kInner);
    ExpectNear({found.begin() + r * 2 * kInner, found.begin() + (r + 1) * 2 * kInner}, expected,
               0x1p-8f);
  }
}

TEST_F(MoeBackwardGpu, GatherAnswersAsTheCpu) {
  QT_NEEDS_DEVICE();
  const std::vector<BFloat16> drows = RandomRounded<BFloat16>(kTokens * kSlots * kHidden, 6);
  const std::vector<float> other = RandomFloats(kTokens * kHidden, 7);
  DeviceVector<BFloat16> device_drows(drows), dx(kTokens * kHidden), dx_alone(kTokens * kHidden);
  DeviceVector<float> device_other(other);
  DeviceVector<int32_t> slot_row(permutation.slot_row);
  MoeGatherGradArgs args{.drows = device_drows.data(),
                         .slot_row = slot_row.data(),
                         .other = device_other.data(),
                         .num_tokens = kTokens,
                         .num_slots = kSlots,
                         .hidden = kHidden,
                         .dx = dx.data()};
  MoeGatherGrad(args, nullptr, kAfter);
  args.other = nullptr;
  args.dx = dx_alone.data();
  MoeGatherGrad(args, nullptr, LaunchOrder::kOverlap);
  std::vector<float> expected = other, alone(other.size(), 0.0f);
  const std::vector<float> drows_float = Floats(drows);
  GatherRowsBackward(pool, drows_float.data(), permutation, kHidden, expected.data());
  GatherRowsBackward(pool, drows_float.data(), permutation, kHidden, alone.data());
  ExpectNear(Floats(dx.Download()), expected, 0x1p-8f);
  EXPECT_EQ(CountDifferences(dx_alone.Download(), RoundAll<BFloat16>(alone)), 0);
}

TEST_F(MoeBackwardGpu, RefusesRowsOutsideTheContract) {
  EXPECT_THROW(MoeCombineGrad({.num_tokens = 1, .num_slots = 1, .hidden = 12}, nullptr, kAfter),
               Error);
  EXPECT_THROW(SwiGluGrad({.rows = 1, .inner = 4}, nullptr, kAfter), Error);
  EXPECT_THROW(MoeGatherGrad({.num_tokens = 1, .num_slots = 1, .hidden = 0}, nullptr, kAfter),
               Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif
