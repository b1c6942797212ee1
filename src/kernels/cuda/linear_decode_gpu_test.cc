#if defined(QT_WITH_CUDA)
#include <cmath>

#include "kernels/cuda/device_weight_test.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_reference.h"
#include "kernels/cuda/linear_wide.h"

namespace quatrain::cuda {
namespace {

std::vector<float> Decode(LinearDecodeArgs args) {
  DeviceVector<float> y(args.num_tokens * args.shape.out_features);
  args.y_float = y.data();
  LinearDecode(args, nullptr, LaunchOrder::kAfterPrevious);
  return y.Download();
}

std::vector<float> Reference(const PackedShape& shape, DeviceVector<BFloat16>* weight,
                             DeviceVector<BFloat16>* x, int64_t tokens) {
  DeviceVector<float> y(tokens * shape.out_features);
  LinearReference({.weight_NK = weight->data(),
                   .x = x->data(),
                   .out_features = shape.out_features,
                   .in_features = shape.in_features,
                   .num_tokens = tokens,
                   .segment_inputs = SegmentInputs(shape.out_features, shape.in_features),
                   .y_float = y.data()},
                  nullptr);
  return y.Download();
}

TEST(LinearDecodeGpu, SegmentsDependOnShapeAlone) {
  EXPECT_EQ(NumSegments(2048, 8192), 1);
  EXPECT_EQ(NumSegments(6144, 12288), 1);
  EXPECT_EQ(NumSegments(4096, 12288), 2);
  EXPECT_EQ(NumSegments(3072, 12288), 4);
  EXPECT_EQ(SegmentInputs(4096, 12288), 6144);
  EXPECT_EQ(SegmentInputs(64, 8320), 2176);
  EXPECT_EQ(SegmentInputs(64, 64), 128);
}

TEST(LinearDecodeGpu, PlansFitTheMultiprocessorAndLeaveNoUnitOut) {
  for (const int multiprocessors : {1, 108, 132}) {
    for (const WeightType type : {WeightType::kInt4, WeightType::kBFloat16}) {
      for (const int64_t n : {8, 100, 1024, 2048, 4096, 5120, 24576, 151936}) {
        for (const int64_t k : {64, 4096, 12288}) {
          for (const int64_t tokens : {1, 8, 16, 64}) {
            const LinearDecodeArgs args{
                .type = type, .shape = {n, k, 128, 4}, .num_tokens = tokens};
            const DecodePlan plan = PlanLinearDecode(args, multiprocessors);
            const int per_multiprocessor = plan.num_ctas > multiprocessors ? 2 : 1;
            EXPECT_LE(plan.num_ctas, 2 * multiprocessors);
            EXPECT_LE((plan.shared_budget + 1024) * per_multiprocessor, 228 << 10);
            EXPECT_GE(plan.num_groups, 1);
            EXPECT_LE(plan.num_groups * NumSegments(n, k), 8);
            EXPECT_LE(plan.num_ctas, (NumUnits(args.shape) + plan.row_units - 1) / plan.row_units);
            EXPECT_TRUE(type == WeightType::kInt4 || plan.row_units == 1);
          }
        }
      }
    }
  }
}

// One-hot activations read single weights out: the dequantisation of every code under every scale
// that the contract covers.
TEST(LinearDecodeGpu, EveryScaleTimesEveryCodeIsDequantizeCode) {
  QT_NEEDS_DEVICE();
  for (const int bits : {4, 8}) {
    const int tokens = 64;
    HostCodes host;
    for (int scale = (127 - 100) << 7; scale <= (127 + 10) << 7; ++scale) {
      host.scale.push_back(BFloat16{static_cast<uint16_t>(scale)});
    }
    const PackedShape shape{static_cast<int64_t>(host.scale.size()), 256, 256, bits};
    host.codes.assign(host.scale.size() * PackedWords(256, bits), 0);
    for (size_t n = 0; n < host.scale.size(); ++n) {
      for (int i = 0; i < 256; ++i) {
        const int code = i % (1 << bits) - (1 << (bits - 1));
        PackCode(code, i, bits, host.codes.data() + n * PackedWords(256, bits));
      }
    }
    DeviceWeight weight(shape, host);
    const std::vector<BFloat16> plain = Dequantize(shape, host);
    for (int first = 0; first < 256; first += tokens) {
      std::vector<BFloat16> x(tokens * 256, BFloat16{0});
      for (int t = 0; t < tokens; ++t) x[t * 256 + first + t] = ToBFloat16(1.0f);
      DeviceVector<BFloat16> device_x(x);
      const std::vector<float> y =
          Decode({.type = bits == 4 ? WeightType::kInt4 : WeightType::kInt8,
                  .shape = shape,
                  .weight = weight.packed.data(),
                  .x = device_x.data(),
                  .num_tokens = tokens});
      int64_t wrong = 0;
      for (int t = 0; t < tokens; ++t) {
        for (int64_t n = 0; n < shape.out_features; ++n) {
          wrong += y[t * shape.out_features + n] != ToFloat(plain[n * 256 + first + t]);
        }
      }
      EXPECT_EQ(wrong, 0) << bits << " bits, inputs from " << first;
    }
  }
}

struct ShapeCase {
  int64_t n, k, g;
  int bits;
};

class LinearDecodeGpuShapes : public testing::TestWithParam<ShapeCase> {};

TEST_P(LinearDecodeGpuShapes, IsTheReferenceChainForEveryNumberOfTokens) {
  QT_NEEDS_DEVICE();
  const ShapeCase& c = GetParam();
  const PackedShape shape{c.n, c.k, c.g, c.bits};
  DeviceWeight weight(shape, RandomCodes(shape, 7));
  const int64_t most = 130;
  const std::vector<BFloat16> x = RandomRounded<BFloat16>(most * c.k, 3);
  DeviceVector<BFloat16> device_x(x);
  const std::vector<float> expected = Reference(shape, &weight.plain, &device_x, most);
  for (const WeightType type :
       {c.bits == 4 ? WeightType::kInt4 : WeightType::kInt8, WeightType::kBFloat16}) {
    for (const int64_t tokens : {1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 130}) {
      const bool is_plain = type == WeightType::kBFloat16;
      const std::vector<float> y =
          Decode({.type = type,
                  .shape = shape,
                  .weight = is_plain ? static_cast<const void*>(weight.plain.data())
                                     : static_cast<const void*>(weight.packed.data()),
                  .x = device_x.data(),
                  .num_tokens = tokens});
      const std::vector<float> head(expected.begin(), expected.begin() + tokens * c.n);
      EXPECT_EQ(CountDifferences(y, head), 0)
          << (is_plain ? "bf16 " : "codes ") << tokens << " tokens";
    }
  }
  // And the reference itself is near the exact product.
  const std::vector<BFloat16> plain = weight.plain.Download();
  for (const int64_t m : {int64_t{0}, most - 1}) {
    for (int64_t n = 0; n < c.n; n += 37) {
      double sum = 0;
      double magnitude = 0;
      for (int64_t i = 0; i < c.k; ++i) {
        const double term = double{ToFloat(x[m * c.k + i])} * ToFloat(plain[n * c.k + i]);
        sum += term;
        magnitude += std::abs(term);
      }
      EXPECT_NEAR(expected[m * c.n + n], sum, 1e-5 * magnitude) << m << " " << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearDecodeGpuShapes,
                         testing::Values(ShapeCase{512, 1024, 128, 4}, ShapeCase{520, 768, 32, 4},
                                         ShapeCase{100, 640, 64, 4}, ShapeCase{24, 96, 32, 4},
                                         ShapeCase{8, 64, 64, 4}, ShapeCase{333, 1408, 1408, 4},
                                         ShapeCase{48, 8320, 128, 4}, ShapeCase{3104, 8448, 32, 4},
                                         ShapeCase{512, 1024, 128, 8}, ShapeCase{72, 896, 32, 8},
                                         ShapeCase{48, 8320, 64, 8}, ShapeCase{72, 896, 896, 8},
                                         ShapeCase{20000, 256, 128, 4}));

TEST(LinearDecodeGpu, EveryPlanGivesTheSameBits) {
  QT_NEEDS_DEVICE();
  const PackedShape shape{1000, 1152, 128, 4};
  DeviceWeight weight(shape, RandomCodes(shape, 5));
  DeviceVector<BFloat16> x(RandomRounded<BFloat16>(16 * 1152, 9));
  const std::vector<float> expected = Reference(shape, &weight.plain, &x, 16);
  DeviceVector<float> y(16 * 1000);
  const LinearDecodeArgs args{.type = WeightType::kInt4,
                              .shape = shape,
                              .weight = weight.packed.data(),
                              .x = x.data(),
                              .num_tokens = 16,
                              .y_float = y.data()};
  for (const int row_units : {1, 2}) {
    for (const int groups : {1, 3, 8}) {
      for (const int ctas : {3, 7, 62}) {
        for (const int stage_chunks : {0, 1, 2, 3, 4}) {
          const DecodePlan plan{row_units, groups, ctas, 112 << 10, stage_chunks};
          CheckCuda(cudaMemset(y.data(), 0xA5, 4 * 16 * 1000), "cudaMemset");
          LinearDecode(args, plan, nullptr, LaunchOrder::kAfterPrevious);
          EXPECT_EQ(CountDifferences(y.Download(), expected), 0)
              << row_units << " units, " << groups << " groups, " << ctas << " CTAs, stages of "
              << stage_chunks;
        }
      }
    }
  }
}

// Beside each other and beside the kernel for few tokens; every launch overlaps the one before.
void ExpectTheSameBitsOfEveryWidePlan(const PackedShape& shape, int64_t tokens, int launches) {
  const int64_t n = shape.out_features;
  DeviceWeight weight(shape, RandomCodes(shape, 5));
  DeviceVector<BFloat16> x(RandomRounded<BFloat16>(tokens * shape.in_features, 9));
  const std::vector<float> expected = Reference(shape, &weight.plain, &x, tokens);
  DeviceVector<float> y(tokens * n);
  const LinearDecodeArgs args{.type = WeightType::kInt4,
                              .shape = shape,
                              .weight = weight.packed.data(),
                              .x = x.data(),
                              .num_tokens = tokens,
                              .y_float = y.data()};
  for (const int width : {32, 64, 128}) {
    for (const int groups : {1, 2, 3}) {
      for (const int cluster : {1, 2, 4}) {
        CheckCuda(cudaMemset(y.data(), 0xA5, 4 * tokens * n), "cudaMemset");
        for (int i = 0; i < launches; ++i) {
          LinearWide(args, {width, groups, cluster}, nullptr, LaunchOrder::kOverlap);
        }
        EXPECT_EQ(CountDifferences(y.Download(), expected), 0)
            << width << " tokens, " << groups << " warpgroups, clusters of " << cluster;
      }
    }
  }
  const DecodePlan plan = PlanLinearDecode(args, NumMultiprocessors());
  LinearDecode(args, plan, nullptr, LaunchOrder::kAfterPrevious);
  EXPECT_EQ(CountDifferences(y.Download(), expected), 0);
}

TEST(LinearWideGpu, EveryPlanGivesTheSameBits) {
  QT_NEEDS_DEVICE();
  ExpectTheSameBitsOfEveryWidePlan({1000, 1184, 32, 4}, 200, 3);
}

// Few enough for a tool that follows every access; more of K than the slots hold.
TEST(LinearWideGpu, EveryPlanOfASmallMatrixGivesTheSameBits) {
  QT_NEEDS_DEVICE();
  ExpectTheSameBitsOfEveryWidePlan({200, 2080, 32, 4}, 40, 1);
}

TEST(LinearWideGpu, PlansCoverEveryToken) {
  for (const int multiprocessors : {1, 108, 132}) {
    for (const int64_t n : {8, 100, 4096, 24576}) {
      for (const int64_t tokens : {17, 32, 33, 128, 129, 5000}) {
        const WidePlan plan = PlanLinearWide(
            {.type = WeightType::kInt4, .shape = {n, 4096, 128, 4}, .num_tokens = tokens},
            multiprocessors);
        EXPECT_GE(plan.tokens, std::min<int64_t>(tokens, 64));
        EXPECT_GE(plan.num_warpgroups, 1);
        EXPECT_LE(plan.num_warpgroups, 3);
        EXPECT_LE(plan.cluster, 4);
      }
    }
  }
  EXPECT_FALSE(IsWide({.type = WeightType::kInt4, .shape = {4096, 12288, 128, 4}}));
  EXPECT_FALSE(IsWide({.type = WeightType::kInt8, .shape = {4096, 4096, 128, 8}}));
  EXPECT_FALSE(IsWide({.type = WeightType::kBFloat16, .shape = {4096, 4096, 0, 4}}));
  const auto is_faster = [](int64_t tokens) {
    return IsFasterWide(
        {.type = WeightType::kInt4, .shape = {24576, 4096, 128, 4}, .num_tokens = tokens});
  };
  EXPECT_FALSE(is_faster(16));
  EXPECT_TRUE(is_faster(17));
}

TEST(LinearDecodeGpu, BiasAndResidualRoundAsWritten) {
  QT_NEEDS_DEVICE();
  for (const int64_t tokens : {3, 40}) {
    const PackedShape shape{64, 256, 128, 4};
    DeviceWeight weight(shape, RandomCodes(shape, 5));
    DeviceVector<BFloat16> x(RandomRounded<BFloat16>(tokens * 256, 9));
    const std::vector<BFloat16> bias = RandomRounded<BFloat16>(64, 1);
    const std::vector<BFloat16> residual = RandomRounded<BFloat16>(tokens * 64, 2);
    DeviceVector<BFloat16> device_bias(bias), device_residual(residual), y(tokens * 64);
    const std::vector<float> sums = Reference(shape, &weight.plain, &x, tokens);
    LinearDecode({.type = WeightType::kInt4,
                  .shape = shape,
                  .weight = weight.packed.data(),
                  .x = x.data(),
                  .num_tokens = tokens,
                  .bias = device_bias.data(),
                  .residual = device_residual.data(),
                  .y = y.data()},
                 nullptr, LaunchOrder::kAfterPrevious);
    std::vector<BFloat16> expected;
    for (size_t i = 0; i < sums.size(); ++i) {
      const BFloat16 branch = ToBFloat16(sums[i] + ToFloat(bias[i % 64]));
      expected.push_back(ToBFloat16(ToFloat(residual[i]) + ToFloat(branch)));
    }
    EXPECT_EQ(CountDifferences(y.Download(), expected), 0);
  }
}

TEST(LinearDecodeGpu, RefusesShapesOutsideTheContract) {
  const BFloat16 x{};
  BFloat16 y{};
  LinearDecodeArgs args{.type = WeightType::kInt4, .x = &x, .num_tokens = 1, .y = &y};
  args.shape = {64, 100, 100, 4};
  EXPECT_THROW(LinearDecode(args, nullptr, LaunchOrder::kAfterPrevious), Error);
  args.shape = {64, 128, 48, 4};
  EXPECT_THROW(LinearDecode(args, nullptr, LaunchOrder::kAfterPrevious), Error);
  args.shape = {64, 128, 128, 8};
  EXPECT_THROW(LinearDecode(args, nullptr, LaunchOrder::kAfterPrevious), Error);
}

TEST(PackGpu, UnpackRestoresEveryBit) {
  QT_NEEDS_DEVICE();
  for (const PackedShape& shape :
       {PackedShape{24, 256, 128, 4}, PackedShape{13, 96, 32, 4}, PackedShape{9, 64, 64, 4},
        PackedShape{100, 1408, 1408, 4}, PackedShape{24, 256, 64, 8}, PackedShape{13, 96, 32, 8},
        PackedShape{17, 200, 200, 8}, PackedShape{17, 200, 200, 4}}) {
    const HostCodes host = RandomCodes(shape, 11);
    DeviceWeight weight(shape, host);
    DeviceVector<int32_t> codes(host.codes.size());
    DeviceVector<BFloat16> scale(host.scale.size());
    UnpackWeights(shape, weight.packed.data(), {codes.data(), scale.data()}, nullptr);
    EXPECT_EQ(CountDifferences(codes.Download(), host.codes), 0) << shape.in_features;
    EXPECT_EQ(CountDifferences(scale.Download(), host.scale), 0) << shape.in_features;
    DeviceVector<BFloat16> plain(Dequantize(shape, host).size());
    DequantizeWeights(shape, {weight.codes.data(), weight.scale.data()}, plain.data(), nullptr);
    EXPECT_EQ(CountDifferences(plain.Download(), Dequantize(shape, host)), 0);
  }
}

TEST(PackGpu, LayoutIsThatOfTheDrawing) {
  QT_NEEDS_DEVICE();
  for (const int bits : {4, 8}) {
    const PackedShape shape{16, 256, 64, bits};
    const HostCodes host = RandomCodes(shape, 12);
    DeviceWeight weight(shape, host);
    const std::vector<uint8_t> packed = weight.packed.Download();
    for (int64_t n = 0; n < 16; ++n) {
      for (int64_t i = 0; i < 256; ++i) {
        const CodePlace place = PlaceOfCode(n % 8, i % 128, bits);
        const uint8_t* chunk =
            packed.data() + n / 8 * UnitBytes(shape) + i / 128 * ChunkBytes(shape);
        uint32_t word = 0;
        std::memcpy(&word, chunk + 4 * place.word, 4);
        const int u = static_cast<int>(word >> place.shift & ((1u << bits) - 1));
        const int q = UnpackCode(host.codes.data() + n * PackedWords(256, bits), i, bits);
        ASSERT_EQ(u - (1 << (bits - 1)), q) << n << " " << i;
      }
    }
  }
}

TEST(PackGpu, CountsScalesThatTheKernelsCannotMultiply) {
  QT_NEEDS_DEVICE();
  const PackedShape shape{8, 128, 32, 4};
  HostCodes host = RandomCodes(shape, 13);
  host.scale[3] = ToBFloat16(2048.0f);
  host.scale[9] = ToBFloat16(0x1p-101f);
  host.scale[10] = ToBFloat16(0.0f);
  DeviceWeight weight(shape, host);
  DeviceVector<int32_t> count(std::vector<int32_t>{0});
  PackWeights(shape, {weight.codes.data(), weight.scale.data()}, weight.packed.data(), count.data(),
              nullptr);
  EXPECT_EQ(count.Download()[0], 2);
}

// Gate and up in one launch: few tokens, many, segments of K, several warpgroups and tiles.
TEST(LinearDecodeGpu, SwiGluInTheEpilogueIsThatOfTheKernel) {
  QT_NEEDS_DEVICE();
  for (const ShapeCase& c : {ShapeCase{1024, 512, 128, 4}, ShapeCase{144, 320, 32, 4},
                             ShapeCase{64, 8320, 64, 4}, ShapeCase{4112, 256, 256, 8}}) {
    const PackedShape shape{c.n, c.k, c.g, c.bits};
    DeviceWeight weight(shape, RandomCodes(shape, 11));
    const int64_t most = 150;
    DeviceVector<BFloat16> x(RandomRounded<BFloat16>(most * c.k, 5));
    for (const int64_t tokens : {1, 2, 7, 16, 33, 64, 150}) {
      DeviceVector<BFloat16> sums(tokens * c.n), two(tokens * c.n / 2), one(tokens * c.n / 2);
      LinearDecodeArgs args{.type = c.bits == 4 ? WeightType::kInt4 : WeightType::kInt8,
                            .shape = shape,
                            .weight = weight.packed.data(),
                            .x = x.data(),
                            .num_tokens = tokens,
                            .y = sums.data()};
      LinearDecode(args, nullptr, LaunchOrder::kAfterPrevious);
      SwiGlu({sums.data(), sums.data() + c.n / 2, tokens, c.n / 2, c.n, two.data()}, nullptr,
             LaunchOrder::kAfterPrevious);
      args.y = one.data();
      args.epilogue = LinearEpilogue::kSwiGlu;
      LinearDecode(args, nullptr, LaunchOrder::kAfterPrevious);
      EXPECT_EQ(CountDifferences(one.Download(), two.Download()), 0)
          << c.n << " x " << c.k << ", " << tokens << " tokens";
    }
  }
}

TEST(LinearWideGpu, ManyTokensAsOneExpertAreTheSame) {
  QT_NEEDS_DEVICE();
  for (const int64_t g : {32, 128}) {
    const PackedShape shape{528, 384, g, 4};
    DeviceWeight weight(shape, RandomCodes(shape, 13));
    for (const int64_t tokens : {5, 130, 600}) {
      DeviceVector<BFloat16> x(RandomRounded<BFloat16>(tokens * shape.in_features, 6));
      for (const LinearEpilogue epilogue : {LinearEpilogue::kSums, LinearEpilogue::kSwiGlu}) {
        LinearDecodeArgs args{.type = WeightType::kInt4,
                              .shape = shape,
                              .weight = weight.packed.data(),
                              .x = x.data(),
                              .num_tokens = tokens,
                              .epilogue = epilogue};
        DeviceVector<BFloat16> wide(tokens * args.NumOutputs()), expert(wide.size());
        args.y = wide.data();
        LinearWide(args, {.tokens = 128, .num_warpgroups = 2}, nullptr,
                   LaunchOrder::kAfterPrevious);
        args.y = expert.data();
        LinearWide(args, {.is_expert = true}, nullptr, LaunchOrder::kAfterPrevious);
        EXPECT_EQ(CountDifferences(wide.Download(), expert.Download()), 0)
            << "g " << g << ", " << tokens << " tokens";
      }
    }
  }
}

TEST(LinearWideGpu, PlansOneExpertForManyWholeWavesOfPlainSums) {
  const auto is_expert = [](int64_t n, int64_t tokens, const BFloat16* bias) {
    const LinearDecodeArgs args{
        .type = WeightType::kInt4, .shape = {n, 8192, 128, 4}, .num_tokens = tokens, .bias = bias};
    return PlanLinearWide(args, 132).is_expert;
  };
  const BFloat16 bias{0};
  EXPECT_TRUE(is_expert(8192, 512, nullptr));
  EXPECT_TRUE(is_expert(8192, 2048, nullptr));
  EXPECT_FALSE(is_expert(8192, 512, &bias));
  EXPECT_FALSE(is_expert(8192, 256, nullptr));
  EXPECT_FALSE(is_expert(4096, 512, nullptr));
  EXPECT_FALSE(is_expert(8192, 640, nullptr));
  EXPECT_FALSE(is_expert(8200, 512, nullptr));
}

TEST(LinearDecodeGpu, SwiGluTakesCodesOfWholePairs) {
  BFloat16 y;
  LinearDecodeArgs args{.type = WeightType::kInt4,
                        .shape = {24, 128, 128, 4},
                        .num_tokens = 1,
                        .y = &y,
                        .epilogue = LinearEpilogue::kSwiGlu};
  EXPECT_THROW(LinearDecode(args, DecodePlan{.row_units = 2}, nullptr, LaunchOrder::kAfterPrevious),
               Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif
