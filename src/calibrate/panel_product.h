// The FP32 product behind the Hessian, its factorisation and the error feedback: C += scale * A B,
// B a panel of columns.
//
// Every element of C is, per segment of kChainDepth depths, one chain acc = fma(a, b, acc) from +0,
// depths ascending, then c = fma(scale, acc, c). The order depends on nothing else: not on the
// tile, the vector width or the thread.
#pragma once

#include <cstdint>
#include <vector>

#include "base/threads.h"
#include "calibrate/float_buffer.h"

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

// Panels of a row-major matrix [depth, columns]: panel p is [depth, kPanelColumns] at data[p *
// depth * kPanelColumns]; the last one is padded with zeros.
struct ColumnPanels {
  int64_t depth = 0;
  int64_t columns = 0;
  FloatBuffer data;

  void Resize(int64_t new_depth, int64_t new_columns);
  float* Panel(int64_t p) { return data.data() + p * depth * kPanelColumns; }
  const float* Panel(int64_t p) const { return data.data() + p * depth * kPanelColumns; }
};

// Upper triangle of C[columns, columns] += scale * P^T P. C has row stride `c_row_stride`; entries
// below the diagonal are undefined afterwards. Parallel over tiles cut by `columns` alone.
void AddGram(ThreadPool& pool, const ColumnPanels& panels, float scale, float* c,
             int64_t c_row_stride);

// C[a.columns, b.columns] += scale * A^T B of two matrices of one depth, C with row stride
// `c_row_stride`.
void AddPanelsProduct(ThreadPool& pool, const ColumnPanels& a, const ColumnPanels& b, float scale,
                      float* c, int64_t c_row_stride);

}  // namespace quatrain
