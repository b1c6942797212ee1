#ifdef QT_WITH_CUDA
#include <numeric>

#include "kernels/cuda/device_test.h"
#include "kernels/cuda/linear_reference.h"
#include "kernels/cuda/weight_grad.h"
#include "kernels/kernel_test.h"
#include "kernels/linear.h"

namespace quatrain::cuda {
namespace {

constexpr LaunchOrder kAfter = LaunchOrder::kAfterPrevious;

struct GradCase {
  int64_t n, k;
  std::vector<int64_t> rows;  // of each expert
};

int64_t AllRows(const GradCase& c) {
  return std::accumulate(c.rows.begin(), c.rows.end(), int64_t{0});
}

std::vector<int32_t> BeginsOf(const GradCase& c) {
  std::vector<int32_t> begin = {0};
  for (const int64_t rows : c.rows) begin.push_back(begin.back() + static_cast<int32_t>(rows));
  return begin;
}

// Rows [begin, begin + rows) of `all` as columns, zero up to a multiple of 16.
std::vector<BFloat16> Transposed(const std::vector<BFloat16>& all, int64_t begin, int64_t rows,
                                 int64_t columns) {
  const int64_t padded = (rows + 15) / 16 * 16;
  std::vector<BFloat16> turned(columns * padded, BFloat16{0});
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      turned[c * padded + r] = all[(begin + r) * columns + c];
    }
  }
  return turned;
}

// old + one chain over the rows, by the plain chain of linear_reference.h.
std::vector<float> Expected(const GradCase& c, const std::vector<BFloat16>& dy,
                            const std::vector<BFloat16>& x, std::vector<float> old) {
  const std::vector<int32_t> begin = BeginsOf(c);
  for (size_t e = 0; e < c.rows.size(); ++e) {
    if (c.rows[e] == 0) continue;
    const int64_t padded = (c.rows[e] + 15) / 16 * 16;
    DeviceVector<BFloat16> dy_NR(Transposed(dy, begin[e], c.rows[e], c.n));
    DeviceVector<BFloat16> x_KR(Transposed(x, begin[e], c.rows[e], c.k));
    DeviceVector<float> sums(c.n * c.k);
    LinearReference({.weight_NK = x_KR.data(),
                     .x = dy_NR.data(),
                     .out_features = c.k,
                     .in_features = padded,
                     .num_tokens = c.n,
                     .segment_inputs = padded,
                     .y_float = sums.data()},
                    nullptr);
    const std::vector<float> chain = sums.Download();
    for (int64_t i = 0; i < c.n * c.k; ++i) old[e * c.n * c.k + i] += chain[i];
  }
  return old;
}

class WeightGradGpu : public testing::TestWithParam<GradCase> {};

TEST_P(WeightGradGpu, IsOneChainOverTheRowsOfEachExpert) {
  QT_NEEDS_DEVICE();
  const GradCase& c = GetParam();
  const int64_t experts = std::ssize(c.rows);
  const int64_t size = experts * c.n * c.k;
  const std::vector<BFloat16> dy = RandomRounded<BFloat16>(AllRows(c) * c.n, 1);
  const std::vector<BFloat16> x = RandomRounded<BFloat16>(AllRows(c) * c.k, 2);
  const std::vector<float> old = RandomFloats(size, 3);
  DeviceVector<BFloat16> device_dy(dy), device_x(x);
  DeviceVector<int32_t> begin(BeginsOf(c));
  DeviceVector<float> added(old), replaced(size);
  WeightGradArgs args{.dy = device_dy.data(),
                      .x = device_x.data(),
                      .num_rows = AllRows(c),
                      .out_features = c.n,
                      .in_features = c.k,
                      .num_experts = experts,
                      .expert_begin = begin.data(),
                      .dweight = added.data()};
  WeightGrad(args, nullptr, kAfter);
  args.old = OldGradient::kReplaced;
  args.dweight = replaced.data();
  WeightGrad(args, nullptr, LaunchOrder::kOverlap);
  EXPECT_EQ(CountDifferences(added.Download(), Expected(c, dy, x, old)), 0);
  EXPECT_EQ(
      CountDifferences(replaced.Download(), Expected(c, dy, x, std::vector<float>(size, 0.0f))), 0);
}

INSTANTIATE_TEST_SUITE_P(Cases, WeightGradGpu,
                         testing::Values(GradCase{64, 64, {16}}, GradCase{128, 256, {64}},
                                         GradCase{136, 264, {1, 0, 63, 65, 200}},
                                         GradCase{8, 8, {7, 9}},
                                         GradCase{320, 520, {0, 130, 3, 0, 64, 17, 0}},
                                         GradCase{1536, 768, {100, 0, 61, 300}},
                                         // Around the number of rows from which on the L2 adds.
                                         GradCase{72, 136, {1023, 1030, 3, 1024}},
                                         // More tiles than a device holds at once.
                                         GradCase{2304, 2304, {33, 127, 5}}));

TEST(WeightGradGpu, AnswersAsTheCpu) {
  QT_NEEDS_DEVICE();
  const int64_t rows = 150, n = 72, k = 136;
  const std::vector<float> dy = RandomFloats(rows * n, 4);
  const std::vector<BFloat16> dy_rounded = RoundAll<BFloat16>(dy);
  const std::vector<BFloat16> x = RandomRounded<BFloat16>(rows * k, 5);
  std::vector<float> expected = RandomFloats(n * k, 6);
  DeviceVector<float> dweight(expected);
  DeviceVector<BFloat16> device_dy(dy_rounded), device_x(x);
  WeightGrad({.dy = device_dy.data(),
              .x = device_x.data(),
              .num_rows = rows,
              .out_features = n,
              .in_features = k,
              .dweight = dweight.data()},
             nullptr, kAfter);
  std::vector<float> dy_float;
  for (const BFloat16 v : dy_rounded) dy_float.push_back(ToFloat(v));
  ThreadPool pool(1);
  const LinearWeightGradTask<BFloat16> task{.dy = dy_float.data(),
                                            .x = x.data(),
                                            .rows = rows,
                                            .out_features = n,
                                            .in_features = k,
                                            .dweight = expected.data()};
  LinearWeightGrad<BFloat16>(pool, {&task, 1});
  // FP32 sums of 150 products of standard normals in two orders.
  const std::vector<float> found = dweight.Download();
  for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-4f) << i;
}

// Values that another expert's rows would spoil.
TEST(WeightGradGpu, ReadsNoRowOfAnotherExpert) {
  QT_NEEDS_DEVICE();
  const GradCase c{64, 64, {10, 20, 40}};
  std::vector<BFloat16> dy = RandomRounded<BFloat16>(AllRows(c) * c.n, 1);
  std::vector<BFloat16> x = RandomRounded<BFloat16>(AllRows(c) * c.k, 2);
  std::fill(dy.begin() + 10 * c.n, dy.begin() + 30 * c.n, ToBFloat16(INFINITY));
  std::fill(x.begin() + 10 * c.k, x.begin() + 30 * c.k, ToBFloat16(NAN));
  DeviceVector<BFloat16> device_dy(dy), device_x(x);
  DeviceVector<int32_t> begin(BeginsOf(c));
  DeviceVector<float> dweight(3 * c.n * c.k);
  WeightGrad({.dy = device_dy.data(),
              .x = device_x.data(),
              .num_rows = AllRows(c),
              .out_features = c.n,
              .in_features = c.k,
              .num_experts = 3,
              .expert_begin = begin.data(),
              .old = OldGradient::kReplaced,
              .dweight = dweight.data()},
             nullptr, kAfter);
  const std::vector<float> found = dweight.Download();
  for (int64_t i = 0; i < c.n * c.k; ++i) {
    ASSERT_TRUE(std::isfinite(found[i]));
    ASSERT_TRUE(std::isnan(found[c.n * c.k + i]));
    ASSERT_TRUE(std::isfinite(found[2 * c.n * c.k + i]));
  }
}

TEST(WeightGradGpu, RefusesShapesOutsideTheContract) {
  EXPECT_THROW(WeightGrad({.num_rows = 1, .out_features = 12, .in_features = 8}, nullptr, kAfter),
               Error);
  EXPECT_THROW(WeightGrad({.num_rows = 1, .out_features = 8, .in_features = 8, .num_experts = 2},
                          nullptr, kAfter),
               Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif
