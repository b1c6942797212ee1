#include "calibrate/cholesky.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "calibrate/float_buffer.h"
#include "calibrate/panel_product.h"
#include "calibrate/strip_packing.h"
#include "calibrate/strip_product.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/cholesky.cc"
#include "hwy/foreach_target.h"
// clang-format off: once per instruction set, after foreach_target
#include "calibrate/simd-inl.h"
// clang-format on

#ifndef QUATRAIN_CALIBRATE_CHOLESKY_CONSTANTS_
#define QUATRAIN_CALIBRATE_CHOLESKY_CONSTANTS_
namespace quatrain {
inline constexpr int64_t kCholeskyBlock = 128;
inline constexpr int64_t kSolveStep = 16;  // rows that a panel's solve takes at once
}  // namespace quatrain
#endif

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using calibrate::Floats, calibrate::Fma, calibrate::Tag;

// Factors the leading size x size part of block [kCholeskyBlock, kCholeskyBlock]; the rest of it is
// zero. Works on whole vectors, hence also on entries left of the diagonal, which nobody reads.
bool FactorBlock(const float* smallest_pivots, int64_t size, float* block) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t k = 0; k < size; ++k) {
    float* row_k = block + k * kCholeskyBlock;
    const float pivot = row_k[k];
    if (!(pivot > smallest_pivots[k])) return false;  // NaN too
    const auto root = hn::Set(d, std::sqrt(pivot));
    for (int64_t j = k / lanes * lanes; j < kCholeskyBlock; j += lanes) {
      hn::StoreU(hn::Div(hn::LoadU(d, row_k + j), root), d, row_k + j);
    }
    for (int64_t i = k + 1; i < size; ++i) {
      float* row_i = block + i * kCholeskyBlock;
      const auto factor = hn::Set(d, -row_k[i]);
      for (int64_t j = i / lanes * lanes; j < kCholeskyBlock; j += lanes) {
        const auto updated = Fma(factor, hn::LoadU(d, row_k + j), hn::LoadU(d, row_i + j));
        hn::StoreU(updated, d, row_i + j);
      }
    }
  }
  return true;
}

// Rows [first, end) of panel = U^-T panel, given the rows above and with their part already
// subtracted. Several vectors at once, which hides the latency of their chains.
void SolveTriangle(const float* block, int64_t first, int64_t end, float* panel) {
  const Tag d;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Tag()));
  constexpr int64_t kVectors = std::min<int64_t>(kPanelColumns / kLanes, 8);
  for (int64_t k = first; k < end; ++k) {
    const auto pivot = hn::Set(d, block[k * kCholeskyBlock + k]);
    for (int64_t j = 0; j < kPanelColumns; j += kVectors * kLanes) {
      float* at = panel + k * kPanelColumns + j;
      Floats value[kVectors];
      QUATRAIN_UNROLL
      for (int64_t v = 0; v < kVectors; ++v) value[v] = hn::LoadU(d, at + v * kLanes);
      for (int64_t l = first; l < k; ++l) {
        const auto factor = hn::Set(d, -block[l * kCholeskyBlock + k]);
        const float* above = panel + l * kPanelColumns + j;
        QUATRAIN_UNROLL
        for (int64_t v = 0; v < kVectors; ++v) {
          value[v] = Fma(factor, hn::LoadU(d, above + v * kLanes), value[v]);
        }
      }
      QUATRAIN_UNROLL
      for (int64_t v = 0; v < kVectors; ++v) {
        hn::StoreU(hn::Div(value[v], pivot), d, at + v * kLanes);
      }
    }
  }
}

void DivideReversed(const float* from, int64_t count, float divisor, float* to) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto divisors = hn::Set(d, divisor);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto values = hn::Reverse(d, hn::LoadU(d, from + count - lanes - i));
    hn::StoreU(hn::Div(values, divisors), d, to + i);
  }
  for (; i < count; ++i) to[i] = from[count - 1 - i] / divisor;
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(FactorBlock);
HWY_EXPORT(SolveTriangle);
HWY_EXPORT(DivideReversed);

namespace {

// panel [size, kPanelColumns] = U^-T panel, U the factored block.
void SolvePanel(const float* block, int64_t size, float* panel) {
  for (int64_t first = 0; first < size; first += kSolveStep) {
    const int64_t end = std::min(size, first + kSolveStep);
    AddPanelProduct({.rows = end - first,
                     .depth = first,
                     .a = block + first,
                     .a_row_stride = 1,
                     .a_depth_stride = kCholeskyBlock,
                     .b = panel,
                     .c = panel + first * kPanelColumns,
                     .c_row_stride = kPanelColumns,
                     .scale = -1.0f});
    HWY_DYNAMIC_DISPATCH(SolveTriangle)(block, first, end, panel);
  }
}

// Rows right of the factored block: solved in place and packed for the trailing update.
struct BlockRow {
  int64_t size = 0;     // rows
  int64_t columns = 0;  // right of the block
  float* a = nullptr;   // the first of them
  int64_t stride = 0;
  LeftStrips left;
  RightStrips right;
};

// One block on the diagonal, factored: [kCholeskyBlock, kCholeskyBlock] and zeros around it.
using DiagonalBlock = AlignedBuffer;

// Factors the leading size x size part of `diagonal` in place and leaves a copy in `block`.
bool FactorDiagonal(const float* smallest_pivots, int64_t size, int64_t stride, float* diagonal,
                    DiagonalBlock& block) {
  block.assign(kCholeskyBlock * kCholeskyBlock, 0.0f);
  for (int64_t row = 0; row < size; ++row) {
    std::copy_n(diagonal + row * stride + row, size - row,
                block.data() + row * kCholeskyBlock + row);
  }
  if (!HWY_DYNAMIC_DISPATCH(FactorBlock)(smallest_pivots, size, block.data())) return false;
  for (int64_t row = 0; row < size; ++row) {
    std::copy_n(block.data() + row * kCholeskyBlock + row, size - row,
                diagonal + row * stride + row);
  }
  return true;
}

void SolveColumns(const float* block, int64_t first, BlockRow& row) {
  const int64_t columns = std::min(kPanelColumns, row.columns - first);
  HWY_ALIGN float panel[kCholeskyBlock * kPanelColumns];
  float* at = row.a + first;
  for (int64_t k = 0; k < row.size; ++k) {
    std::copy_n(at + k * row.stride, columns, panel + k * kPanelColumns);
    std::fill_n(panel + k * kPanelColumns + columns, kPanelColumns - columns, 0.0f);
  }
  SolvePanel(block, row.size, panel);
  for (int64_t k = 0; k < row.size; ++k) {
    std::copy_n(panel + k * kPanelColumns, columns, at + k * row.stride);
  }
}

void SolveBlockRow(ThreadPool& pool, const float* block, BlockRow& row) {
  // Whole panels and whole groups of strips.
  constexpr int64_t kColumnsAtOnce = 96;
  static_assert(kColumnsAtOnce % kPanelColumns == 0 && kColumnsAtOnce % kPackedColumns == 0);
  row.left.Resize(row.size, row.columns);
  row.right.Resize(row.size, row.columns);
  const MatrixRows<float> solved{row.a, row.stride};
  pool.ParallelFor((row.columns + kColumnsAtOnce - 1) / kColumnsAtOnce, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kColumnsAtOnce;
    const int64_t end = std::min(row.columns, begin + kColumnsAtOnce);
    for (int64_t first = begin; first < end; first += kPanelColumns) {
      SolveColumns(block, first, row);
    }
    for (int64_t first = begin; first < end; first += kPackedColumns) {
      PackStrips(solved, first / kPackedColumns, row.left);
      PackStrips(solved, first / kPackedColumns, row.right);
    }
  });
}

// Subtracts the solved row from the rest of the matrix. The thread that takes the first tile, which
// is the next block on the diagonal, factors it while the others go on: alone it would let them
// fall asleep.
bool UpdateAndFactor(ThreadPool& pool, const float* smallest_pivots, const BlockRow& row,
                     DiagonalBlock& block) {
  static_assert(kGramTileColumns == kCholeskyBlock);
  float* rest = row.a + row.size * row.stride;
  const std::vector<StripRange> tiles = GramTiles(row.columns);
  bool is_positive = false;
  pool.ParallelFor(static_cast<int64_t>(tiles.size()), [&](int64_t tile, int) {
    AddGramTile(row.left, row.right, -1.0f, rest, row.stride, tiles[static_cast<size_t>(tile)]);
    if (tile != 0) return;
    const int64_t size = std::min(kCholeskyBlock, row.columns);
    is_positive = FactorDiagonal(smallest_pivots, size, row.stride, rest, block);
  });
  return is_positive;
}

}  // namespace

bool TryCholesky(ThreadPool& pool, float* a_NN, int64_t n) {
  constexpr float kNoise = 0x1p-21f;
  std::vector<float> smallest_pivots(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    smallest_pivots[static_cast<size_t>(i)] = kNoise * a_NN[i * n + i];
  }
  BlockRow row;
  DiagonalBlock block;
  if (!FactorDiagonal(smallest_pivots.data(), std::min(kCholeskyBlock, n), n, a_NN, block)) {
    return false;
  }
  for (int64_t first = 0; first + kCholeskyBlock < n; first += kCholeskyBlock) {
    row.size = kCholeskyBlock;
    row.columns = n - first - row.size;
    row.a = a_NN + first * n + first + row.size;
    row.stride = n;
    SolveBlockRow(pool, block.data(), row);
    const float* next_pivots = smallest_pivots.data() + first + row.size;
    if (!UpdateAndFactor(pool, next_pivots, row, block)) return false;
  }
  return true;
}

void DivideReversed(const float* from, int64_t count, float divisor, float* to) {
  HWY_DYNAMIC_DISPATCH(DivideReversed)(from, count, divisor, to);
}

}  // namespace quatrain
#endif  // HWY_ONCE
