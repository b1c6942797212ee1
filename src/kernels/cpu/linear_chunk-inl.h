// Computes one chunk of a LinearProduct; compiled once per instruction set.
//
// Plan: A of the chunk (up to 256 rows) is packed to FP32 per block of 256 steps, B is unpacked to
// FP32 panels of 32 columns, and a tile of kTileRows x 2 vectors of C stays in registers through a
// block: one fma per element and step, r ascending. Between blocks C waits in FP32 scratch, which
// changes no bit of its chain. A lane is always one element of C.
#if defined(QUATRAIN_KERNELS_CPU_LINEAR_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUATRAIN_KERNELS_CPU_LINEAR_CHUNK_INL_H_
#undef QUATRAIN_KERNELS_CPU_LINEAR_CHUNK_INL_H_
#else
#define QUATRAIN_KERNELS_CPU_LINEAR_CHUNK_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "hwy/highway.h"
#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/linear_product.h"
#include "kernels/cpu/linear_weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Accumulators that the registers hold beside two vectors of B and one of A.
constexpr int64_t kTileRows = HWY_TARGET == HWY_AVX2 ? 6 : 12;
constexpr int64_t kTileCols = 2 * kLanes;

// Packed A of a tile: element (i, r) at data[i * row_stride + r * depth_stride].
struct PackedRows {
  const float* data;
  int64_t row_stride;
  int64_t depth_stride;
};

// c[kRows, kPanelCols] (leading dimension ldc) += chains of a and the panel b[depth, kPanelCols].
template <int kRows>
void MultiplyTile(const PackedRows& rows, const float* HWY_RESTRICT panel, int64_t depth,
                  float* HWY_RESTRICT c, int64_t ldc) {
  const LinearF df;
  for (int64_t col = 0; col < kPanelCols; col += kTileCols) {
    VecF sum0[kRows], sum1[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      sum0[i] = hn::Load(df, c + i * ldc + col);
      sum1[i] = hn::Load(df, c + i * ldc + col + kLanes);
    }
    const float* a = rows.data;
    const float* b = panel + col;
    for (int64_t r = 0; r < depth; ++r) {
      const VecF b0 = hn::Load(df, b);
      const VecF b1 = hn::Load(df, b + kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const VecF ai = hn::Set(df, a[i * rows.row_stride]);
        sum0[i] = hn::MulAdd(ai, b0, sum0[i]);
        sum1[i] = hn::MulAdd(ai, b1, sum1[i]);
      }
      a += rows.depth_stride;
      b += kPanelCols;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      hn::Store(sum0[i], df, c + i * ldc + col);
      hn::Store(sum1[i], df, c + i * ldc + col + kLanes);
    }
  }
}

using TileFunction = void (*)(const PackedRows&, const float*, int64_t, float*, int64_t);

template <int... kIndices>
constexpr std::array<TileFunction, sizeof...(kIndices)> TileTable(
    std::integer_sequence<int, kIndices...>) {
  return {&MultiplyTile<kIndices + 1>...};
}

// All rows of the chunk against one panel, in tiles of nearly equal height.
inline void MultiplyPanel(PackedRows a, int64_t rows, const float* panel, int64_t depth, float* c,
                          int64_t ldc) {
  static constexpr auto kTiles = TileTable(std::make_integer_sequence<int, kTileRows>());
  const int64_t num_tiles = (rows + kTileRows - 1) / kTileRows;
  int64_t begin = 0;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    const int64_t end = rows * (tile + 1) / num_tiles;
    const PackedRows part{a.data + begin * a.row_stride, a.row_stride, a.depth_stride};
    kTiles[static_cast<size_t>(end - begin - 1)](part, panel, depth, c + begin * ldc, ldc);
    begin = end;
  }
}

HWY_INLINE void CopyToFloat(const float* from, int64_t count, float* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}
HWY_INLINE void CopyToFloat(const BFloat16* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(LoadBFloat16(LinearF(), from + i), LinearF(), to + i);
  }
  for (; i < count; ++i) to[i] = ToFloat(from[i]);
}

// Packs A(row_begin.., depth_begin..) in the order in which it lies in memory.
template <class T>
PackedRows PackRows(const LinearProduct& product, const LinearChunk& chunk, int64_t depth_begin,
                    int64_t depth, float* to) {
  const T* from = static_cast<const T*>(product.a) + chunk.row_begin * product.a_row_stride +
                  depth_begin * product.a_depth_stride;
  const int64_t rows = chunk.row_end - chunk.row_begin;
  const bool is_row_major = product.a_depth_stride == 1;
  const int64_t outer = is_row_major ? rows : depth;
  const int64_t inner = is_row_major ? depth : rows;
  const int64_t stride = is_row_major ? product.a_row_stride : product.a_depth_stride;
  for (int64_t i = 0; i < outer; ++i) CopyToFloat(from + i * stride, inner, to + i * kPackedStride);
  return is_row_major ? PackedRows{to, kPackedStride, 1} : PackedRows{to, 1, kPackedStride};
}

// row_sums[i] += A(i, r), r ascending.
inline void AddRowSums(const PackedRows& a, int64_t rows, int64_t depth, float* row_sums) {
  for (int64_t r = 0; r < depth; ++r) {
    for (int64_t i = 0; i < rows; ++i) {
      row_sums[i] += a.data[i * a.row_stride + r * a.depth_stride];
    }
  }
}

inline void StartChains(const LinearProduct& product, const LinearChunk& chunk, int64_t ldc,
                        float* c) {
  const int64_t rows = chunk.row_end - chunk.row_begin;
  if (!product.accumulate) {
    std::memset(c, 0, static_cast<size_t>(rows * ldc) * sizeof(float));
    return;
  }
  const int64_t cols = chunk.col_end - chunk.col_begin;
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = product.c_float + (chunk.row_begin + i) * product.cols + chunk.col_begin;
    std::memcpy(c + i * ldc, from, static_cast<size_t>(cols) * sizeof(float));
    std::memset(c + i * ldc + cols, 0, static_cast<size_t>(ldc - cols) * sizeof(float));
  }
}

HWY_INLINE void StoreLanes(VecF value, float* to) { hn::StoreU(value, LinearF(), to); }
HWY_INLINE void StoreLanes(VecF value, BFloat16* to) { StoreBFloat16(LinearF(), value, to); }

// to[j] = rounded c[j] (+ bias[j]).
template <class T>
HWY_INLINE void FinishRow(const float* c, const float* bias, int64_t cols, T* to) {
  const LinearF df;
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    const VecF sum = hn::LoadU(df, c + j);
    StoreLanes(bias == nullptr ? sum : hn::Add(sum, hn::LoadU(df, bias + j)), to + j);
  }
  for (; j < cols; ++j) to[j] = RoundTo<T>(bias == nullptr ? c[j] : c[j] + bias[j]);
}

inline void FinishChains(const LinearProduct& product, const LinearChunk& chunk, int64_t ldc,
                         LinearScratch& scratch) {
  const int64_t cols = chunk.col_end - chunk.col_begin;
  const float* bias = nullptr;
  if (product.bias != nullptr) {  // packed A is no longer needed: its place takes the bias
    if (product.a_is_bfloat16) {
      CopyToFloat(static_cast<const BFloat16*>(product.bias) + chunk.col_begin, cols, scratch.a);
    } else {
      CopyToFloat(static_cast<const float*>(product.bias) + chunk.col_begin, cols, scratch.a);
    }
    bias = scratch.a;
  }
  for (int64_t i = chunk.row_begin; i < chunk.row_end; ++i) {
    const float* c = scratch.c + (i - chunk.row_begin) * ldc;
    const int64_t at = i * product.cols + chunk.col_begin;
    if (product.c_bfloat16 != nullptr) {
      FinishRow(c, bias, cols, product.c_bfloat16 + at);
    } else {
      FinishRow(c, bias, cols, product.c_float + at);
    }
  }
}

inline void UnpackPanel(const LinearProduct& product, int64_t col, int64_t depth_begin,
                        int64_t depth, LinearScratch& scratch) {
  if (product.b_is_transposed) {
    UnpackColumns(product.b, PanelCut{col, depth_begin, depth}, scratch);
    return;
  }
  const RowUnpacker unpacker(product.b, col);
  for (int64_t r = 0; r < depth; ++r) {
    unpacker.Unpack(depth_begin + r, scratch.b + r * kPanelCols);
  }
}

void RunChunk(const LinearProduct& product, const LinearChunk& chunk, LinearScratch& scratch) {
  const int64_t rows = chunk.row_end - chunk.row_begin;
  const int64_t num_panels = (chunk.col_end - chunk.col_begin + kPanelCols - 1) / kPanelCols;
  const int64_t ldc = num_panels * kPanelCols;
  StartChains(product, chunk, ldc, scratch.c);
  for (int64_t begin = 0; begin < product.depth; begin += kDepthBlock) {
    const int64_t depth = std::min(kDepthBlock, product.depth - begin);
    const PackedRows a = product.a_is_bfloat16
                             ? PackRows<BFloat16>(product, chunk, begin, depth, scratch.a)
                             : PackRows<float>(product, chunk, begin, depth, scratch.a);
    if (product.row_sums != nullptr && chunk.col_begin == 0) {
      AddRowSums(a, rows, depth, product.row_sums + chunk.row_begin);
    }
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const int64_t col = panel * kPanelCols;
      UnpackPanel(product, chunk.col_begin + col, begin, depth, scratch);
      MultiplyPanel(a, rows, scratch.b, depth, scratch.c + col, ldc);
    }
  }
  FinishChains(product, chunk, ldc, scratch);
}

void DequantizeRowRange(const WeightView& weight, int64_t row_begin, int64_t row_end, float* out) {
  for (int64_t k = 0; k < weight.in_features; k += kPanelCols) {
    const RowUnpacker unpacker(weight, k);
    const int64_t count = std::min(kPanelCols, weight.in_features - k);
    for (int64_t row = row_begin; row < row_end; ++row) {
      float* to = out + (row - row_begin) * weight.in_features + k;
      if (count == kPanelCols) {
        unpacker.Unpack(row, to);
      } else {
        float whole[kPanelCols];
        unpacker.Unpack(row, whole);
        std::copy_n(whole, count, to);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
