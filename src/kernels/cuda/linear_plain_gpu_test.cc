#if defined(QT_WITH_CUDA)
#include "kernels/cuda/device_test.h"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_plain.h"
#include "kernels/cuda/linear_reference.h"
#include "kernels/kernel_test.h"

namespace quatrain::cuda {
namespace {

constexpr int64_t kMostTokens = 300;

// A matrix, x of kMostTokens tokens and the sums of the reference chain.
struct Product {
  int64_t n, k;
  DeviceVector<BFloat16> weight, x;
  DeviceVector<float> sums;

  Product(int64_t rows, int64_t columns)
      : n(rows),
        k(columns),
        weight(RandomRounded<BFloat16>(rows * columns, 3, 0.1f)),
        x(RandomRounded<BFloat16>(kMostTokens * columns, 4)),
        sums(kMostTokens * rows) {
    LinearReference({.weight_NK = weight.data(),
                     .x = x.data(),
                     .out_features = n,
                     .in_features = k,
                     .num_tokens = kMostTokens,
                     .segment_inputs = SegmentInputs(n, k),
                     .y_float = sums.data()},
                    nullptr);
  }
  LinearDecodeArgs Args(int64_t tokens) {
    return {.type = WeightType::kBFloat16,
            .shape = {n, k, 0, 4},
            .weight = weight.data(),
            .x = x.data(),
            .num_tokens = tokens};
  }
  std::vector<float> Expected(int64_t tokens) const {
    std::vector<float> all = sums.Download();
    all.resize(tokens * n);
    return all;
  }
};

// Plans with tiles of `rows`, each kernel once a CTA count.
std::vector<PlainPlan> PlansOf(int rows) {
  std::vector<PlainPlan> plans;
  for (const int sharing : {1, 2}) {
    if (sharing == 2 && rows < kFewestRowsShared) continue;
    for (const int groups : {1, 2}) {
      for (const int boxes : {1, 2, 4}) {
        if (boxes == 4 && (rows > 64 || sharing == 2)) continue;
        for (const int ctas : {0, 5}) plans.push_back({rows, groups, boxes, ctas, sharing});
      }
    }
  }
  return plans;
}

std::string Name(const PlainPlan& plan, int64_t tokens) {
  return fmt::format("{} rows, {} warpgroups, {} boxes, {} CTAs, {} share, {} tokens", plan.rows,
                     plan.num_warpgroups, plan.boxes, plan.ctas, plan.sharing, tokens);
}

// Rows of a tile, and the matrices and numbers of tokens that its plans meet.
struct RowsCase {
  int rows;
  std::vector<std::pair<int64_t, int64_t>> matrices;  // N and K
  std::vector<int64_t> tokens;
};
void PrintTo(const RowsCase& c, std::ostream* out) { *out << c.rows << " rows"; }

class LinearPlainRowsGpu : public testing::TestWithParam<RowsCase> {};

// Sums and rounded outputs, which leave one by one and as boxes; K of whole boxes and of a part of
// one; one tile and many a CTA; the second launch overlaps the first.
TEST_P(LinearPlainRowsGpu, EveryPlanGivesTheBitsOfTheChain) {
  QT_NEEDS_DEVICE();
  for (const auto& [n, k] : GetParam().matrices) {
    Product product(n, k);
    for (const int64_t tokens : GetParam().tokens) {
      const std::vector<float> expected = product.Expected(tokens);
      std::vector<BFloat16> rounded(expected.size());
      std::transform(expected.begin(), expected.end(), rounded.begin(), ToBFloat16);
      for (const PlainPlan& plan : PlansOf(GetParam().rows)) {
        DeviceVector<float> sums(tokens * n);
        DeviceVector<BFloat16> y(tokens * n);
        LinearDecodeArgs to_sums = product.Args(tokens);
        to_sums.y_float = sums.data();
        LinearDecodeArgs to_y = product.Args(tokens);
        to_y.y = y.data();
        LinearPlain(to_sums, plan, nullptr, LaunchOrder::kOverlap);
        LinearPlain(to_y, plan, nullptr, LaunchOrder::kOverlap);
        EXPECT_EQ(CountDifferences(sums.Download(), expected), 0)
            << k << ": " << Name(plan, tokens);
        EXPECT_EQ(CountDifferences(y.Download(), rounded), 0) << k << ": " << Name(plan, tokens);
      }
    }
  }
}

std::vector<RowsCase> EveryNumberOfRows(const std::vector<std::pair<int64_t, int64_t>>& matrices,
                                        const std::vector<int64_t>& tokens) {
  std::vector<RowsCase> cases;
  for (const int rows : kPlainRows) cases.push_back({rows, matrices, tokens});
  return cases;
}

// Five CTAs with several tiles each, and rings that go round more than once.
INSTANTIATE_TEST_SUITE_P(Short, LinearPlainRowsGpu,
                         testing::ValuesIn(EveryNumberOfRows({{520, 616}}, {130})));
INSTANTIATE_TEST_SUITE_P(Long, LinearPlainRowsGpu,
                         testing::ValuesIn(EveryNumberOfRows({{1000, 1152}, {520, 616}},
                                                             {1, 17, 64, 90, 130, 300})));

// Outputs as boxes and, with an odd N, one by one; rows of x that lie apart.
TEST(LinearPlainGpu, BiasAndResidualAreThoseOfTheKernelForFewTokens) {
  QT_NEEDS_DEVICE();
  for (const int64_t n : {336, 333}) {
    Product product(n, 256);
    DeviceVector<BFloat16> bias(RandomRounded<BFloat16>(n, 1));
    DeviceVector<BFloat16> residual(RandomRounded<BFloat16>(kMostTokens * n, 2));
    for (const int64_t tokens : {5, 90}) {
      LinearDecodeArgs args = product.Args(tokens);
      args.shape.in_features = 192;
      args.x_stride = 256;
      DeviceVector<BFloat16> weight(RandomRounded<BFloat16>(n * 192, 7));
      args.weight = weight.data();
      for (const bool has_both : {true, false}) {
        args.bias = has_both ? bias.data() : nullptr;
        args.residual = has_both ? residual.data() : nullptr;
        DeviceVector<BFloat16> plain(tokens * n), few(tokens * n);
        args.y = plain.data();
        LinearPlain(args, PlanLinearPlain(args, NumMultiprocessors()), nullptr,
                    LaunchOrder::kAfterPrevious);
        args.y = few.data();
        LinearDecode(args, PlanLinearDecode(args, NumMultiprocessors()), nullptr,
                     LaunchOrder::kAfterPrevious);
        EXPECT_EQ(CountDifferences(plain.Download(), few.Download()), 0)
            << n << ", " << tokens << " tokens";
      }
    }
  }
}

TEST(LinearPlainGpu, PlansAreOfTheRowsThereAre) {
  for (const int multiprocessors : {1, 108, 132}) {
    for (const int64_t n : {8, 100, 2048, 5120, 24576, 151936}) {
      for (const int64_t tokens : {1, 8, 64, 65, 128, 129, 5000}) {
        const PlainPlan plan = PlanLinearPlain(
            {.type = WeightType::kBFloat16, .shape = {n, 4096, 0, 4}, .num_tokens = tokens},
            multiprocessors);
        EXPECT_NE(std::find(std::begin(kPlainRows), std::end(kPlainRows), plan.rows),
                  std::end(kPlainRows));
        EXPECT_GE(plan.num_warpgroups, 1);
        EXPECT_LE(plan.num_warpgroups, 2);
        EXPECT_GE(plan.sharing, 1);
        EXPECT_LE(plan.sharing, plan.rows >= kFewestRowsShared && tokens > 64 ? 2 : 1);
      }
    }
  }
}

// Neither a matrix of 2048 nor one of 5120 rows leaves many of 132 multiprocessors idle.
TEST(LinearPlainGpu, PlansGiveSmallMatricesEnoughCtas) {
  for (const int64_t n : {2048, 5120}) {
    for (const int64_t tokens : {16, 64, 128}) {
      const PlainPlan plan = PlanLinearPlain(
          {.type = WeightType::kBFloat16, .shape = {n, 4096, 0, 4}, .num_tokens = tokens}, 132);
      const int64_t each = 64 * plan.num_warpgroups;
      EXPECT_GE((n + plan.rows - 1) / plan.rows * ((tokens + each - 1) / each), 100)
          << n << ", " << tokens << " tokens";
    }
  }
}

TEST(LinearPlainGpu, ServesRowsOfOneChain) {
  EXPECT_TRUE(IsPlain({.type = WeightType::kBFloat16, .shape = {4096, 4096, 0, 4}}));
  EXPECT_FALSE(IsPlain({.type = WeightType::kBFloat16, .shape = {4096, 12288, 0, 4}}));
  EXPECT_FALSE(IsPlain({.type = WeightType::kInt4, .shape = {4096, 4096, 128, 4}}));
  const auto is_faster = [](int64_t n, int64_t tokens) {
    return IsFasterPlain(
        {.type = WeightType::kBFloat16, .shape = {n, 4096, 0, 4}, .num_tokens = tokens}, 132);
  };
  EXPECT_FALSE(is_faster(2048, 8));
  EXPECT_TRUE(is_faster(2048, 9));
  EXPECT_TRUE(is_faster(5120, 1));
  EXPECT_TRUE(is_faster(151936, 1));
}

}  // namespace
}  // namespace quatrain::cuda
#endif
