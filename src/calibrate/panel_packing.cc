#include "calibrate/panel_packing.h"

#include <algorithm>

#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/panel_packing.cc"
#include "hwy/foreach_target.h"
// clang-format off: once per instruction set, after foreach_target
#include "calibrate/simd-inl.h"
#include "kernels/cpu/bfloat16-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using calibrate::Floats, calibrate::Tag;

HWY_INLINE Floats LoadFloats(const float* from) { return hn::LoadU(Tag(), from); }
HWY_INLINE Floats LoadFloats(const BFloat16* from) { return LoadBFloat16(Tag(), from); }
HWY_INLINE float FloatOf(float value) { return value; }
HWY_INLINE float FloatOf(BFloat16 value) { return ToFloat(value); }

// b may be null: then a alone.
template <class T>
void PackRows(const T* a, const T* b, int64_t num_rows, int64_t num_columns, int64_t panel,
              float* to) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  const int64_t first = panel * kPanelColumns;
  const int64_t columns = std::min(kPanelColumns, num_columns - first);
  for (int64_t row = 0; row < num_rows; ++row, to += kPanelColumns) {
    const T* from = a + row * num_columns + first;
    const T* minus = b == nullptr ? nullptr : b + row * num_columns + first;
    int64_t i = 0;
    for (; i + lanes <= columns; i += lanes) {
      const auto value = LoadFloats(from + i);
      hn::StoreU(minus == nullptr ? value : hn::Sub(value, LoadFloats(minus + i)), Tag(), to + i);
    }
    for (; i < columns; ++i) {
      to[i] = minus == nullptr ? FloatOf(from[i]) : FloatOf(from[i]) - FloatOf(minus[i]);
    }
    std::fill(to + columns, to + kPanelColumns, 0.0f);
  }
}

void PackFloats(const float* a, const float* b, int64_t num_rows, int64_t num_columns,
                int64_t panel, float* to) {
  PackRows(a, b, num_rows, num_columns, panel, to);
}
void PackBFloat16s(const BFloat16* a, const BFloat16* b, int64_t num_rows, int64_t num_columns,
                   int64_t panel, float* to) {
  PackRows(a, b, num_rows, num_columns, panel, to);
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(PackFloats);
HWY_EXPORT(PackBFloat16s);

template <>
void PackDifference(const float* a, const float* b, int64_t num_rows, int64_t num_columns,
                    int64_t panel, float* to) {
  HWY_DYNAMIC_DISPATCH(PackFloats)(a, b, num_rows, num_columns, panel, to);
}
template <>
void PackDifference(const BFloat16* a, const BFloat16* b, int64_t num_rows, int64_t num_columns,
                    int64_t panel, float* to) {
  HWY_DYNAMIC_DISPATCH(PackBFloat16s)(a, b, num_rows, num_columns, panel, to);
}

template <class T>
void PackPanel(const T* from, int64_t num_rows, int64_t num_columns, int64_t panel, float* to) {
  PackDifference<T>(from, nullptr, num_rows, num_columns, panel, to);
}
template void PackPanel(const float*, int64_t, int64_t, int64_t, float*);
template void PackPanel(const BFloat16*, int64_t, int64_t, int64_t, float*);

}  // namespace quatrain
#endif  // HWY_ONCE
