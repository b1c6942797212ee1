// THE number format: scale rule, rounding, clamp, code order; host and device. Nothing else in the
// project turns a weight into codes or codes into a weight. docs/int4_format.md has the drawings.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/bfloat16.h"

namespace quatrain {

// How a group's scale comes from its weights.
enum class ScaleRule {
  kAbsmax7,    // amax / 7 (127 for 8 bits), codes -7..7, floor 1e-5 (1e-5 * 7 / 127): training and
               // round-to-nearest; on a narrower grid 7 is its largest code
  kAbsmax7_5,  // amax / 7.5 (127.5), codes -8..7 (-128..127), zero -> 2^-7: llm-compressor parity
  kSearched,   // chosen by calibration, codes -8..7
  kFrozen,     // the file's scale and bounds are kept
};

// What a code may be.
struct CodeGrid {
  int num_bits = 4;  // 4 or 8
  int lo = -7;
  int hi = 7;
};

// Bounds of a rule: kAbsmax7 is symmetric, all others use the full range.
QT_HOST_DEVICE CodeGrid GridOf(ScaleRule rule, int num_bits) {
  const int half = 1 << (num_bits - 1);
  return rule == ScaleRule::kAbsmax7 ? CodeGrid{num_bits, 1 - half, half - 1}
                                     : CodeGrid{num_bits, -half, half - 1};
}

QT_HOST_DEVICE float DivideRn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

QT_HOST_DEVICE float MultiplyRn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// Scale of a group from amax = max |w| (exact in FP32), for the two absmax rules: the divisor is
// the largest code (7, 127, or that of a narrower grid), half a code more under kAbsmax7_5.
QT_HOST_DEVICE BFloat16 ScaleFromAbsmax(float amax, ScaleRule rule, const CodeGrid& grid) {
  const float largest = static_cast<float>(grid.hi);
  if (rule == ScaleRule::kAbsmax7_5) {
    const BFloat16 scale = ToBFloat16(DivideRn(amax, largest + 0.5f));
    return ToFloat(scale) == 0.0f ? ToBFloat16(0.0078125f) : scale;
  }
  const float floor = grid.hi == 7 ? 1e-5f : DivideRn(1e-5f * 7.0f, largest);
  const float scale = DivideRn(amax, largest);
  return ToBFloat16(scale > floor ? scale : floor);
}

// q = clamp(rint(w / s), lo, hi): FP32 true division by the stored scale, ties to even.
QT_HOST_DEVICE int QuantizeCode(float weight, BFloat16 scale, const CodeGrid& grid) {
  float q = rintf(DivideRn(weight, ToFloat(scale)));
  q = q < static_cast<float>(grid.lo) ? static_cast<float>(grid.lo) : q;
  q = q > static_cast<float>(grid.hi) ? static_cast<float>(grid.hi) : q;
  return static_cast<int>(q);
}

// w' = rn_bf16(q * s): the only weight value that a forward pass ever sees.
QT_HOST_DEVICE BFloat16 DequantizeCode(int code, BFloat16 scale) {
  return ToBFloat16(MultiplyRn(static_cast<float>(code), ToFloat(scale)));
}

// A master weight whose code under `scale` is `code`, which is on the grid: `weight` (a BF16 value)
// if that is its code, else the code's own value. The edge of the cell would be nearer, but the
// first steps of Adam, all of size lr, would carry every such weight back over it.
QT_HOST_DEVICE float MoveIntoCell(float weight, int code, BFloat16 scale, const CodeGrid& grid) {
  if (QuantizeCode(weight, scale, grid) == code) return weight;
  return ToFloat(DequantizeCode(code, scale));
}

// Words of one row: codes little-endian along K, u = q + 2^(b-1), rows padded with zero bits to
// whole words.
QT_HOST_DEVICE int64_t PackedWords(int64_t in_features, int num_bits) {
  return (in_features * num_bits + 31) / 32;
}

// Signed code `index` of a packed row.
QT_HOST_DEVICE int UnpackCode(const int32_t* row_words, int64_t index, int num_bits) {
  const int64_t per_word = 32 / num_bits;
  const uint32_t word = static_cast<uint32_t>(row_words[index / per_word]);
  const uint32_t u =
      (word >> (num_bits * static_cast<int>(index % per_word))) & ((1u << num_bits) - 1u);
  return static_cast<int>(u) - (1 << (num_bits - 1));
}

// ORs signed code `index` into a packed row whose words start at zero.
QT_HOST_DEVICE void PackCode(int code, int64_t index, int num_bits, int32_t* row_words) {
  const int64_t per_word = 32 / num_bits;
  const uint32_t u = static_cast<uint32_t>(code + (1 << (num_bits - 1)));
  row_words[index / per_word] |=
      static_cast<int32_t>(u << (num_bits * static_cast<int>(index % per_word)));
}

}  // namespace quatrain
