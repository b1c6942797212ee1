#include "calibrate/panel_product.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"

namespace quatrain {
namespace {

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(2.0 * UniformDouble(seed, 0, i) - 1.0);
  }
  return values;
}

// What the header promises, element by element.
float ExpectedElement(const PanelProduct& p, int64_t row, int64_t column, float c) {
  for (int64_t first = 0; first < p.depth; first += kChainDepth) {
    float acc = 0.0f;
    for (int64_t k = first; k < std::min(p.depth, first + kChainDepth); ++k) {
      acc = std::fma(p.a[row * p.a_row_stride + k * p.a_depth_stride],
                     p.b[k * kPanelColumns + column], acc);
    }
    c = std::fma(p.scale, acc, c);
  }
  return c;
}

TEST(PanelProduct, EveryElementIsItsOwnChainWhateverTheTile) {
  for (const auto& [rows, columns, depth] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 1}, {8, 32, 256}, {9, 31, 257}, {17, 16, 5}, {3, 17, 600}, {5, 32, 0}}) {
    const std::vector<float> a = RandomFloats(rows * (depth + 3) + 1, 1);
    const std::vector<float> b = RandomFloats(depth * kPanelColumns + 1, 2);
    const std::vector<float> before = RandomFloats(rows * 40, 3);
    std::vector<float> c = before;
    const PanelProduct product{.rows = rows,
                               .columns = columns,
                               .depth = depth,
                               .a = a.data(),
                               .a_row_stride = depth + 3,
                               .b = b.data(),
                               .c = c.data(),
                               .c_row_stride = 40,
                               .scale = -1.0f};
    AddPanelProduct(product);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < 40; ++column) {
        const size_t at = static_cast<size_t>(row * 40 + column);
        const float expected =
            column < columns ? ExpectedElement(product, row, column, before[at]) : before[at];
        ASSERT_EQ(c[at], expected) << rows << "x" << columns << "x" << depth;
      }
    }
  }
}

}  // namespace
}  // namespace quatrain
