// BF16 as bits, on host and device: the upper half of an FP32, rounded to nearest even.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define QT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QT_HOST_DEVICE inline
#endif

namespace quatrain {

struct BFloat16 {
  uint16_t bits;
};
static_assert(sizeof(BFloat16) == 2);

QT_HOST_DEVICE uint32_t FloatBits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return std::bit_cast<uint32_t>(value);
#endif
}

QT_HOST_DEVICE float FloatFromBits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

QT_HOST_DEVICE float ToFloat(BFloat16 value) {
  return FloatFromBits(static_cast<uint32_t>(value.bits) << 16);
}
QT_HOST_DEVICE float ToFloat(float value) { return value; }

// Round to nearest, ties to even; overflow goes to infinity, a NaN stays a (quiet) NaN.
QT_HOST_DEVICE BFloat16 ToBFloat16(float value) {
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
    return BFloat16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  return BFloat16{static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

// Rounds to T: identity for float. The one place where an activation loses bits.
template <class T>
QT_HOST_DEVICE T RoundTo(float value);
template <>
QT_HOST_DEVICE float RoundTo<float>(float value) {
  return value;
}
template <>
QT_HOST_DEVICE BFloat16 RoundTo<BFloat16>(float value) {
  return ToBFloat16(value);
}

}  // namespace quatrain
