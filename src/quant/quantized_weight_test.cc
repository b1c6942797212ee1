#include "quant/quantized_weight.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>

#include "base/error.h"
#include "base/random.h"
#include "quant/fake_quant.h"

namespace quatrain {
namespace {

std::vector<BFloat16> RandomWeights(int64_t count, uint64_t seed) {
  std::vector<BFloat16> weights;
  for (int64_t i = 0; i < count; ++i) {
    const double u = UniformDouble(seed, 0, static_cast<uint64_t>(i)) +
                     UniformDouble(seed, 1, static_cast<uint64_t>(i)) - 1.0;
    weights.push_back(ToBFloat16(static_cast<float>(0.1 * u)));
  }
  return weights;
}

bool SameBits(const std::vector<BFloat16>& a, const std::vector<BFloat16>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(BFloat16)) == 0;
}

std::string MessageOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::vector<BFloat16> ToBFloat16s(const std::vector<float>& values) {
  std::vector<BFloat16> rounded;
  for (float value : values) rounded.push_back(ToBFloat16(value));
  return rounded;
}

TEST(Quantize, FillsShapesForGroupsAndChannels) {
  ThreadPool pool(1);
  const std::vector<BFloat16> weight = RandomWeights(6 * 96, 1);
  const NamedMatrix matrix{"w", weight, 6, 96};
  const QuantizedWeight grouped = Quantize(pool, matrix, {});
  EXPECT_EQ(grouped.num_bits, 4);
  EXPECT_EQ(grouped.group_size, 32);
  EXPECT_EQ(grouped.packed.size(), 6u * 12);
  EXPECT_EQ(grouped.scale.size(), 6u * 3);
  const QuantizedWeight channel = Quantize(pool, matrix, {.num_bits = 8, .group_size = 0});
  EXPECT_EQ(channel.group_size, 96);
  EXPECT_EQ(channel.packed.size(), 6u * 24);
  EXPECT_EQ(channel.scale.size(), 6u);
  const WeightView view = channel.View();
  EXPECT_EQ(view.type, WeightType::kInt8);
  EXPECT_EQ(view.data, channel.packed.data());
  EXPECT_EQ(view.scale, channel.scale.data());
  EXPECT_EQ(view.group_size, 96);
}

TEST(Quantize, PackedAndUnpackedCodesAreTheSame) {
  ThreadPool pool(2);
  for (int num_bits : {4, 8}) {
    const std::vector<BFloat16> weight = RandomWeights(10 * 64, 2);
    const QuantizedWeight quantized = Quantize(pool, {"w", weight, 10, 64}, {.num_bits = num_bits});
    const std::vector<int8_t> codes = UnpackWeight(quantized);
    const QuantizedWeight again = PackWeight(codes, quantized.scale, 10, 64, num_bits);
    EXPECT_EQ(again.packed, quantized.packed);
    EXPECT_EQ(again.group_size, 32);
  }
}

TEST(FakeQuant, EqualsDequantizeOfQuantizeForEveryRuleAndWidth) {
  ThreadPool pool(2);
  const std::vector<BFloat16> weight = RandomWeights(70 * 192, 3);
  const NamedMatrix matrix{"w", weight, 70, 192};
  for (ScaleRule rule : {ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5}) {
    for (int num_bits : {4, 8}) {
      for (int64_t group_size : {32, 64, 0}) {
        const QuantScheme scheme{
            .num_bits = num_bits, .group_size = group_size, .scale_rule = rule};
        const QuantizedWeight quantized = Quantize(pool, matrix, scheme);
        EXPECT_TRUE(SameBits(FakeQuant(pool, matrix, scheme), Dequantize(pool, quantized)))
            << scheme.Name();
        QuantScheme frozen = scheme;
        frozen.scale_rule = ScaleRule::kFrozen;
        frozen.frozen_grid = scheme.grid();
        EXPECT_EQ(QuantizeWithScales(pool, matrix, frozen, quantized.scale).packed,
                  quantized.packed);
        EXPECT_TRUE(SameBits(FakeQuantWithScales(pool, matrix, frozen, quantized.scale),
                             Dequantize(pool, quantized)));
      }
    }
  }
}

TEST(FakeQuant, UnderAbsmax7ADequantisedWeightConvertsBackWithoutLoss) {
  ThreadPool pool(2);
  const std::vector<BFloat16> weight = RandomWeights(64 * 128, 4);
  for (int num_bits : {4, 8}) {
    const QuantScheme scheme{.num_bits = num_bits};
    const QuantizedWeight first = Quantize(pool, {"w", weight, 64, 128}, scheme);
    const std::vector<BFloat16> value = Dequantize(pool, first);
    const QuantizedWeight second = Quantize(pool, {"w", value, 64, 128}, scheme);
    EXPECT_EQ(second.packed, first.packed);
    EXPECT_TRUE(SameBits(second.scale, first.scale));
    EXPECT_TRUE(SameBits(FakeQuant(pool, {"w", value, 64, 128}, scheme), value));
  }
}

TEST(MaskClippedGradient, StopsOnlyWhatTheGridClipped) {
  const QuantScheme scheme{.group_size = 0, .scale_rule = ScaleRule::kFrozen};
  const std::vector<BFloat16> scale = ToBFloat16s({1.0f});
  const std::vector<BFloat16> weight =
      ToBFloat16s({7.0f, 7.5f, 7.4375f, 9.0f, -8.0f, -8.5f, -8.5625f, -40.0f});
  std::vector<float> grad(8, 1.5f);
  MaskClippedGradient(weight, scale, 8, scheme, grad);
  // 7.5 rounds to even 8 and is clipped; -8.5 rounds to -8 and is not.
  EXPECT_EQ(grad, (std::vector<float>{1.5f, 0.0f, 1.5f, 0.0f, 1.5f, 1.5f, 0.0f, 0.0f}));
}

TEST(Quantize, NamesTensorRowAndColumnOfAWeightWithoutACode) {
  ThreadPool pool(1);
  std::vector<BFloat16> weight = RandomWeights(4 * 32, 5);
  weight[2 * 32 + 7] = ToBFloat16(std::numeric_limits<float>::quiet_NaN());
  const NamedMatrix matrix{"model.layers.3.mlp.up_proj", weight, 4, 32};
  for (const auto& call : {std::function<void()>([&] { Quantize(pool, matrix, {}); }),
                           std::function<void()>([&] { FakeQuant(pool, matrix, {}); })}) {
    const std::string message = MessageOf(call);
    EXPECT_TRUE(Contains(message, "model.layers.3.mlp.up_proj, row 2, column 7")) << message;
    EXPECT_TRUE(Contains(message, "nan")) << message;
  }
}

TEST(Quantize, RefusesWeightsWhoseLowestCodeOverflowsUnderAbsmax7_5) {
  ThreadPool pool(1);
  std::vector<BFloat16> weight = RandomWeights(32, 6);
  weight[9] = BFloat16{0xFF7E};
  EXPECT_NO_THROW(Quantize(pool, {"w", weight, 1, 32}, {}));
  const std::string message = MessageOf([&] {
    Quantize(pool, {"w", weight, 1, 32}, {.scale_rule = ScaleRule::kAbsmax7_5});
  });
  EXPECT_TRUE(Contains(message, "w, row 0, column 9")) << message;
}

TEST(Quantize, NamesTensorAndSizesWhenGroupsDoNotFit) {
  ThreadPool pool(1);
  const std::vector<BFloat16> weight = RandomWeights(2 * 48, 7);
  const std::string message = MessageOf([&] {
    Quantize(pool, {"lin", weight, 2, 48}, {.group_size = 32});
  });
  EXPECT_TRUE(Contains(message, "lin: K = 48")) << message;
}

TEST(FileBytes, AreThoseOfKnownLinears) {
  EXPECT_EQ(FileBytes(768, 2048, 4, 32), 884752);
  EXPECT_EQ(FileBytes(768, 2048, 4, 128), 811024);
  EXPECT_EQ(FileBytes(768, 2048, 8, 128), 1597456);
  EXPECT_EQ(FileBytes(2048, 7168, 4, 32), 8257552);
  EXPECT_EQ(FileBytes(14336, 4096, 4, 128), 30277648);
}

TEST(CheckScales, RefusesWhatIsNoScaleByRowAndGroup) {
  const CodeGrid grid = GridOf(ScaleRule::kFrozen, 4);
  std::vector<BFloat16> scale = ToBFloat16s({0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f});
  CheckScales("w", scale, 3, grid);
  for (uint16_t bad : {0x0000, 0x8000, 0x7FC0, 0x7F80, 0x0001, 0x007F, 0xBF80, 0x7F00}) {
    scale[4] = BFloat16{bad};
    const std::string message = MessageOf([&] { CheckScales("w", scale, 3, grid); });
    EXPECT_TRUE(Contains(message, "w, row 1, group 1")) << bad << ": " << message;
  }
}

// [-0.25, 0, 0.5, 1, 1.625, -0.125, 0.75, 1.25] with scale 0.125 and zero point -6.
TEST(DequantizeForeign, AppliesZeroPointsPackedAlongTheRows) {
  const std::vector<int8_t> codes = {-8, -6, -2, 2, 7, -7, 0, 4};
  std::vector<int32_t> packed(1);
  PackCodes(codes.data(), 1, 8, 4, packed.data());
  const std::vector<BFloat16> scale = ToBFloat16s({0.125f});
  std::vector<int32_t> zero_point(1, 0);
  PackCode(-6, 0, 4, zero_point.data());
  const std::vector<BFloat16> weight = DequantizeForeign({.module = "m",
                                                          .num_bits = 4,
                                                          .out_features = 1,
                                                          .in_features = 8,
                                                          .group_size = 8,
                                                          .packed = packed,
                                                          .scale = scale,
                                                          .zero_point = zero_point});
  EXPECT_TRUE(
      SameBits(weight, ToBFloat16s({-0.25f, 0.0f, 0.5f, 1.0f, 1.625f, -0.125f, 0.75f, 1.25f})));
}

TEST(DequantizeForeign, ReadsTheZeroPointOfEachRowAndGroup) {
  const int64_t rows = 10, columns = 4, groups = 2;
  const std::vector<int> zero_points = {-8, -6, 0, 7, 1, 2, 3, 4, -1, 5};
  std::vector<int32_t> zero_point(static_cast<size_t>(PackedWords(rows, 4) * groups), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      const int z = zero_points[static_cast<size_t>(row)] - (group == 1 && row == 3 ? 1 : 0);
      PackCode(z, row % 8, 4, &zero_point[static_cast<size_t>(row / 8 * groups + group)]);
    }
  }
  EXPECT_EQ(static_cast<uint32_t>(zero_point[0]), 0xCBA9F820u);
  EXPECT_EQ(static_cast<uint32_t>(zero_point[2]), 0x000000D7u);
  const std::vector<int8_t> codes(static_cast<size_t>(rows * columns), 3);
  std::vector<int32_t> packed(static_cast<size_t>(rows));
  PackCodes(codes.data(), rows, columns, 4, packed.data());
  const std::vector<BFloat16> scale(static_cast<size_t>(rows * groups), ToBFloat16(1.0f));
  const std::vector<BFloat16> weight = DequantizeForeign({.module = "m",
                                                          .num_bits = 4,
                                                          .out_features = rows,
                                                          .in_features = columns,
                                                          .group_size = 2,
                                                          .packed = packed,
                                                          .scale = scale,
                                                          .zero_point = zero_point});
  for (int64_t row = 0; row < rows; ++row) {
    const auto first = static_cast<size_t>(row * columns);
    const float expected = static_cast<float>(3 - zero_points[static_cast<size_t>(row)]);
    EXPECT_EQ(ToFloat(weight[first]), expected);
    EXPECT_EQ(ToFloat(weight[first + 3]), expected + (row == 3 ? 1.0f : 0.0f));
  }
}

TEST(DequantizeForeign, TakesTheGroupOfEachColumnFromTheIndex) {
  const std::vector<int8_t> codes = {1, 2, 3, 4};
  std::vector<int32_t> packed(1);
  PackCodes(codes.data(), 1, 4, 4, packed.data());
  const std::vector<BFloat16> scale = ToBFloat16s({1.0f, 0.5f});
  std::vector<int32_t> group_index = {1, 0, 0, 1};
  ForeignWeight foreign{.module = "m",
                        .num_bits = 4,
                        .out_features = 1,
                        .in_features = 4,
                        .group_size = 2,
                        .packed = packed,
                        .scale = scale,
                        .group_index = group_index};
  EXPECT_TRUE(SameBits(DequantizeForeign(foreign), ToBFloat16s({0.5f, 2.0f, 3.0f, 2.0f})));
  group_index[2] = 2;
  foreign.group_index = group_index;
  const std::string message = MessageOf([&] { DequantizeForeign(foreign); });
  EXPECT_TRUE(Contains(message, "m.weight_g_idx: column 2 is in no group")) << message;
}

TEST(DequantizeForeign, NamesATensorOfTheWrongSize) {
  const std::vector<int32_t> packed(3);
  const std::vector<BFloat16> scale(1, ToBFloat16(1.0f));
  const std::string message = MessageOf([&] {
    DequantizeForeign({.module = "m",
                       .num_bits = 4,
                       .out_features = 1,
                       .in_features = 8,
                       .group_size = 8,
                       .packed = packed,
                       .scale = scale});
  });
  EXPECT_TRUE(Contains(message, "m.weight_packed: wrong number of elements; expected 1, found 3"))
      << message;
}

}  // namespace
}  // namespace quatrain
