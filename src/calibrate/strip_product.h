// The FP32 products behind the Hessian, the error of inputs and the factorisation:
// C += scale * A^T B, A and B packed in strips of columns.
//
// The order is that of calibrate/panel_product.h: every element of C is, per segment of kChainDepth
// depths, one chain from +0, then c = fma(scale, acc, c). It depends on no tile, vector width or
// thread.
#pragma once

#include <cstdint>
#include <vector>

#include "base/threads.h"
#include "calibrate/float_buffer.h"

namespace quatrain {

// A matrix [depth, columns], kWidth of its columns side by side: strip s is [depth, kWidth] at
// Strip(s), and the last one is padded with zeros. A register tile reads both operands from first
// to last byte, which no stride keeps out of the L1 cache.
template <int64_t kWidth>
struct ColumnStrips {
  static constexpr int64_t kStripColumns = kWidth;
  // Behind each strip: whole vectors may be written past its last row, and strips of a round depth
  // would all begin in one set of the cache.
  static constexpr int64_t kPadding = 16;

  int64_t depth = 0;
  int64_t columns = 0;
  FloatBuffer data;

  void Resize(int64_t new_depth, int64_t new_columns) {
    depth = new_depth;
    columns = new_columns;
    data.resize(static_cast<size_t>(num_strips() * stride()));
  }
  int64_t num_strips() const { return (columns + kWidth - 1) / kWidth; }
  int64_t stride() const { return depth * kWidth + kPadding; }
  float* Strip(int64_t s) { return data.data() + s * stride(); }
  const float* Strip(int64_t s) const { return data.data() + s * stride(); }
};

using LeftStrips = ColumnStrips<6>;    // A: rows of a register tile, broadcast one by one
using RightStrips = ColumnStrips<16>;  // B: its columns, in vectors

// C[a.columns, b.columns] += scale * A^T B of two matrices of one depth; C is row-major with row
// stride `c_row_stride`. `scale` is a power of two or its negative, so that the last step rounds
// once. Parallel over tiles cut by the shapes alone.
void AddStripsProduct(ThreadPool& pool, const LeftStrips& a, const RightStrips& b, float scale,
                      float* c, int64_t c_row_stride);

// Upper triangle of C[columns, columns] += scale * P^T P, P packed both ways. Entries below the
// diagonal are undefined afterwards.
void AddGram(ThreadPool& pool, const LeftStrips& left, const RightStrips& right, float scale,
             float* c, int64_t c_row_stride);

// Strips [row, row_end) of A and [column, column_end) of B: a tile of C.
struct StripRange {
  int64_t row = 0, row_end = 0, column = 0, column_end = 0;
};

// The tiles of AddGram for a caller that runs other work beside them. The first one holds all of
// the leading min(columns, kGramTileColumns) rows and columns; no two write one element.
inline constexpr int64_t kGramTileColumns = 128;
std::vector<StripRange> GramTiles(int64_t columns);

// One tile of AddGram, the same bits. Single-threaded.
void AddGramTile(const LeftStrips& left, const RightStrips& right, float scale, float* c,
                 int64_t c_row_stride, const StripRange& tile);

}  // namespace quatrain
