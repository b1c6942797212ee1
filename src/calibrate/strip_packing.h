// Rows of activations, and of matrices, become the FP32 strips of calibrate/strip_product.h.
#pragma once

#include <cstdint>

#include "calibrate/panel_product.h"
#include "calibrate/strip_product.h"
#include "kernels/bfloat16.h"

namespace quatrain {

// Strips are packed in groups of so many columns, whole strips of either width.
inline constexpr int64_t kPackedColumns = 48;
inline int64_t NumPackedGroups(int64_t columns) {
  return (columns + kPackedColumns - 1) / kPackedColumns;
}

// Tokens that are packed at once: few, so that strips of few columns stay in the cache, but where C
// itself lies in memory it is read and written once for many.
inline int64_t TokensPackedAtOnce(int64_t columns) {
  return columns <= 1024 ? kChainDepth : 4 * kChainDepth;
}

// Rows of BFloat16 or float, to.depth of them and to.columns wide: of a row-major matrix, or
// wherever they are.
template <class T>
struct MatrixRows {
  const T* data = nullptr;
  int64_t row_stride = 0;
  const T* const* scattered = nullptr;  // if set: where each row begins

  MatrixRows From(int64_t row) const {
    if (scattered != nullptr) return {.scattered = scattered + row};
    return {.data = data + row * row_stride, .row_stride = row_stride};
  }
  const T* Row(int64_t row) const {
    return scattered != nullptr ? scattered[row] : data + row * row_stride;
  }
};

// Columns [group * kPackedColumns, ...) of `from`, and zeros behind the last one. Single-threaded.
template <int64_t kWidth, class T>
void PackStrips(MatrixRows<T> from, int64_t group, ColumnStrips<kWidth>& to);

// The same of a - b, in FP32.
template <int64_t kWidth, class T>
void PackDifference(MatrixRows<T> a, MatrixRows<T> b, int64_t group, ColumnStrips<kWidth>& to);

}  // namespace quatrain
