#include "calibrate/panel_packing.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/random.h"

namespace quatrain {
namespace {

float FloatOf(float value) { return value; }
float FloatOf(BFloat16 value) { return ToFloat(value); }

template <class T>
T ValueOf(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return ToBFloat16(value);
  }
}

template <class T>
std::vector<T> RandomValues(int64_t count, uint64_t seed) {
  std::vector<T> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(
        ValueOf<T>(static_cast<float>(UniformDouble(seed, 0, static_cast<uint64_t>(i)) - 0.5)));
  }
  return values;
}

template <class T>
class PanelPacking : public testing::Test {};
using Types = testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(PanelPacking, Types);

TYPED_TEST(PanelPacking, PanelsHoldTheColumnsAndZerosBehindThem) {
  constexpr int64_t kRows = 3;
  for (const int64_t columns : {1, 31, 32, 33, 55, 64, 77}) {
    const std::vector<TypeParam> a = RandomValues<TypeParam>(kRows * columns, 1);
    const std::vector<TypeParam> b = RandomValues<TypeParam>(kRows * columns, 2);
    for (int64_t panel = 0; panel < NumPanels(columns); ++panel) {
      std::vector<float> packed(kRows * kPanelColumns, 7.0f), difference = packed;
      PackPanel(a.data(), kRows, columns, panel, packed.data());
      PackDifference(a.data(), b.data(), kRows, columns, panel, difference.data());
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t i = 0; i < kPanelColumns; ++i) {
          const int64_t column = panel * kPanelColumns + i;
          const auto from = static_cast<size_t>(row * columns + column);
          const auto at = static_cast<size_t>(row * kPanelColumns + i);
          const bool is_padding = column >= columns;
          ASSERT_EQ(packed[at], is_padding ? 0.0f : FloatOf(a[from])) << columns;
          ASSERT_EQ(difference[at], is_padding ? 0.0f : FloatOf(a[from]) - FloatOf(b[from]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace quatrain
