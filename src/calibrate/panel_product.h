// The FP32 product behind the error feedback, the solves and the losses: C += scale * A B, B a
// panel of columns. Where both operands are read often, calibrate/strip_product.h packs them.
//
// Every element of C is, per segment of kChainDepth depths, one chain acc = fma(a, b, acc) from +0,
// depths ascending, then c = fma(scale, acc, c). The order depends on nothing else: not on the
// tile, the vector width or the thread.
#pragma once

#include <cstdint>

namespace quatrain {

inline constexpr int64_t kPanelColumns = 32;
inline constexpr int64_t kChainDepth = 256;

inline int64_t NumPanels(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

struct PanelProduct {
  int64_t rows = 0;
  int64_t columns = kPanelColumns;  // of C, at most kPanelColumns
  int64_t depth = 0;
  const float* a =
      nullptr;  // element (row, depth) at a[row * a_row_stride + depth * a_depth_stride]
  int64_t a_row_stride = 0;
  int64_t a_depth_stride = 1;
  const float* b = nullptr;  // [depth, kPanelColumns]; columns past `columns` are read and ignored
  float* c = nullptr;        // [rows, columns]
  int64_t c_row_stride = 0;
  float scale = 1.0f;  // a power of two or its negative, so that the last step rounds once
};

// Single-threaded. A and C must not overlap.
void AddPanelProduct(const PanelProduct& product);

}  // namespace quatrain
