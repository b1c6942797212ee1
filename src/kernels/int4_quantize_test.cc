#include "kernels/int4_quantize.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/random.h"

namespace quatrain {
namespace {

struct Quantized {
  std::vector<int32_t> packed;
  std::vector<BFloat16> scale;
};

Quantized MakeBuffers(int64_t out_features, int64_t in_features, int num_bits, int64_t group_size) {
  return {std::vector<int32_t>(
              static_cast<size_t>(out_features * PackedWords(in_features, num_bits)), 0x5A5A5A5A),
          std::vector<BFloat16>(static_cast<size_t>(out_features * (in_features / group_size)))};
}

// Weights with the spread of a real layer, rounded to BF16.
std::vector<BFloat16> RandomWeights(int64_t count, uint64_t seed) {
  std::vector<BFloat16> weights;
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0.0;
    for (uint64_t draw = 0; draw < 4; ++draw) {
      sum += UniformDouble(seed, static_cast<uint64_t>(i), draw) - 0.5;
    }
    weights.push_back(ToBFloat16(static_cast<float>(sum * 0.05)));
  }
  return weights;
}

// The scalar functions of int4.h, element by element.
Quantized QuantizeByDefinition(const std::vector<BFloat16>& weight, int64_t out_features,
                               int64_t in_features, const QuantizeSpec& spec,
                               const std::vector<BFloat16>* given_scale) {
  const int num_bits = spec.grid.num_bits;
  Quantized result = MakeBuffers(out_features, in_features, num_bits, spec.group_size);
  std::fill(result.packed.begin(), result.packed.end(), 0);
  const int64_t groups = in_features / spec.group_size;
  for (int64_t row = 0; row < out_features; ++row) {
    int32_t* words = result.packed.data() + row * PackedWords(in_features, num_bits);
    for (int64_t i = 0; i < in_features; ++i) {
      const int64_t group = i / spec.group_size;
      const auto at = static_cast<size_t>(row * groups + group);
      if (given_scale != nullptr) {
        result.scale[at] = (*given_scale)[at];
      } else if (i % spec.group_size == 0) {
        float amax = 0.0f;
        for (int64_t k = i; k < i + spec.group_size; ++k) {
          amax = std::max(amax,
                          std::fabs(ToFloat(weight[static_cast<size_t>(row * in_features + k)])));
        }
        result.scale[at] = ScaleFromAbsmax(amax, spec.rule, GridOf(spec.rule, num_bits));
      }
      const float w = ToFloat(weight[static_cast<size_t>(row * in_features + i)]);
      PackCode(QuantizeCode(w, result.scale[at], spec.grid), i, num_bits, words);
    }
  }
  return result;
}

bool SameBits(const std::vector<BFloat16>& a, const std::vector<BFloat16>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(BFloat16)) == 0;
}

struct Shape {
  int64_t out_features, in_features, group_size;
};
const Shape kShapes[] = {{5, 64, 32}, {3, 128, 128}, {2, 37, 37}, {4, 60, 12},
                         {7, 9, 1},   {3, 384, 64},  {1, 33, 3},  {2000, 96, 32}};

TEST(QuantizeMatrix, EqualsTheScalarDefinitionForEveryRuleAndShape) {
  ThreadPool pool(2);
  for (const Shape& shape : kShapes) {
    const auto [out_features, in_features, group_size] = shape;
    const std::vector<BFloat16> weight = RandomWeights(out_features * in_features, 11);
    for (ScaleRule rule : {ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5}) {
      for (int num_bits : {4, 8}) {
        const QuantizeSpec spec{rule, GridOf(rule, num_bits), group_size};
        Quantized got = MakeBuffers(out_features, in_features, num_bits, group_size);
        QuantizeMatrix(pool, weight.data(), out_features, in_features, spec, got.packed.data(),
                       got.scale.data());
        const Quantized want =
            QuantizeByDefinition(weight, out_features, in_features, spec, nullptr);
        EXPECT_EQ(got.packed, want.packed) << in_features << " " << num_bits;
        EXPECT_TRUE(SameBits(got.scale, want.scale)) << in_features << " " << num_bits;
      }
    }
  }
}

// Every BF16 weight that has a code, as rows of 256, under scales of every mantissa.
TEST(QuantizeMatrix, EqualsTheScalarDefinitionForEveryWeightPattern) {
  ThreadPool pool(2);
  std::vector<BFloat16> weight;
  for (uint32_t bits = 0; bits < 0x7F7F; ++bits) {
    weight.push_back(BFloat16{static_cast<uint16_t>(bits)});
    weight.push_back(BFloat16{static_cast<uint16_t>(bits | 0x8000u)});
  }
  weight.resize(65280);  // two zeros more make whole rows
  const int64_t out_features = 255, in_features = 256;
  for (uint32_t mantissa = 0; mantissa < 128; ++mantissa) {
    for (int num_bits : {4, 8}) {
      const QuantizeSpec spec{ScaleRule::kFrozen, GridOf(ScaleRule::kFrozen, num_bits), 64};
      const BFloat16 scale{static_cast<uint16_t>(((100 + mantissa % 40) << 7) | mantissa)};
      Quantized got = MakeBuffers(out_features, in_features, num_bits, 64);
      std::fill(got.scale.begin(), got.scale.end(), scale);
      const std::vector<BFloat16> given = got.scale;
      QuantizeMatrix(pool, weight.data(), out_features, in_features, spec, got.packed.data(),
                     got.scale.data());
      const Quantized want = QuantizeByDefinition(weight, out_features, in_features, spec, &given);
      ASSERT_EQ(got.packed, want.packed) << mantissa << " " << num_bits;
      ASSERT_TRUE(SameBits(got.scale, given)) << "frozen scales are kept";
    }
  }
}

TEST(DequantizeMatrix, EqualsTheScalarDefinitionForEveryScalePatternAndCode) {
  ThreadPool pool(2);
  for (int num_bits : {4, 8}) {
    const int64_t in_features = int64_t{1} << num_bits;
    const int half = 1 << (num_bits - 1);
    std::vector<int8_t> codes_I;
    for (int q = -half; q < half; ++q) codes_I.push_back(static_cast<int8_t>(q));
    const int64_t rows = 0x10000;
    std::vector<int8_t> codes;
    std::vector<BFloat16> scale;
    for (int64_t row = 0; row < rows; ++row) {
      codes.insert(codes.end(), codes_I.begin(), codes_I.end());
      scale.push_back(BFloat16{static_cast<uint16_t>(row)});
    }
    Quantized packed = MakeBuffers(rows, in_features, num_bits, in_features);
    PackCodes(codes.data(), rows, in_features, num_bits, packed.packed.data());
    std::vector<BFloat16> weight(codes.size());
    DequantizeMatrix(pool,
                     {packed.packed.data(), scale.data(), rows, in_features, num_bits, in_features},
                     weight.data());
    for (size_t i = 0; i < weight.size(); ++i) {
      const BFloat16 s = scale[i / static_cast<size_t>(in_features)];
      ASSERT_EQ(weight[i].bits, DequantizeCode(codes[i], s).bits) << s.bits << " " << int{codes[i]};
    }
  }
}

TEST(QuantizeMatrix, FakeQuantisationIsIdempotentForEveryMantissaAndSign) {
  ThreadPool pool(2);
  for (int num_bits : {4, 8}) {
    // One group a row: its extremum has each mantissa and sign, the others spread over the range.
    const int64_t out_features = 256, in_features = 32;
    std::vector<BFloat16> weight;
    for (int64_t row = 0; row < out_features; ++row) {
      const float amax = ToFloat(BFloat16{static_cast<uint16_t>(0x3D00 | (row % 128))});
      for (int64_t i = 0; i < in_features; ++i) {
        const double fraction =
            2.0 * UniformDouble(3, static_cast<uint64_t>(row), static_cast<uint64_t>(i)) - 1.0;
        weight.push_back(ToBFloat16(static_cast<float>(amax * fraction)));
      }
      weight[static_cast<size_t>(row * in_features + row % in_features)] =
          ToBFloat16(row < 128 ? amax : -amax);
    }
    const QuantizeSpec spec{ScaleRule::kAbsmax7, GridOf(ScaleRule::kAbsmax7, num_bits), 32};
    Quantized first = MakeBuffers(out_features, in_features, num_bits, 32), second = first;
    std::vector<BFloat16> value(weight.size()), value_again(weight.size());
    QuantizeMatrix(pool, weight.data(), out_features, in_features, spec, first.packed.data(),
                   first.scale.data());
    DequantizeMatrix(
        pool, {first.packed.data(), first.scale.data(), out_features, in_features, num_bits, 32},
        value.data());
    QuantizeMatrix(pool, value.data(), out_features, in_features, spec, second.packed.data(),
                   second.scale.data());
    DequantizeMatrix(
        pool, {second.packed.data(), second.scale.data(), out_features, in_features, num_bits, 32},
        value_again.data());
    EXPECT_EQ(first.packed, second.packed);
    EXPECT_TRUE(SameBits(first.scale, second.scale));
    EXPECT_TRUE(SameBits(value, value_again));
  }
}

TEST(QuantizeMatrix, GivesTheSameBytesOnEveryInstructionSet) {
  ThreadPool pool(1);
  const int64_t out_features = 11, in_features = 117;
  const std::vector<BFloat16> weight = RandomWeights(out_features * in_features, 6);
  const QuantizeSpec spec{ScaleRule::kAbsmax7_5, GridOf(ScaleRule::kAbsmax7_5, 8), 39};
  const Quantized want = QuantizeByDefinition(weight, out_features, in_features, spec, nullptr);
  int num_tried = 0;
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  for (int64_t rest = targets; rest != 0; rest &= rest - 1, ++num_tried) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().DeInit();
    Quantized got = MakeBuffers(out_features, in_features, 8, 39);
    QuantizeMatrix(pool, weight.data(), out_features, in_features, spec, got.packed.data(),
                   got.scale.data());
    EXPECT_EQ(got.packed, want.packed) << hwy::TargetName(rest & -rest);
    EXPECT_TRUE(SameBits(got.scale, want.scale)) << hwy::TargetName(rest & -rest);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
  EXPECT_GE(num_tried, 1);
}

TEST(QuantizeMatrix, GivesTheSameBytesForAnyThreadCount) {
  const int64_t out_features = 3000, in_features = 160;
  const std::vector<BFloat16> weight = RandomWeights(out_features * in_features, 5);
  const QuantizeSpec spec;
  std::vector<Quantized> results;
  for (int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads);
    results.push_back(MakeBuffers(out_features, in_features, 4, 32));
    QuantizeMatrix(pool, weight.data(), out_features, in_features, spec,
                   results.back().packed.data(), results.back().scale.data());
  }
  for (size_t i = 1; i < results.size(); ++i) {
    EXPECT_EQ(results[i].packed, results[0].packed);
    EXPECT_TRUE(SameBits(results[i].scale, results[0].scale));
  }
}

TEST(PackCodes, EqualsTheScalarDefinitionAndComesBack) {
  for (int num_bits : {4, 8}) {
    const int count = 1 << num_bits;
    for (int64_t length = 1; length <= 65; ++length) {
      const int64_t rows = 3, words = PackedWords(length, num_bits);
      std::vector<int8_t> codes;
      std::vector<int32_t> want(static_cast<size_t>(rows * words), 0);
      for (int64_t i = 0; i < rows * length; ++i) {
        codes.push_back(static_cast<int8_t>((13 * i + length) % count - count / 2));
        PackCode(codes.back(), i % length, num_bits, want.data() + i / length * words);
      }
      std::vector<int32_t> packed(want.size(), -1);
      PackCodes(codes.data(), rows, length, num_bits, packed.data());
      EXPECT_EQ(packed, want) << length;
      std::vector<int8_t> unpacked(codes.size());
      UnpackCodes(packed.data(), rows, length, num_bits, unpacked.data());
      EXPECT_EQ(unpacked, codes) << length;
    }
  }
}

TEST(PackCodes, WritesTheWordsOfTheContract) {
  const std::vector<int8_t> nibbles = {-5, -4, -3, -2, -1, 0, 1, 2, 3, 4};
  std::vector<int32_t> words(2, -1);
  PackCodes(nibbles.data(), 1, 10, 4, words.data());
  EXPECT_EQ(static_cast<uint32_t>(words[0]), 0xA9876543u);
  EXPECT_EQ(static_cast<uint32_t>(words[1]), 0x000000CBu);
  const std::vector<int8_t> bytes = {-127, 127, -1, 1, 5};
  PackCodes(bytes.data(), 1, 5, 8, words.data());
  EXPECT_EQ(static_cast<uint32_t>(words[0]), 0x817FFF01u);
  EXPECT_EQ(static_cast<uint32_t>(words[1]), 0x00000085u);
}

TEST(FindBadWeight, NamesTheFirstRowAndColumn) {
  const float kBad[] = {std::numeric_limits<float>::quiet_NaN(),
                        std::numeric_limits<float>::infinity(),
                        -std::numeric_limits<float>::infinity(), ToFloat(BFloat16{0x7F7F}),
                        ToFloat(BFloat16{0xFF7F})};
  for (float bad : kBad) {
    std::vector<BFloat16> weight = RandomWeights(6 * 37, 2);
    EXPECT_FALSE(FindBadWeight(weight.data(), 6, 37).has_value());
    weight[2 * 37 + 35] = ToBFloat16(bad);
    weight[5 * 37 + 1] = ToBFloat16(bad);
    const std::optional<BadWeight> found = FindBadWeight(weight.data(), 6, 37);
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->row, 2);
    EXPECT_EQ(found->column, 35);
    EXPECT_EQ(ToBFloat16(found->value).bits, ToBFloat16(bad).bits);
  }
}

TEST(FindBadWeight, AcceptsEveryWeightThatHasACode) {
  std::vector<BFloat16> weight;
  for (uint32_t bits = 0; bits < 0x7F7F; ++bits) {
    weight.push_back(BFloat16{static_cast<uint16_t>(bits)});
    weight.push_back(BFloat16{static_cast<uint16_t>(bits | 0x8000u)});
  }
  EXPECT_FALSE(FindBadWeight(weight.data(), 1, static_cast<int64_t>(weight.size())).has_value());
}

}  // namespace
}  // namespace quatrain
