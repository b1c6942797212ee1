// Sixteen FP32 lanes, the same arithmetic on every instruction set.
//
// F16 is one AVX-512 register, two of AVX2 or four of NEON; without a fused multiply-add it is
// sixteen scalars and std::fma. Kernels walk a row in steps of 16 and keep 16 partial sums, so the
// width of the machine never shows in the bits. The tree of SumLanes adds lanes (i, i + 8), then
// (i, i + 4), (i, i + 2), (i, i + 1). Compiled once per instruction set; include simd_targets.h
// before Highway.
#if defined(QUATRAIN_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUATRAIN_KERNELS_CPU_SIMD_INL_H_
#undef QUATRAIN_KERNELS_CPU_SIMD_INL_H_
#else
#define QUATRAIN_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/bfloat16.h"
#include "kernels/cpu/bfloat16-inl.h"

// Before a loop of at most 16 steps over registers: left rolled, its array would live in memory.
#ifndef QUATRAIN_UNROLL
#if defined(__clang__)
#define QUATRAIN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define QUATRAIN_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kF16Lanes = 16;

// exp(x) = 2^n (1 + r + r^2 q(r)), n = round(x log2 e), |r| <= ln(2) / 2; q minimises the largest
// relative error (Remez; 0.08 ulp), ln 2 in two parts (Cody and Waite).
constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kLn2High = 0x1.62e43p-1f;
constexpr float kLn2Low = -0x1.05c61p-29f;
constexpr float kExpQ0 = 0x1.fffffcp-2f;
constexpr float kExpQ1 = 0x1.55549p-3f;
constexpr float kExpQ2 = 0x1.5558f4p-5f;
constexpr float kExpQ3 = 0x1.123a6cp-7f;
constexpr float kExpQ4 = 0x1.6a2352p-10f;
constexpr float kRoundMagic = 0x1.8p+23f;  // adding it leaves round(x) in the low mantissa bits
constexpr float kExpLowest = -87.33654f;   // ln 2^-126: below it the result is 0
constexpr float kExpHighest = 89.0f;       // from 127.5 ln 2 = 88.376 on the result is +inf

#if HWY_NATIVE_FMA

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using Part = hn::Vec<DF>;
constexpr int64_t kPartLanes = static_cast<int64_t>(hn::MaxLanes(DF()));

HWY_INLINE Part PartSet(float x) { return hn::Set(DF(), x); }
HWY_INLINE Part PartLoad(const float* from) { return hn::LoadU(DF(), from); }
HWY_INLINE Part PartLoad(const BFloat16* from) { return LoadBFloat16(DF(), from); }
HWY_INLINE void PartStore(Part x, float* to) { hn::StoreU(x, DF(), to); }
HWY_INLINE void PartStore(Part x, BFloat16* to) { StoreBFloat16(DF(), x, to); }
HWY_INLINE Part PartRoundToBFloat16(Part x) {
  const hn::RebindToUnsigned<DF> du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
  const auto is_nan = hn::RebindMask(du, hn::IsNaN(x));
  const auto upper = hn::Set(du, 0xFFFF0000u);
  return hn::BitCast(DF(), hn::And(hn::IfThenElse(is_nan, quiet, rounded), upper));
}
HWY_INLINE Part PartFma(Part a, Part b, Part c) { return hn::MulAdd(a, b, c); }
HWY_INLINE Part PartMax(Part a, Part b) { return hn::Max(a, b); }
HWY_INLINE Part PartNeg(Part a) { return hn::Neg(a); }
// e where x >= bound, else 0.
HWY_INLINE Part PartKeepFrom(Part x, Part bound, Part e) {
  return hn::IfThenElseZero(hn::Ge(x, bound), e);
}

// A NaN stays one: x86's Min returns the second operand if either is a NaN.
HWY_INLINE Part PartExp(Part x) {
  const DF d;
  const DI di;
  x = hn::Min(hn::Set(d, kExpHighest), x);
  const Part shifted = hn::MulAdd(x, hn::Set(d, kLog2E), hn::Set(d, kRoundMagic));
  const Part n = hn::Sub(shifted, hn::Set(d, kRoundMagic));
  const Part r = hn::NegMulAdd(n, hn::Set(d, kLn2Low), hn::NegMulAdd(n, hn::Set(d, kLn2High), x));
  Part q = hn::MulAdd(hn::Set(d, kExpQ4), r, hn::Set(d, kExpQ3));
  q = hn::MulAdd(q, r, hn::Set(d, kExpQ2));
  q = hn::MulAdd(q, r, hn::Set(d, kExpQ1));
  q = hn::MulAdd(q, r, hn::Set(d, kExpQ0));
  const Part p = hn::Add(hn::MulAdd(q, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  // The magic number's own bits leave the word in the shift.
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::BitCast(di, shifted), hn::Set(di, 127)));
  const Part e = hn::Mul(p, hn::BitCast(d, exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, kExpLowest)), e);
}

// Level kDistance of the sum tree for two vectors at once: every result lane is the sum of two
// lanes kDistance apart in x (where the kDistance bit of its index is 0) or in y (where it is 1).
template <int kDistance>
HWY_INLINE Part AddPairs(Part x, Part y) {
  const DF d;
  if constexpr (kDistance == 1) {
    return hn::Add(hn::OddEven(hn::Shuffle2301(y), x), hn::OddEven(y, hn::Shuffle2301(x)));
  } else if constexpr (kDistance == 2) {
    const hn::Repartition<uint64_t, DF> d64;
    const auto x64 = hn::BitCast(d64, x);
    const auto y64 = hn::BitCast(d64, y);
    return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, x64, y64)),
                   hn::BitCast(d, hn::InterleaveUpper(d64, x64, y64)));
  } else if constexpr (kDistance == 4) {
    return hn::Add(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(y), x),
                   hn::OddEvenBlocks(y, hn::SwapAdjacentBlocks(x)));
  } else {
    static_assert(kDistance == 8);
    return hn::Add(hn::ConcatLowerLower(d, y, x), hn::ConcatUpperUpper(d, y, x));
  }
}

// Sum of the lanes by the tree.
HWY_INLINE float PartSum(Part x) {
  if constexpr (kPartLanes >= 16) x = AddPairs<8>(x, x);
  if constexpr (kPartLanes >= 8) x = AddPairs<4>(x, x);
  x = AddPairs<2>(x, x);
  return hn::GetLane(AddPairs<1>(x, x));
}

HWY_INLINE float PartLargest(Part x) { return hn::GetLane(hn::MaxOfLanes(DF(), x)); }

#else  // no fused multiply-add in hardware

using Part = float;
constexpr int64_t kPartLanes = 1;

HWY_INLINE Part PartSet(float x) { return x; }
HWY_INLINE Part PartLoad(const float* from) { return *from; }
HWY_INLINE Part PartLoad(const BFloat16* from) { return ToFloat(*from); }
HWY_INLINE void PartStore(Part x, float* to) { *to = x; }
HWY_INLINE void PartStore(Part x, BFloat16* to) { *to = ToBFloat16(x); }
HWY_INLINE Part PartRoundToBFloat16(Part x) { return ToFloat(ToBFloat16(x)); }
HWY_INLINE Part PartFma(Part a, Part b, Part c) { return std::fma(a, b, c); }
HWY_INLINE Part PartMax(Part a, Part b) { return a > b ? a : b; }
HWY_INLINE Part PartNeg(Part a) { return -a; }
HWY_INLINE Part PartKeepFrom(Part x, Part bound, Part e) { return x >= bound ? e : 0.0f; }

HWY_INLINE Part PartExp(Part x) {
  if (x < kExpLowest) return 0.0f;
  if (x > kExpHighest) x = kExpHighest;
  const float shifted = std::fma(x, kLog2E, kRoundMagic);
  const float n = shifted - kRoundMagic;
  const float r = std::fma(-n, kLn2Low, std::fma(-n, kLn2High, x));
  float q = std::fma(kExpQ4, r, kExpQ3);
  q = std::fma(q, r, kExpQ2);
  q = std::fma(q, r, kExpQ1);
  q = std::fma(q, r, kExpQ0);
  const float p = std::fma(q, r * r, r) + 1.0f;
  return p * FloatFromBits((FloatBits(shifted) + 127u) << 23);
}

HWY_INLINE float PartSum(Part x) { return x; }
HWY_INLINE float PartLargest(Part x) { return x; }

#endif  // HWY_NATIVE_FMA

constexpr int kParts = static_cast<int>(kF16Lanes / kPartLanes);

struct F16 {
  Part part[kParts];
};

// Applies an expression of `i` to each part.
#define QUATRAIN_F16(expression)                                  \
  F16 result;                                                     \
  QUATRAIN_UNROLL                                                 \
  for (int i = 0; i < kParts; ++i) result.part[i] = (expression); \
  return result

HWY_INLINE F16 operator+(F16 a, F16 b) { QUATRAIN_F16(a.part[i] + b.part[i]); }
HWY_INLINE F16 operator-(F16 a, F16 b) { QUATRAIN_F16(a.part[i] - b.part[i]); }
HWY_INLINE F16 operator*(F16 a, F16 b) { QUATRAIN_F16(a.part[i] * b.part[i]); }
HWY_INLINE F16 operator/(F16 a, F16 b) { QUATRAIN_F16(a.part[i] / b.part[i]); }
HWY_INLINE F16 operator-(F16 a) { QUATRAIN_F16(PartNeg(a.part[i])); }
// a * b + c in one rounding.
HWY_INLINE F16 Fma(F16 a, F16 b, F16 c) { QUATRAIN_F16(PartFma(a.part[i], b.part[i], c.part[i])); }
HWY_INLINE F16 Max16(F16 a, F16 b) { QUATRAIN_F16(PartMax(a.part[i], b.part[i])); }
HWY_INLINE F16 KeepFrom16(F16 x, F16 bound, F16 e) {
  QUATRAIN_F16(PartKeepFrom(x.part[i], bound.part[i], e.part[i]));
}
// e^x within 1.08 ulp where that is a normal number; exp(0) == 1; 0 below it; +inf from 88.376 on.
HWY_INLINE F16 Exp16(F16 x) { QUATRAIN_F16(PartExp(x.part[i])); }

HWY_INLINE F16 Set16(float x) { QUATRAIN_F16(PartSet(x)); }
HWY_INLINE F16 Zero16() { return Set16(0.0f); }

// 16 elements of float or BFloat16 as FP32.
template <class T>
HWY_INLINE F16 Load16(const T* from) {
  QUATRAIN_F16(PartLoad(from + i * kPartLanes));
}
// Rounds to T, nearest even, and back: what Store16 and Load16 would do.
template <class T>
HWY_INLINE F16 Round16(F16 x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    QUATRAIN_F16(PartRoundToBFloat16(x.part[i]));
  }
}
#undef QUATRAIN_F16

// The first count < 16 elements, then `fill`. Reads nothing past them.
template <class T>
HWY_INLINE F16 LoadSome16(const T* from, int64_t count, float fill = 0.0f) {
  T padded[kF16Lanes];
  for (int64_t i = 0; i < kF16Lanes; ++i) padded[i] = RoundTo<T>(fill);
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
  return Load16(padded);
}

// Rounds to T, nearest even.
template <class T>
HWY_INLINE void Store16(F16 x, T* to) {
  QUATRAIN_UNROLL
  for (int i = 0; i < kParts; ++i) PartStore(x.part[i], to + i * kPartLanes);
}

template <class T>
HWY_INLINE void StoreSome16(F16 x, T* to, int64_t count) {
  T padded[kF16Lanes];
  Store16(x, padded);
  std::memcpy(to, padded, static_cast<size_t>(count) * sizeof(T));
}

// Step `i` of a row of `size`: whole blocks, then what is left, padded.
template <class T>
HWY_INLINE F16 LoadAt16(const T* row, int64_t i, int64_t size, float fill = 0.0f) {
  return i + kF16Lanes <= size ? Load16(row + i) : LoadSome16(row + i, size - i, fill);
}
template <class T>
HWY_INLINE void StoreAt16(F16 x, T* row, int64_t i, int64_t size) {
  if (i + kF16Lanes <= size) {
    Store16(x, row + i);
  } else {
    StoreSome16(x, row + i, size - i);
  }
}

// Lanes added down to one part: the levels of the tree that are wider than a register.
HWY_INLINE Part FoldParts(F16 x) {
  QUATRAIN_UNROLL
  for (int width = kParts / 2; width >= 1; width /= 2) {
    QUATRAIN_UNROLL
    for (int i = 0; i < width; ++i) x.part[i] = x.part[i] + x.part[i + width];
  }
  return x.part[0];
}

HWY_INLINE float SumLanes(F16 x) { return PartSum(FoldParts(x)); }

HWY_INLINE float LargestLane(F16 x) {
  Part largest = x.part[0];
  QUATRAIN_UNROLL
  for (int i = 1; i < kParts; ++i) largest = PartMax(largest, x.part[i]);
  return PartLargest(largest);
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
