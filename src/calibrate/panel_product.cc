#include "calibrate/panel_product.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/panel_product.cc"
#include "hwy/foreach_target.h"
// clang-format off: once per instruction set, after foreach_target
#include "calibrate/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using calibrate::Fma, calibrate::Floats, calibrate::Tag;

// At most 16 lanes, so that a panel is a whole number of vector pairs on every instruction set.
// Rows of a register tile, two vectors wide: 16 accumulators where there are 32 registers, else 12.
constexpr bool kHas32Registers = HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64;
constexpr int64_t kTileRows = kHas32Registers ? 8 : 6;

// Chains of kRows x 2 vectors over `depth` (at most kChainDepth), then into C; `columns` counts
// what C has.
template <int64_t kRows>
void AddTile(const PanelProduct& p, const float* a, const float* b, int64_t depth, float* c,
             int64_t columns) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  Floats acc0[kRows], acc1[kRows];
  QUATRAIN_UNROLL
  for (int64_t r = 0; r < kRows; ++r) acc0[r] = acc1[r] = hn::Zero(d);
  for (int64_t k = 0; k < depth; ++k) {
    const auto b0 = hn::LoadU(d, b + k * kPanelColumns);
    const auto b1 = hn::LoadU(d, b + k * kPanelColumns + lanes);
    const float* a_k = a + k * p.a_depth_stride;
    QUATRAIN_UNROLL
    for (int64_t r = 0; r < kRows; ++r) {
      const auto broadcast = hn::Set(d, a_k[r * p.a_row_stride]);
      acc0[r] = Fma(broadcast, b0, acc0[r]);
      acc1[r] = Fma(broadcast, b1, acc1[r]);
    }
  }
  const auto scale = hn::Set(d, p.scale);
  QUATRAIN_UNROLL
  for (int64_t r = 0; r < kRows; ++r) {
    float* c_row = c + r * p.c_row_stride;
    if (columns >= 2 * lanes) {
      hn::StoreU(Fma(scale, acc0[r], hn::LoadU(d, c_row)), d, c_row);
      hn::StoreU(Fma(scale, acc1[r], hn::LoadU(d, c_row + lanes)), d, c_row + lanes);
      continue;
    }
    HWY_ALIGN float edge[2 * 16] = {};
    std::copy_n(c_row, columns, edge);
    hn::StoreU(Fma(scale, acc0[r], hn::LoadU(d, edge)), d, edge);
    hn::StoreU(Fma(scale, acc1[r], hn::LoadU(d, edge + lanes)), d, edge + lanes);
    std::copy_n(edge, columns, c_row);
  }
}

using TileFunction = void (*)(const PanelProduct&, const float*, const float*, int64_t, float*,
                              int64_t);

template <int64_t... kIndices>
constexpr std::array<TileFunction, sizeof...(kIndices)> TileTable(
    std::integer_sequence<int64_t, kIndices...>) {
  return {&AddTile<kIndices + 1>...};
}

// In tiles of nearly equal height: one of few rows would wait for its own chains.
void AddPanelProduct(const PanelProduct& p) {
  static constexpr auto kTiles = TileTable(std::make_integer_sequence<int64_t, kTileRows>());
  const int64_t num_tiles = (p.rows + kTileRows - 1) / kTileRows;
  const int64_t step = 2 * static_cast<int64_t>(hn::Lanes(Tag()));
  for (int64_t k = 0; k < p.depth; k += kChainDepth) {
    const int64_t depth = std::min(kChainDepth, p.depth - k);
    for (int64_t column = 0; column < p.columns; column += step) {
      const float* b = p.b + k * kPanelColumns + column;
      const float* a = p.a + k * p.a_depth_stride;
      float* c = p.c + column;
      const int64_t columns = std::min(step, p.columns - column);
      for (int64_t tile = 0, row = 0; tile < num_tiles; ++tile) {
        const int64_t end = p.rows * (tile + 1) / num_tiles;
        kTiles[static_cast<size_t>(end - row - 1)](p, a + row * p.a_row_stride, b, depth,
                                                   c + row * p.c_row_stride, columns);
        row = end;
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(AddPanelProduct);

void AddPanelProduct(const PanelProduct& product) {
  HWY_DYNAMIC_DISPATCH(AddPanelProduct)(product);
}

}  // namespace quatrain
#endif  // HWY_ONCE
