#ifdef QT_WITH_CUDA
#include "kernels/cuda/device_weight_test.h"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_library.h"
#include "kernels/cuda/linear_reference.h"

namespace quatrain::cuda {
namespace {

// Rows of tokens that decode, prefill and training meet.
const int64_t kTokens[] = {1, 2, 7, 8, 16, 33, 64, 128, 257, 512, 4096};

std::vector<BFloat16> Rounded(const std::vector<float>& values) {
  std::vector<BFloat16> rounded;
  for (const float v : values) rounded.push_back(ToBFloat16(v));
  return rounded;
}

struct Shape {
  int64_t n, k;
};

class LinearLibraryGpu : public testing::TestWithParam<Shape> {};

// The chain, our kernels over codes and over BF16, and the library over what the codes stand for.
TEST_P(LinearLibraryGpu, EveryNumberOfTokensHasTheBitsOfTheChain) {
  QT_NEEDS_DEVICE();
  const std::unique_ptr<LinearLibrary> library = LinearLibrary::Open();
  if (library == nullptr) GTEST_SKIP() << "no libcublasLt here";
  const auto [n, k] = GetParam();
  const PackedShape shape{n, k, 128, 4};
  DeviceWeight weight(shape, RandomCodes(shape, 5));
  const int64_t most = kTokens[std::size(kTokens) - 1];
  DeviceVector<BFloat16> x(RandomRounded<BFloat16>(most * k, 9));
  DeviceVector<float> sums(most * n);
  LinearReference({.weight_NK = weight.plain.data(),
                   .x = x.data(),
                   .out_features = n,
                   .in_features = k,
                   .num_tokens = most,
                   .segment_inputs = SegmentInputs(n, k),
                   .y_float = sums.data()},
                  nullptr);
  const std::vector<BFloat16> all = Rounded(sums.Download());
  for (const int64_t tokens : kTokens) {
    const std::vector<BFloat16> expected(all.begin(), all.begin() + tokens * n);
    DeviceVector<BFloat16> y(tokens * n);
    DeviceVector<float> scratch(LinearLibrarySums(n, k, tokens));
    library->Multiply({.weight_NK = weight.plain.data(),
                       .x = x.data(),
                       .out_features = n,
                       .in_features = k,
                       .num_tokens = tokens,
                       .y = y.data(),
                       .sums = scratch.data()},
                      nullptr);
    EXPECT_EQ(CountDifferences(y.Download(), expected), 0) << tokens << " tokens, library";
    for (const WeightType type : {WeightType::kInt4, WeightType::kBFloat16}) {
      const bool is_codes = type == WeightType::kInt4;
      DeviceVector<BFloat16> ours(tokens * n);
      LinearDecode({.type = type,
                    .shape = shape,
                    .weight = is_codes ? static_cast<const void*>(weight.packed.data())
                                       : weight.plain.data(),
                    .x = x.data(),
                    .num_tokens = tokens,
                    .y = ours.data()},
                   nullptr, LaunchOrder::kAfterPrevious);
      EXPECT_EQ(CountDifferences(ours.Download(), expected), 0)
          << tokens << " tokens, " << (is_codes ? "codes" : "BF16");
    }
  }
}

// The last two are cut: four segments of K, and two of which the second is shorter.
INSTANTIATE_TEST_SUITE_P(Shapes, LinearLibraryGpu,
                         testing::Values(Shape{1024, 768}, Shape{2048, 4096}, Shape{6144, 4096},
                                         Shape{512, 8448}, Shape{3200, 8576}));

TEST(LinearLibraryGpu, BiasIsAddedBeforeTheRounding) {
  QT_NEEDS_DEVICE();
  const std::unique_ptr<LinearLibrary> library = LinearLibrary::Open();
  if (library == nullptr) GTEST_SKIP() << "no libcublasLt here";
  for (const auto& [n, k] : {Shape{1024, 768}, Shape{512, 8448}}) {
    const PackedShape shape{n, k, 128, 4};
    DeviceWeight weight(shape, RandomCodes(shape, 5));
    DeviceVector<BFloat16> bias(RandomRounded<BFloat16>(n, 6));
    for (const int64_t tokens : {3, 200}) {
      DeviceVector<BFloat16> x(RandomRounded<BFloat16>(tokens * k, 9));
      DeviceVector<BFloat16> y(tokens * n), ours(tokens * n);
      DeviceVector<float> scratch(LinearLibrarySums(n, k, tokens));
      library->Multiply({.weight_NK = weight.plain.data(),
                         .x = x.data(),
                         .out_features = n,
                         .in_features = k,
                         .num_tokens = tokens,
                         .bias = bias.data(),
                         .y = y.data(),
                         .sums = scratch.data()},
                        nullptr);
      LinearDecode({.type = WeightType::kInt4,
                    .shape = shape,
                    .weight = weight.packed.data(),
                    .x = x.data(),
                    .num_tokens = tokens,
                    .bias = bias.data(),
                    .y = ours.data()},
                   nullptr, LaunchOrder::kAfterPrevious);
      EXPECT_EQ(CountDifferences(y.Download(), ours.Download()), 0) << n << ", " << tokens;
    }
  }
}

TEST(LinearLibraryGpu, RefusesShapesOutsideTheContract) {
  QT_NEEDS_DEVICE();
  const std::unique_ptr<LinearLibrary> library = LinearLibrary::Open();
  if (library == nullptr) GTEST_SKIP() << "no libcublasLt here";
  EXPECT_THROW(library->Multiply({.out_features = 12, .in_features = 64}, nullptr), Error);
  EXPECT_THROW(library->Multiply({.out_features = 16, .in_features = 60}, nullptr), Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif
