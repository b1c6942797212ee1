#include "calibrate/strip_packing.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

#include "base/random.h"

namespace quatrain {
namespace {

template <class T>
std::vector<T> RandomValues(int64_t count, uint64_t seed) {
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) {
    const double uniform = UniformDouble(seed, 0, static_cast<uint64_t>(i)) - 0.5;
    values.push_back(RoundTo<T>(static_cast<float>(uniform)));
  }
  return values;
}

constexpr int64_t kRows = 3;

// Every entry of every strip, those behind the last column too.
template <int64_t kWidth, class Expected>
void CheckStrips(ColumnStrips<kWidth>& to, const Expected& expected) {
  for (int64_t s = 0; s < to.num_strips(); ++s) {
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t i = 0; i < kWidth; ++i) {
        const int64_t column = s * kWidth + i;
        ASSERT_EQ(to.Strip(s)[row * kWidth + i], column < to.columns ? expected(row, column) : 0.0f)
            << to.columns << " columns, row " << row << ", column " << column;
      }
    }
  }
}

template <class T>
class StripPacking : public testing::Test {};
using Types = testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(StripPacking, Types);

TYPED_TEST(StripPacking, StripsHoldTheColumnsAndZerosBehindThem) {
  for (const int64_t columns : {1, 5, 6, 8, 16, 17, 47, 48, 49, 64, 100}) {
    // Values of the rows' own length: reading past the last one would leave the vector.
    const int64_t stride = columns + 2;
    const std::vector<TypeParam> a = RandomValues<TypeParam>((kRows - 1) * stride + columns, 1);
    const std::vector<TypeParam> b = RandomValues<TypeParam>((kRows - 1) * columns + columns, 2);
    const auto of_a = [&](int64_t row, int64_t column) {
      return ToFloat(a[static_cast<size_t>(row * stride + column)]);
    };
    const auto of_difference = [&](int64_t row, int64_t column) {
      return of_a(row, column) - ToFloat(b[static_cast<size_t>(row * columns + column)]);
    };
    LeftStrips left;
    RightStrips right, difference;
    left.Resize(kRows, columns);
    right.Resize(kRows, columns);
    difference.Resize(kRows, columns);
    for (int64_t group = 0; group < NumPackedGroups(columns); ++group) {
      const MatrixRows<TypeParam> rows{a.data(), stride};
      PackStrips(rows, group, left);
      PackStrips(rows, group, right);
      PackDifference(rows, MatrixRows<TypeParam>{b.data(), columns}, group, difference);
    }
    CheckStrips(left, of_a);
    CheckStrips(right, of_a);
    CheckStrips(difference, of_difference);
  }
}

}  // namespace
}  // namespace quatrain
