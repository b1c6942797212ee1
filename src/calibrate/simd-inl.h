// Sixteen FP32 lanes or fewer with a multiply-add that rounds once everywhere, and BF16 rounding in
// FP32 registers. Compiled once per instruction set; include kernels/cpu/simd_targets.h before
// Highway.
#if defined(QUATRAIN_CALIBRATE_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUATRAIN_CALIBRATE_SIMD_INL_H_
#undef QUATRAIN_CALIBRATE_SIMD_INL_H_
#else
#define QUATRAIN_CALIBRATE_SIMD_INL_H_
#endif

#include <cmath>

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"  // QUATRAIN_UNROLL

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace calibrate {
namespace hn = hwy::HWY_NAMESPACE;

// Without a fused instruction one lane and std::fma: slow, and the same bits.
using Tag = hn::CappedTag<float, HWY_NATIVE_FMA ? 16 : 1>;
using Floats = hn::Vec<Tag>;

// a * b + c in one rounding.
HWY_INLINE Floats Fma(Floats a, Floats b, Floats c) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(a, b, c);
#else
  return hn::Set(Tag(), std::fma(hn::GetLane(a), hn::GetLane(b), hn::GetLane(c)));
#endif
}

// Nearest BF16 of finite values, ties to even, as FP32.
HWY_INLINE Floats RoundToBFloat16(Floats value) {
  const hn::Rebind<uint32_t, Tag> du;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
  return hn::BitCast(Tag(), hn::And(rounded, hn::Set(du, 0xFFFF0000u)));
}

// clamp(rint(value / scale), lo, hi): the code of kernels/int4.h, as FP32.
HWY_INLINE Floats CodeOf(Floats value, Floats scale, Floats lo, Floats hi) {
  return hn::Min(hn::Max(hn::Round(hn::Div(value, scale)), lo), hi);
}

}  // namespace calibrate
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
