// What the linear kernels compute: products C = A B, cut into chunks by the problem alone.
//
//   forward       C = y  [m, n]   A = x          B(r, j) = w'[j, r]   depth = k
//   input grad    C = dx [m, k]   A = dy         B(r, j) = w'[r, j]   depth = n
//   weight grad   C = dw [n, k]   A = dy^T       B(r, j) = x[r, j]    depth = m
#pragma once

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/linear.h"

namespace quatrain {

inline constexpr int64_t kPanelCols = 32;    // columns of B unpacked to FP32 at a time
inline constexpr int64_t kDepthBlock = 256;  // steps of the chain per visit: a panel is 32 KiB (L1)
inline constexpr int64_t kRowBlock = 256;    // most rows of a chunk: A is 272 KiB (L2)
inline constexpr int64_t kResults = kRowBlock * 4 * kPanelCols;  // most elements of C in a chunk
// Leading dimension of packed A: not a power of two, which would map rows to one cache set.
inline constexpr int64_t kPackedStride = kDepthBlock + 16;
static_assert(kRowBlock <= kDepthBlock);

// C[i, j] = one chain of fma(A(i, r), B(r, j), acc), r ascending from +0 or from the old C.
struct LinearProduct {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t depth = 0;

  const void* a = nullptr;  // element (i, r) at i * a_row_stride + r * a_depth_stride
  bool a_is_bfloat16 = false;
  int64_t a_row_stride = 0;
  int64_t a_depth_stride = 0;  // one of the strides is 1

  WeightView b;
  bool b_is_transposed = false;  // true: B(r, j) = w'[j, r]; false: w'[r, j]

  float* c_float = nullptr;  // [rows, cols]; one of the two is set
  BFloat16* c_bfloat16 = nullptr;
  bool accumulate = false;     // the chains start from c_float
  const void* bias = nullptr;  // [cols] of A's type, or null; added in FP32 before rounding
  float* row_sums = nullptr;   // [rows] or null: += A(i, r), r ascending
};

struct LinearChunk {
  int64_t product = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t col_begin = 0;  // a multiple of kPanelCols
  int64_t col_end = 0;
  int64_t cost = 0;  // rough cycles, for the order
};

// Scratch of one thread.
struct alignas(64) LinearScratch {
  float a[kRowBlock * kPackedStride];     // depth-major if a_row_stride is 1, else row-major
  float b[kDepthBlock * kPanelCols];      // [depth, kPanelCols]
  float c[kResults];                      // [rows, columns of the chunk, padded to whole panels]
  float scale[kDepthBlock * kPanelCols];  // [groups of the block, kPanelCols]
  uint8_t tail[kPanelCols * 16];          // the last bytes of each weight row, zero-padded
};

}  // namespace quatrain
