#include "models/block_fp8.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace quatrain {
namespace {

TEST(BlockFp8, CodesHaveTheValuesOfOcpE4M3) {
  // OCP 8-bit floating point specification, table 2.
  EXPECT_EQ(Fp8E4M3ToFloat(0x00), 0.0f);
  EXPECT_TRUE(std::signbit(Fp8E4M3ToFloat(0x80)));
  EXPECT_EQ(Fp8E4M3ToFloat(0x01), std::ldexp(1.0f, -9));
  EXPECT_EQ(Fp8E4M3ToFloat(0x07), 7 * std::ldexp(1.0f, -9));
  EXPECT_EQ(Fp8E4M3ToFloat(0x08), std::ldexp(1.0f, -6));
  EXPECT_EQ(Fp8E4M3ToFloat(0x38), 1.0f);
  EXPECT_EQ(Fp8E4M3ToFloat(0xBC), -1.5f);
  EXPECT_EQ(Fp8E4M3ToFloat(0x7E), 448.0f);
  EXPECT_TRUE(std::isnan(Fp8E4M3ToFloat(0x7F)));
  EXPECT_TRUE(std::isnan(Fp8E4M3ToFloat(0xFF)));
}

TEST(BlockFp8, EachBlockHasItsFactorAndTheLastOnesMayBeCut) {
  // 3 rows of 5 ones in blocks of [2, 3]: two by two factors.
  const std::vector<std::byte> codes(15, std::byte{0x38});
  const std::vector<float> factors = {1.0f, 2.0f, 3.0f, 0.100000001f};
  const std::vector<BFloat16> weight = DequantizeBlockFp8(codes, 5, factors, {2, 3});
  const float rounded = ToFloat(ToBFloat16(0.100000001f));
  const std::vector<float> expected = {1, 1, 1, 2, 2, 1, 1, 1, 2, 2, 3, 3, 3, rounded, rounded};
  ASSERT_EQ(weight.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(ToFloat(weight[i]), expected[i]) << i;
}

TEST(BlockFp8, ConfigNamesTheBlocksOrIsRefused) {
  const Json deepseek = {{"quantization_config",
                          {{"quant_method", "fp8"},
                           {"fmt", "e4m3"},
                           {"activation_scheme", "dynamic"},
                           {"weight_block_size", {128, 64}}}}};
  ASSERT_TRUE(FindBlockFp8(deepseek, "config.json").has_value());
  EXPECT_EQ(FindBlockFp8(deepseek, "config.json")->block_columns, 64);
  EXPECT_FALSE(FindBlockFp8(Json::object(), "config.json").has_value());
  const Json other = {{"quantization_config", {{"quant_method", "compressed-tensors"}}}};
  EXPECT_FALSE(FindBlockFp8(other, "config.json").has_value());
  for (const Json& format :
       {Json{{"quant_method", "fp8"}},
        Json{{"quant_method", "fp8"}, {"fmt", "e5m2"}, {"weight_block_size", {128, 128}}},
        Json{{"quant_method", "fp8"}, {"weight_block_size", {128, 0}}}}) {
    EXPECT_THROW(FindBlockFp8({{"quantization_config", format}}, "config.json"), Error);
  }
}

}  // namespace
}  // namespace quatrain
