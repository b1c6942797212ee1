// BF16 conversions on Highway vectors; compiled once per instruction set (no include guard of the
// usual kind).
#if defined(QUATRAIN_KERNELS_CPU_BFLOAT16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUATRAIN_KERNELS_CPU_BFLOAT16_INL_H_
#undef QUATRAIN_KERNELS_CPU_BFLOAT16_INL_H_
#else
#define QUATRAIN_KERNELS_CPU_BFLOAT16_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/bfloat16.h"

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {

// Lanes(df) weights as FP32.
template <class DF>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<DF> LoadBFloat16(DF df, const BFloat16* from) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<uint32_t, DF> du32;
  const auto bits = hn::PromoteTo(du32, hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from)));
  return hn::BitCast(df, hn::ShiftLeft<16>(bits));
}

// ToBFloat16 of kernels/bfloat16.h: nearest, ties to even; a NaN stays a quiet NaN.
template <class DF, class VF>
HWY_INLINE void StoreBFloat16(DF df, VF value, BFloat16* to) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<uint32_t, DF> du32;
  const auto bits = hn::BitCast(du32, value);
  const auto high = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(high, hn::Set(du32, 1u));
  const auto rounded = hn::ShiftRight<16>(bits + (odd + hn::Set(du32, 0x7FFFu)));
  const auto quiet = hn::Or(high, hn::Set(du32, 0x40u));
  const auto is_nan = hn::RebindMask(du32, hn::IsNaN(value));
  (void)df;
  hn::StoreU(hn::TruncateTo(du16, hn::IfThenElse(is_nan, quiet, rounded)), du16,
             reinterpret_cast<uint16_t*>(to));
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
