#ifdef QT_WITH_CUDA
#include <numeric>

#include "kernels/cuda/device_weight_test.h"
#include "kernels/cuda/input_grad.h"
#include "kernels/cuda/linear_library.h"
#include "kernels/cuda/linear_reference.h"
#include "kernels/linear.h"

namespace quatrain::cuda {
namespace {

constexpr LaunchOrder kAfter = LaunchOrder::kAfterPrevious;

struct GradCase {
  int64_t n, k, group;
  std::vector<int64_t> rows;  // of each expert
};

std::ostream& operator<<(std::ostream& out, const GradCase& c) {
  return out << c.n << " x " << c.k << ", group " << c.group << ", " << c.rows.size() << " experts";
}

int64_t AllRows(const GradCase& c) {
  return std::accumulate(c.rows.begin(), c.rows.end(), int64_t{0});
}

std::vector<int32_t> BeginsOf(const GradCase& c) {
  std::vector<int32_t> begin = {0};
  for (const int64_t rows : c.rows) begin.push_back(begin.back() + static_cast<int32_t>(rows));
  return begin;
}

// W'^T [K, N] of one matrix.
std::vector<BFloat16> Transposed(const std::vector<BFloat16>& weight, int64_t n, int64_t k) {
  std::vector<BFloat16> turned(weight.size());
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; ++i) turned[i * n + row] = weight[row * k + i];
  }
  return turned;
}

// The experts' codes in every form a test needs.
struct Experts {
  PackedShape shape;                          // of one
  std::vector<std::vector<BFloat16>> turned;  // W'^T of each
  DeviceVector<uint8_t> packed;

  explicit Experts(const GradCase& c)
      : shape{c.n, c.k, c.group, 4}, packed(c.rows.size() * PackedBytes(shape)) {
    for (size_t e = 0; e < c.rows.size(); ++e) {
      const HostCodes host = RandomCodes(shape, 10 + e);
      DeviceVector<int32_t> codes(host.codes);
      DeviceVector<BFloat16> scale(host.scale);
      PackWeights(shape, {codes.data(), scale.data()}, packed.data() + e * PackedBytes(shape),
                  nullptr, nullptr);
      turned.push_back(Transposed(Dequantize(shape, host), c.n, c.k));
    }
  }
};

std::vector<BFloat16> Gradients(const GradCase& c) {
  return RandomRounded<BFloat16>(AllRows(c) * c.n, 1);
}

// One chain over N, by the plain chain of linear_reference.h.
std::vector<BFloat16> Expected(const GradCase& c, const Experts& experts,
                               const std::vector<BFloat16>& dy) {
  const std::vector<int32_t> begin = BeginsOf(c);
  std::vector<BFloat16> all;
  for (size_t e = 0; e < c.rows.size(); ++e) {
    if (c.rows[e] == 0) continue;
    DeviceVector<BFloat16> weight(experts.turned[e]);
    DeviceVector<BFloat16> rows(
        std::vector<BFloat16>(dy.begin() + begin[e] * c.n, dy.begin() + begin[e + 1] * c.n));
    DeviceVector<float> sums(c.rows[e] * c.k);
    LinearReference({.weight_NK = weight.data(),
                     .x = rows.data(),
                     .out_features = c.k,
                     .in_features = c.n,
                     .num_tokens = c.rows[e],
                     .segment_inputs = c.n,
                     .y_float = sums.data()},
                    nullptr);
    for (const float sum : sums.Download()) all.push_back(ToBFloat16(sum));
  }
  return all;
}

std::vector<BFloat16> Found(const GradCase& c, Experts& experts, const std::vector<BFloat16>& dy,
                            LaunchOrder order) {
  DeviceVector<BFloat16> device_dy(dy), dx(AllRows(c) * c.k);
  DeviceVector<int32_t> begin(BeginsOf(c));
  InputGrad({.dy = device_dy.data(),
             .weight = experts.packed.data(),
             .shape = experts.shape,
             .num_rows = AllRows(c),
             .num_experts = std::ssize(c.rows),
             .expert_begin = c.rows.size() > 1 ? begin.data() : nullptr,
             .dx = dx.data()},
            nullptr, order);
  return dx.Download();
}

class InputGradGpu : public testing::TestWithParam<GradCase> {};

TEST_P(InputGradGpu, IsOneChainOverTheOutputsOfEachExpert) {
  QT_NEEDS_DEVICE();
  const GradCase& c = GetParam();
  Experts experts(c);
  const std::vector<BFloat16> dy = Gradients(c);
  const std::vector<BFloat16> expected = Expected(c, experts, dy);
  EXPECT_EQ(CountDifferences(Found(c, experts, dy, kAfter), expected), 0);
  EXPECT_EQ(CountDifferences(Found(c, experts, dy, LaunchOrder::kOverlap), expected), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, InputGradGpu,
    testing::Values(GradCase{128, 256, 128, {128}}, GradCase{128, 256, 32, {128}},
                    GradCase{64, 128, 64, {16}}, GradCase{8, 32, 32, {1}},
                    // Ends inside slots and chunks, one scale a row.
                    GradCase{136, 264, 264, {33}}, GradCase{200, 416, 32, {257}},
                    // All numbers of rows of a tile, and of staged rows.
                    GradCase{256, 384, 128, {1, 0, 31, 65, 200, 7, 16, 17}},
                    GradCase{136, 320, 64, {0, 30, 3, 0, 64, 17, 0}},
                    GradCase{1536, 2048, 32, {100, 0, 61, 130}},
                    GradCase{2048, 768, 32, {9, 12, 20, 1, 0, 3}},
                    // More tiles than a device holds at once.
                    GradCase{264, 4096, 128, {1500}}, GradCase{72, 2304, 32, {700, 127, 5, 300}}));

TEST(InputGradGpu, HasTheBitsOfThePinnedLibrary) {
  QT_NEEDS_DEVICE();
  const std::unique_ptr<LinearLibrary> library = LinearLibrary::Open();
  if (library == nullptr) GTEST_SKIP() << "no libcublasLt here";
  // W'^T is [4096, 2048]: one chain.
  for (const int64_t rows : {1, 7, 64, 128, 257, 512, 4096}) {
    const GradCase c{2048, 4096, 128, {rows}};
    Experts experts(c);
    const std::vector<BFloat16> dy = Gradients(c);
    DeviceVector<BFloat16> weight(experts.turned[0]), device_dy(dy), dx(rows * c.k);
    library->Multiply({.weight_NK = weight.data(),
                       .x = device_dy.data(),
                       .out_features = c.k,
                       .in_features = c.n,
                       .num_tokens = rows,
                       .y = dx.data()},
                      nullptr);
    EXPECT_EQ(CountDifferences(Found(c, experts, dy, kAfter), dx.Download()), 0) << rows;
  }
}

TEST(InputGradGpu, AnswersAsTheCpu) {
  QT_NEEDS_DEVICE();
  const GradCase c{152, 320, 64, {50}};
  const PackedShape shape{c.n, c.k, c.group, 4};
  Experts experts(c);
  const HostCodes host = RandomCodes(shape, 10);
  const std::vector<BFloat16> dy = Gradients(c);
  std::vector<float> dy_float, expected(AllRows(c) * c.k);
  for (const BFloat16 v : dy) dy_float.push_back(ToFloat(v));
  ThreadPool pool(1);
  const LinearInputGradTask task{.dy = dy_float.data(),
                                 .rows = AllRows(c),
                                 .weight = {.type = WeightType::kInt4,
                                            .out_features = c.n,
                                            .in_features = c.k,
                                            .group_size = c.group,
                                            .data = host.codes.data(),
                                            .scale = host.scale.data()},
                                 .dx = expected.data()};
  LinearInputGrad(pool, {&task, 1});
  const std::vector<BFloat16> found = Found(c, experts, dy, kAfter);
  // One rounding to BF16 of sums that two orders make.
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(ToFloat(found[i]), expected[i], 1e-3f + std::abs(expected[i]) / 128) << i;
  }
}

// Values that another expert's rows would spoil.
TEST(InputGradGpu, ReadsNoRowOfAnotherExpert) {
  QT_NEEDS_DEVICE();
  const GradCase c{72, 128, 32, {10, 20, 40}};
  Experts experts(c);
  std::vector<BFloat16> dy = Gradients(c);
  std::fill(dy.begin() + 10 * c.n, dy.begin() + 30 * c.n, ToBFloat16(NAN));
  const std::vector<BFloat16> found = Found(c, experts, dy, kAfter);
  for (int64_t i = 0; i < AllRows(c) * c.k; ++i) {
    ASSERT_EQ(std::isnan(ToFloat(found[i])), i / c.k >= 10 && i / c.k < 30) << i;
  }
}

TEST(InputGradGpu, RefusesShapesOutsideTheContract) {
  EXPECT_THROW(InputGrad({.shape = {12, 128, 32, 4}, .num_rows = 1}, nullptr, kAfter), Error);
  EXPECT_THROW(InputGrad({.shape = {16, 128, 32, 8}, .num_rows = 1}, nullptr, kAfter), Error);
  EXPECT_THROW(
      InputGrad({.shape = {16, 128, 32, 4}, .num_rows = 1, .num_experts = 2}, nullptr, kAfter),
      Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif
