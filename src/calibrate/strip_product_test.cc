#include "calibrate/strip_product.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "base/random.h"
#include "calibrate/panel_product.h"
#include "calibrate/strip_packing.h"

namespace quatrain {
namespace {

// A matrix of random values, packed both ways.
struct Operand {
  Operand(int64_t depth, int64_t num_columns, uint64_t seed) : columns(num_columns) {
    for (int64_t i = 0; i < depth * columns; ++i) {
      values.push_back(
          static_cast<float>(2.0 * UniformDouble(seed, 0, static_cast<uint64_t>(i)) - 1.0));
    }
    left.Resize(depth, columns);
    right.Resize(depth, columns);
    for (int64_t group = 0; group < NumPackedGroups(columns); ++group) {
      PackStrips(MatrixRows<float>{values.data(), columns}, group, left);
      PackStrips(MatrixRows<float>{values.data(), columns}, group, right);
    }
  }
  float At(int64_t k, int64_t column) const {
    return values[static_cast<size_t>(k * columns + column)];
  }

  int64_t columns;
  std::vector<float> values;
  LeftStrips left;
  RightStrips right;
};

// What the header promises, element by element.
float ExpectedElement(const Operand& a, const Operand& b, int64_t row, int64_t column,
                      float scale) {
  float c = 1.0f;
  for (int64_t first = 0; first < a.left.depth; first += kChainDepth) {
    float acc = 0.0f;
    for (int64_t k = first; k < std::min(a.left.depth, first + kChainDepth); ++k) {
      acc = std::fma(a.At(k, row), b.At(k, column), acc);
    }
    c = std::fma(scale, acc, c);
  }
  return c;
}

TEST(StripProduct, EveryElementIsItsOwnChainWhateverTheTile) {
  ThreadPool pool(2);
  for (const auto& [rows, columns, depth] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 1}, {6, 16, 256}, {7, 17, 257}, {5, 48, 3}, {110, 100, 520}, {4, 70, 0}}) {
    const Operand a(depth, rows, 1), b(depth, columns, 2);
    const int64_t stride = columns + 3;
    std::vector<float> c(static_cast<size_t>(rows * stride), 1.0f);
    AddStripsProduct(pool, a.left, b.right, -2.0f, c.data(), stride);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < stride; ++column) {
        ASSERT_EQ(c[static_cast<size_t>(row * stride + column)],
                  column < columns ? ExpectedElement(a, b, row, column, -2.0f) : 1.0f)
            << rows << "x" << columns << "x" << depth << " at " << row << ", " << column;
      }
    }
  }
}

TEST(StripProduct, UpperTriangleOfTheGramIsThatOfThePlainProduct) {
  ThreadPool pool(2);
  for (const int64_t columns : {1, 6, 31, 33, 130, 300}) {
    const Operand p(70, columns, 4);
    std::vector<float> c(static_cast<size_t>(columns * columns), 1.0f);
    AddGram(pool, p.left, p.right, 2.0f, c.data(), columns);
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = i; j < columns; ++j) {
        ASSERT_EQ(c[static_cast<size_t>(i * columns + j)], ExpectedElement(p, p, i, j, 2.0f))
            << columns << " columns at " << i << ", " << j;
      }
    }
  }
}

TEST(StripProduct, TilesOfTheGramCoverItOnceAndTheFirstHoldsTheLeadingBlock) {
  for (const int64_t columns : {1, 16, 127, 128, 129, 200, 333, 700}) {
    const Operand p(40, columns, 5);
    const std::vector<StripRange> tiles = GramTiles(columns);
    // Last to first, so that the first one has to bring the leading block alone.
    std::vector<float> c(static_cast<size_t>(columns * columns), 1.0f);
    for (size_t tile = tiles.size(); tile-- > 0;) {
      const std::vector<float> before = c;
      AddGramTile(p.left, p.right, 2.0f, c.data(), columns, tiles[tile]);
      for (int64_t i = 0; i < std::min(columns, kGramTileColumns); ++i) {
        for (int64_t j = i; j < std::min(columns, kGramTileColumns); ++j) {
          const size_t at = static_cast<size_t>(i * columns + j);
          ASSERT_TRUE(tile == 0 || c[at] == before[at]) << columns << " tile " << tile;
        }
      }
    }
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = i; j < columns; ++j) {
        ASSERT_EQ(c[static_cast<size_t>(i * columns + j)], ExpectedElement(p, p, i, j, 2.0f))
            << columns << " columns at " << i << ", " << j;
      }
    }
  }
  EXPECT_TRUE(GramTiles(0).empty());
}

}  // namespace
}  // namespace quatrain
