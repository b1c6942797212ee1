#include "io/dtype.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace quatrain {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

std::optional<uint64_t> Bytes(DType dtype, const std::vector<int64_t>& shape) {
  return BytesOf(dtype, shape);
}

TEST(DType, NamesAndTypesAreOneToOne) {
  for (int i = 0; i <= static_cast<int>(DType::kU64); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(FindDType(DTypeName(dtype)), dtype);
  }
  EXPECT_EQ(FindDType("bf16"), std::nullopt);
  EXPECT_EQ(FindDType(""), std::nullopt);
}

TEST(DType, WidthsAreThoseOfTheFormatAndNeverDescend) {
  EXPECT_EQ(BitsOf(DType::kBool), 8);
  EXPECT_EQ(BitsOf(DType::kF4), 4);
  EXPECT_EQ(BitsOf(DType::kF6E2M3), 6);
  EXPECT_EQ(BitsOf(DType::kF8E8M0), 8);
  EXPECT_EQ(BitsOf(DType::kBF16), 16);
  EXPECT_EQ(BitsOf(DType::kF32), 32);
  EXPECT_EQ(BitsOf(DType::kC64), 64);
  for (int i = static_cast<int>(DType::kU8); i < static_cast<int>(DType::kU64); ++i) {
    EXPECT_LE(BitsOf(static_cast<DType>(i)), BitsOf(static_cast<DType>(i + 1)));
  }
}

TEST(DType, BytesOfAShape) {
  EXPECT_EQ(Bytes(DType::kBF16, {3, 5}), 30u);
  EXPECT_EQ(Bytes(DType::kF32, {}), 4u) << "a scalar";
  EXPECT_EQ(Bytes(DType::kI64, {7, 0}), 0u);
  EXPECT_EQ(Bytes(DType::kF4, {3, 2}), 3u);
  EXPECT_EQ(Bytes(DType::kF6E3M2, {4}), 3u);
}

TEST(DType, ImpossibleShapesHaveNoSize) {
  EXPECT_EQ(Bytes(DType::kF4, {3}), std::nullopt) << "12 bits";
  EXPECT_EQ(Bytes(DType::kU8, {-1}), std::nullopt);
  EXPECT_EQ(Bytes(DType::kU8, {-1, -1}), std::nullopt);
  EXPECT_EQ(Bytes(DType::kU8, {kHuge, kHuge}), std::nullopt);
  EXPECT_EQ(Bytes(DType::kI64, {kHuge}), std::nullopt);
}

}  // namespace
}  // namespace quatrain
