// Codes of eight neighbours of a group, on a thread: what fake-quant, quantise and AdamW share. The
// bits are those of kernels/int4.h; only the division is done another way.
#pragma once

#include "kernels/cuda/canonical.cuh"
#include "kernels/int4.h"

namespace quatrain::cuda {

// w / s before rint and clamp, with r = 1 / s rounded, for s in [2^-100, 2^100], w BF16: rounds to
// the code that w / s rounds to. Why: w and s have 8 significant bits, so w / s is exactly k + 1/2
// or at least 1/1020 away from it. The product with r is within 2^-22 of the quotient, and one
// Newton step with the exact remainder gives k + 1/2 itself wherever that is the quotient.
//
// kBounded: s comes from the group's maximum, so |w / s| < 256. Otherwise the quotient is held far
// above every code, which keeps the remainder finite.
template <bool kBounded>
QT_HOST_DEVICE float QuotientByReciprocal(float weight, float scale, float reciprocal) {
  float q = MulRn(weight, reciprocal);
  if (!kBounded) q = fminf(fmaxf(q, -1024.0f), 1024.0f);
  return FmaRn(FmaRn(-q, scale, weight), reciprocal, q);
}

QT_HOST_DEVICE bool ReciprocalServes(float scale) {
  return scale >= 0x1.0p-100f && scale <= 0x1.0p100f;
}

// 1.5 * 2^23: added to |q| < 2^21, rounds it to the nearest integer, ties to even, into the low
// bits.
inline constexpr float kRounder = 12582912.0f;

// Largest magnitude of 8 BF16 in 4 words, as BF16 bits (their order is the order of the numbers).
__device__ __forceinline__ uint32_t AbsmaxOfEight(const uint32_t (&pairs)[4]) {
  uint32_t largest = __vmaxu2(__vmaxu2(pairs[0] & 0x7FFF7FFFu, pairs[1] & 0x7FFF7FFFu),
                              __vmaxu2(pairs[2] & 0x7FFF7FFFu, pairs[3] & 0x7FFF7FFFu));
  return max(largest & 0xFFFFu, largest >> 16);
}

// Over kLanes neighbouring lanes.
template <int kLanes>
__device__ __forceinline__ uint32_t AbsmaxOfLanes(uint32_t largest) {
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, offset));
  }
  return largest;
}

// Eight codes as floats added to kRounder: the low bits of their patterns are the codes modulo
// 2^22.
struct EightCodes {
  float shifted[8];
};

// kBounded: the scale comes from the group's maximum by rule kAbsmax7, whose codes need no clamp:
// |w / s| <= 7 (1 + 2^-8), 127 (1 + 2^-9).
template <bool kBounded>
__device__ __forceinline__ EightCodes CodesOfEight(const uint32_t (&pairs)[4], BFloat16 scale_bits,
                                                   const CodeGrid& grid) {
  const float scale = ToFloat(scale_bits);
  EightCodes out = {};
  if constexpr (!kBounded) {
    if (!ReciprocalServes(scale)) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float w = i % 2 == 0 ? LowOfPair(pairs[i / 2]) : HighOfPair(pairs[i / 2]);
        out.shifted[i] = AddRn(static_cast<float>(QuantizeCode(w, scale_bits, grid)), kRounder);
      }
      return out;
    }
  }
  const float reciprocal = ReciprocalRn(scale);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float w = i % 2 == 0 ? LowOfPair(pairs[i / 2]) : HighOfPair(pairs[i / 2]);
    float q = QuotientByReciprocal<kBounded>(w, scale, reciprocal);
    if (!kBounded) q = fminf(fmaxf(q, static_cast<float>(grid.lo)), static_cast<float>(grid.hi));
    out.shifted[i] = AddRn(q, kRounder);
  }
  return out;
}

// Word `index` of the eight, in compressed-tensors order: sum of (q + 2^(bits-1)) 2^(bits i).
template <int kBits>
__device__ __forceinline__ uint32_t WordOf(const EightCodes& codes, int index) {
  constexpr int kCount = 32 / kBits;
  constexpr uint32_t kOnes = kBits == 4 ? 0x11111111u : 0x01010101u;
  constexpr uint32_t kOffset = kOnes * ((1u << (kBits - 1)) - 0x4B400000u);
  uint32_t word = 0;
#pragma unroll
  for (int i = kCount - 1; i >= 0; --i) {
    word = (word << kBits) + FloatBits(codes.shifted[kCount * index + i]);
  }
  return word + kOffset;
}

// w' of codes 2i and 2i + 1 as a pair.
__device__ __forceinline__ uint32_t WeightsOf(const EightCodes& codes, BFloat16 scale, int i) {
  return RoundPair(MulRn(AddRn(codes.shifted[2 * i], -kRounder), ToFloat(scale)),
                   MulRn(AddRn(codes.shifted[2 * i + 1], -kRounder), ToFloat(scale)));
}

// Codes whose bits differ between two words.
template <int kBits>
__device__ __forceinline__ int FlipsOf(uint32_t before, uint32_t after) {
  uint32_t difference = before ^ after;
#pragma unroll
  for (int shift = 1; shift < kBits; shift *= 2) difference |= difference >> shift;
  return __popc(difference & (kBits == 4 ? 0x11111111u : 0x01010101u));
}

}  // namespace quatrain::cuda
