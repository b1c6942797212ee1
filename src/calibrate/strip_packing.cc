#include "calibrate/strip_packing.h"

#include <algorithm>

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/strip_packing.cc"
#include "hwy/foreach_target.h"
// clang-format off: once per instruction set, after foreach_target
#include "calibrate/simd-inl.h"
#include "kernels/cpu/bfloat16-inl.h"
// clang-format on

#ifndef QUATRAIN_CALIBRATE_STRIP_PACKING_TYPES_
#define QUATRAIN_CALIBRATE_STRIP_PACKING_TYPES_
namespace quatrain {

// Columns of one group: rows of a, or of a - b where b is not null.
template <class T>
struct PackedRows {
  MatrixRows<T> a;
  const MatrixRows<T>* b = nullptr;
  int64_t num_rows = 0;
  int64_t first = 0;    // column
  int64_t columns = 0;  // of the matrix from the first one on, at least 1
  float* to = nullptr;
  int64_t strip_stride = 0;
};

}  // namespace quatrain
#endif

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 8 lanes, so that few are written past a row of a narrow strip, which the next row
// overwrites.
using PackTag = hn::CappedTag<float, HWY_NATIVE_FMA ? 8 : 1>;
constexpr int64_t kPackLanes = static_cast<int64_t>(hn::MaxLanes(PackTag()));

HWY_INLINE hn::Vec<PackTag> LoadFloats(const float* from) { return hn::LoadU(PackTag(), from); }
HWY_INLINE hn::Vec<PackTag> LoadFloats(const BFloat16* from) {
  return LoadBFloat16(PackTag(), from);
}

template <class T>
HWY_INLINE void PackWhole(const T* a, const T* b, int64_t width, float* to) {
  for (int64_t i = 0; i < width; i += kPackLanes) {
    const auto value = LoadFloats(a + i);
    hn::StoreU(b == nullptr ? value : hn::Sub(value, LoadFloats(b + i)), PackTag(), to + i);
  }
}

template <class T>
void PackEdge(const T* a, const T* b, int64_t columns, int64_t width, float* to) {
  for (int64_t i = 0; i < width; ++i) {
    to[i] = i >= columns ? 0.0f : b == nullptr ? ToFloat(a[i]) : ToFloat(a[i]) - ToFloat(b[i]);
  }
}

template <int64_t kWidth, class T>
void PackRows(const PackedRows<T>& rows) {
  constexpr int64_t kRead = (kWidth + kPackLanes - 1) / kPackLanes * kPackLanes;
  const int64_t columns = std::min(kPackedColumns, rows.columns);
  for (int64_t row = 0; row < rows.num_rows; ++row) {
    const T* a = rows.a.Row(row) + rows.first;
    const T* b = rows.b == nullptr ? nullptr : rows.b->Row(row) + rows.first;
    float* to = rows.to + row * kWidth;
    int64_t i = 0;
    for (; i < columns && i + kRead <= rows.columns; i += kWidth, to += rows.strip_stride) {
      PackWhole(a + i, b == nullptr ? nullptr : b + i, kWidth, to);
    }
    for (; i < columns; i += kWidth, to += rows.strip_stride) {
      PackEdge(a + i, b == nullptr ? nullptr : b + i, rows.columns - i, kWidth, to);
    }
  }
}

void PackLeftFloats(const PackedRows<float>& rows) { PackRows<LeftStrips::kStripColumns>(rows); }
void PackLeftBFloat16s(const PackedRows<BFloat16>& rows) {
  PackRows<LeftStrips::kStripColumns>(rows);
}
void PackRightFloats(const PackedRows<float>& rows) { PackRows<RightStrips::kStripColumns>(rows); }
void PackRightBFloat16s(const PackedRows<BFloat16>& rows) {
  PackRows<RightStrips::kStripColumns>(rows);
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(PackLeftFloats);
HWY_EXPORT(PackLeftBFloat16s);
HWY_EXPORT(PackRightFloats);
HWY_EXPORT(PackRightBFloat16s);

namespace {

void Dispatch(const LeftStrips&, const PackedRows<float>& rows) {
  HWY_DYNAMIC_DISPATCH(PackLeftFloats)(rows);
}
void Dispatch(const LeftStrips&, const PackedRows<BFloat16>& rows) {
  HWY_DYNAMIC_DISPATCH(PackLeftBFloat16s)(rows);
}
void Dispatch(const RightStrips&, const PackedRows<float>& rows) {
  HWY_DYNAMIC_DISPATCH(PackRightFloats)(rows);
}
void Dispatch(const RightStrips&, const PackedRows<BFloat16>& rows) {
  HWY_DYNAMIC_DISPATCH(PackRightBFloat16s)(rows);
}

template <int64_t kWidth, class T>
void Pack(MatrixRows<T> a, const MatrixRows<T>* b, int64_t group, ColumnStrips<kWidth>& to) {
  static_assert(kPackedColumns % kWidth == 0);
  const int64_t first = group * kPackedColumns;
  Dispatch(to, {.a = a,
                .b = b,
                .num_rows = to.depth,
                .first = first,
                .columns = to.columns - first,
                .to = to.Strip(first / kWidth),
                .strip_stride = to.stride()});
}

}  // namespace

template <int64_t kWidth, class T>
void PackStrips(MatrixRows<T> from, int64_t group, ColumnStrips<kWidth>& to) {
  Pack<kWidth, T>(from, nullptr, group, to);
}

template <int64_t kWidth, class T>
void PackDifference(MatrixRows<T> a, MatrixRows<T> b, int64_t group, ColumnStrips<kWidth>& to) {
  Pack(a, &b, group, to);
}

template void PackStrips(MatrixRows<float>, int64_t, LeftStrips&);
template void PackStrips(MatrixRows<BFloat16>, int64_t, LeftStrips&);
template void PackStrips(MatrixRows<float>, int64_t, RightStrips&);
template void PackStrips(MatrixRows<BFloat16>, int64_t, RightStrips&);
template void PackDifference(MatrixRows<float>, MatrixRows<float>, int64_t, RightStrips&);
template void PackDifference(MatrixRows<BFloat16>, MatrixRows<BFloat16>, int64_t, RightStrips&);

}  // namespace quatrain
#endif  // HWY_ONCE
