// What the linear kernels compute: products C = A B, and how they are cut into chunks.
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
inline constexpr int64_t kDepthBlock = 256;  // steps of the chain per visit
inline constexpr int64_t kMostTileRows = 12;
inline constexpr int64_t kRowBlock =
    264;  // most rows of a chunk, in whole tiles: A is 280 KiB (L2)
inline constexpr int64_t kMostCols = 512;                        // of a chunk
inline constexpr int64_t kResults = kRowBlock * 4 * kPanelCols;  // most elements of C in scratch
// Leading dimension of packed A: not a power of two, which would map rows to one cache set.
inline constexpr int64_t kPackedStride = kDepthBlock + 16;

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

// Whether C must wait in scratch between visits: it is rounded only at the end of its chains.
inline bool NeedsResults(const LinearProduct& product) {
  return product.c_float == nullptr && product.depth > kDepthBlock;
}

// Scratch of one thread. A strip is as wide as the registers of a tile (2 vectors).
struct alignas(64) LinearScratch {
  float a[kRowBlock * kPackedStride];     // rows, or strips of the height of a tile
  float b[kDepthBlock * kPanelCols];      // [strips of kPanelCols, kDepthBlock, strip]
  float c[kResults];                      // [rows, columns of the chunk, padded to whole panels]
  float bias[kMostCols];                  // of the chunk's columns, zeros behind them
  float scale[kDepthBlock * kPanelCols];  // [groups of the block, kPanelCols]
  uint8_t tail[kPanelCols * 16];          // the last bytes of each weight row, zero-padded
};

}  // namespace quatrain
