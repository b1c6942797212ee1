#include "calibrate/strip_product.h"

#include <algorithm>

#include "base/error.h"
#include "calibrate/panel_product.h"
#include "hwy/cache_control.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/strip_product.cc"
#include "hwy/foreach_target.h"
// clang-format off: once per instruction set, after foreach_target
#include "calibrate/simd-inl.h"
// clang-format on

#ifndef QUATRAIN_CALIBRATE_STRIP_PRODUCT_TYPES_
#define QUATRAIN_CALIBRATE_STRIP_PRODUCT_TYPES_
namespace quatrain {

// C += scale * A^T B in strips [row, row_end) of A and [column, column_end) of B.
struct StripsProduct {
  const LeftStrips* a = nullptr;
  const RightStrips* b = nullptr;
  float scale = 1.0f;
  float* c = nullptr;
  int64_t c_row_stride = 0;
  bool is_upper = false;  // register tiles below the diagonal are left out
};

}  // namespace quatrain
#endif

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using calibrate::Floats, calibrate::Fma, calibrate::Tag;

constexpr int64_t kRows = LeftStrips::kStripColumns;
constexpr int64_t kColumns = RightStrips::kStripColumns;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Tag()));
constexpr int64_t kVectors = kColumns / kLanes;  // of one strip
// Strips of B in one register tile: one alone would leave too few chains where a vector holds it.
constexpr int64_t kMostStrips = kVectors == 1 ? 2 : 1;

// What a register tile reads: strips at one depth.
struct TileInputs {
  const float* left = nullptr;
  const float* right = nullptr;
  int64_t right_stride = 0;  // between strips of B
  int64_t depth = 0;
  float scale = 1.0f;
};

// Chains of kRows x kStrips strips over the depth, at most kChainDepth, then into c [kRows,
// kStrips * kColumns].
template <int64_t kStrips>
HWY_INLINE void AddTile(const TileInputs& in, float* c, int64_t c_row_stride) {
  const Tag d;
  constexpr int64_t kAll = kStrips * kVectors;
  Floats acc[kRows][kAll];
  QUATRAIN_UNROLL
  for (int64_t r = 0; r < kRows; ++r) {
    QUATRAIN_UNROLL
    for (int64_t v = 0; v < kAll; ++v) acc[r][v] = hn::Zero(d);
  }
  // What C holds is far away by now and is needed at the end.
  QUATRAIN_UNROLL
  for (int64_t r = 0; r < kRows; ++r) {
    hwy::Prefetch(c + r * c_row_stride);
    hwy::Prefetch(c + r * c_row_stride + kStrips * kColumns - 1);
  }
  for (int64_t k = 0; k < in.depth; ++k) {
    Floats b[kAll];
    QUATRAIN_UNROLL
    for (int64_t v = 0; v < kAll; ++v) {
      b[v] = hn::LoadU(
          d, in.right + v / kVectors * in.right_stride + k * kColumns + v % kVectors * kLanes);
    }
    QUATRAIN_UNROLL
    for (int64_t r = 0; r < kRows; ++r) {
      const auto broadcast = hn::Set(d, in.left[k * kRows + r]);
      QUATRAIN_UNROLL
      for (int64_t v = 0; v < kAll; ++v) acc[r][v] = Fma(broadcast, b[v], acc[r][v]);
    }
  }
  const auto scale = hn::Set(d, in.scale);
  QUATRAIN_UNROLL
  for (int64_t r = 0; r < kRows; ++r) {
    QUATRAIN_UNROLL
    for (int64_t v = 0; v < kAll; ++v) {
      float* at = c + r * c_row_stride + v * kLanes;
      hn::StoreU(Fma(scale, acc[r][v], hn::LoadU(d, at)), d, at);
    }
  }
}

// The same where C has fewer rows or columns.
template <int64_t kStrips>
HWY_NOINLINE void AddEdgeTile(const TileInputs& in, int64_t rows, int64_t columns, float* c,
                              int64_t c_row_stride) {
  constexpr int64_t kStride = kStrips * kColumns;
  HWY_ALIGN float edge[kRows * kStride] = {};
  for (int64_t r = 0; r < rows; ++r) std::copy_n(c + r * c_row_stride, columns, edge + r * kStride);
  AddTile<kStrips>(in, edge, kStride);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(edge + r * kStride, columns, c + r * c_row_stride);
}

// Strips [range.row, range.row_end) of A beside kStrips of B, from depth k on.
template <int64_t kStrips>
void AddColumn(const StripsProduct& p, const StripRange& range, int64_t column, int64_t k) {
  const int64_t columns = std::min(kStrips * kColumns, p.b->columns - column * kColumns);
  // Strips of A that begin above the diagonal's end in these columns.
  const int64_t row_end =
      p.is_upper ? std::min(range.row_end, (column * kColumns + columns - 1) / kRows + 1)
                 : range.row_end;
  TileInputs in{.right = p.b->Strip(column) + k * kColumns,
                .right_stride = p.b->stride(),
                .depth = std::min(kChainDepth, p.a->depth - k),
                .scale = p.scale};
  for (int64_t row = range.row; row < row_end; ++row) {
    const int64_t rows = std::min(kRows, p.a->columns - row * kRows);
    float* c = p.c + row * kRows * p.c_row_stride + column * kColumns;
    in.left = p.a->Strip(row) + k * kRows;
    if (rows == kRows && columns == kStrips * kColumns) {
      AddTile<kStrips>(in, c, p.c_row_stride);
    } else {
      AddEdgeTile<kStrips>(in, rows, columns, c, p.c_row_stride);
    }
  }
}

// One strip of B stays in the L1 cache for all of A's, which stay in the L2 cache.
void AddStrips(const StripsProduct& p, const StripRange& range) {
  for (int64_t k = 0; k < p.a->depth; k += kChainDepth) {
    int64_t column = range.column;
    for (; column + kMostStrips <= range.column_end; column += kMostStrips) {
      AddColumn<kMostStrips>(p, range, column, k);
    }
    for (; column < range.column_end; ++column) AddColumn<1>(p, range, column, k);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(AddStrips);

namespace {

// Strips that one thread takes at once: 96 rows of C, whose strips of A stay in its L2 cache, and
// 256 columns, or fewer where too few threads would find work.
constexpr int64_t kTileStrips = 16;
int64_t TileColumnStrips(int64_t column_strips) { return column_strips < 32 ? 8 : 16; }

void AddProduct(ThreadPool& pool, const StripsProduct& product) {
  QT_CHECK(product.a->depth == product.b->depth, "depths {} and {}", product.a->depth,
           product.b->depth);
  const int64_t rows = product.a->num_strips();
  const int64_t columns = product.b->num_strips();
  const int64_t row_tiles = (rows + kTileStrips - 1) / kTileStrips;
  const int64_t tile_columns = TileColumnStrips(columns);
  const int64_t column_tiles = (columns + tile_columns - 1) / tile_columns;
  pool.ParallelFor(row_tiles * column_tiles, [&](int64_t chunk, int) {
    const int64_t row = chunk % row_tiles * kTileStrips;
    const int64_t column = chunk / row_tiles * tile_columns;
    HWY_DYNAMIC_DISPATCH(AddStrips)
    (product,
     {row, std::min(rows, row + kTileStrips), column, std::min(columns, column + tile_columns)});
  });
}

}  // namespace

void AddStripsProduct(ThreadPool& pool, const LeftStrips& a, const RightStrips& b, float scale,
                      float* c, int64_t c_row_stride) {
  AddProduct(pool, {&a, &b, scale, c, c_row_stride, false});
}

void AddGram(ThreadPool& pool, const LeftStrips& left, const RightStrips& right, float scale,
             float* c, int64_t c_row_stride) {
  QT_CHECK(left.columns == right.columns, "{} and {} columns", left.columns, right.columns);
  AddProduct(pool, {&left, &right, scale, c, c_row_stride, true});
}

std::vector<StripRange> GramTiles(int64_t columns) {
  constexpr int64_t kTileColumns = kGramTileColumns / RightStrips::kStripColumns;
  const int64_t all_columns =
      (columns + RightStrips::kStripColumns - 1) / RightStrips::kStripColumns;
  const auto row_end = [&](int64_t column_end) {
    const int64_t last = std::min(columns, column_end * RightStrips::kStripColumns);
    return (last + LeftStrips::kStripColumns - 1) / LeftStrips::kStripColumns;
  };
  std::vector<StripRange> tiles;
  if (columns == 0) return tiles;
  const int64_t first_end = std::min(kTileColumns, all_columns);
  tiles.push_back({0, row_end(first_end), 0, first_end});
  for (int64_t column = kTileColumns; column < all_columns; column += kTileColumns) {
    const int64_t column_end = std::min(all_columns, column + kTileColumns);
    const int64_t rows = row_end(column_end);
    for (int64_t row = 0; row < rows; row += kTileStrips) {
      tiles.push_back({row, std::min(rows, row + kTileStrips), column, column_end});
    }
  }
  return tiles;
}

void AddGramTile(const LeftStrips& left, const RightStrips& right, float scale, float* c,
                 int64_t c_row_stride, const StripRange& tile) {
  const StripsProduct product{&left, &right, scale, c, c_row_stride, true};
  HWY_DYNAMIC_DISPATCH(AddStrips)(product, tile);
}

}  // namespace quatrain
#endif  // HWY_ONCE
