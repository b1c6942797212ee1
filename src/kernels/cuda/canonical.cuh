// The scalar steps of the canonical order (docs/numerics.md, "GPU order"), each written once.
// Kernels that must agree bit for bit call these and nothing else.
//
// Every function runs on host and device with the same bits, fused exactly where FmaRn is written
// (the _rn intrinsics are never contracted, whatever -fmad says), with two exceptions: Ex2 is the
// hardware's ex2.approx.ftz on the device and exp2 on the host (2 ulp apart), LogOf is the device
// library's logf (1 ulp). So host twins of steps with an exponential are oracles by tolerance.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/bfloat16.h"

namespace quatrain::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

QT_HOST_DEVICE float AddRn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

QT_HOST_DEVICE float MulRn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

QT_HOST_DEVICE float FmaRn(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

QT_HOST_DEVICE float DivRn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

QT_HOST_DEVICE float ReciprocalRn(float a) {
#if defined(__CUDA_ARCH__)
  return __frcp_rn(a);
#else
  return 1.0f / a;
#endif
}

QT_HOST_DEVICE float SqrtRn(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return std::sqrt(a);
#endif
}

// 2^a; exactly 1 at 0, 0 at -inf. Host: close, not the same bits.
QT_HOST_DEVICE float Ex2(float a) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#else
  return std::exp2(a);
#endif
}

// Natural logarithm. Host: close, not the same bits.
QT_HOST_DEVICE float LogOf(float a) { return logf(a); }

// rn_bf16 of two values as one word, `low` in the lower half. On the device one instruction; a
// NaN's payload may differ from ToBFloat16's.
QT_HOST_DEVICE uint32_t RoundPair(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return ToBFloat16(low).bits | static_cast<uint32_t>(ToBFloat16(high).bits) << 16;
#endif
}

QT_HOST_DEVICE float LowOfPair(uint32_t pair) { return FloatFromBits(pair << 16); }
QT_HOST_DEVICE float HighOfPair(uint32_t pair) { return FloatFromBits(pair & 0xFFFF0000u); }

// rn_bf16 as a float, for a value that is rounded and goes on.
QT_HOST_DEVICE float RoundedToBFloat16(float value) { return LowOfPair(RoundPair(value, 0.0f)); }

// ---- rule 3: residual and SwiGLU; callers round the results to BF16 ----

QT_HOST_DEVICE float ResidualSum(float x, float y) { return AddRn(x, y); }

QT_HOST_DEVICE float SwiGlu(float gate, float up) {
  const float denominator = AddRn(1.0f, Ex2(MulRn(-gate, kLog2E)));
  return MulRn(MulRn(gate, ReciprocalRn(denominator)), up);
}

// ---- rule 4: RMSNorm ----

inline constexpr int kNormChunk = 8;

// Sum of squares of one chunk, x ascending.
QT_HOST_DEVICE float ChunkOfSquares(const float (&x)[kNormChunk]) {
  float sum = 0.0f;
  for (int i = 0; i < kNormChunk; ++i) sum = FmaRn(x[i], x[i], sum);
  return sum;
}

// Neighbour pairs (2i, 2i+1), level by level; count is a power of two. sums[0] is the total.
template <int kCount>
QT_HOST_DEVICE float NeighbourTree(float (&sums)[kCount]) {
  static_assert((kCount & (kCount - 1)) == 0);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int width = kCount / 2; width >= 1; width /= 2) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int i = 0; i < width; ++i) sums[i] = AddRn(sums[2 * i], sums[2 * i + 1]);
  }
  return sums[0];
}

QT_HOST_DEVICE float InverseNorm(float sum_of_squares, float dim, float eps) {
  return DivRn(1.0f, SqrtRn(AddRn(DivRn(sum_of_squares, dim), eps)));
}

QT_HOST_DEVICE float Normalized(float x, float inverse_norm, float weight) {
  return MulRn(weight, RoundedToBFloat16(MulRn(x, inverse_norm)));
}

// ---- rule 4: RoPE ----

QT_HOST_DEVICE float RopeFirst(float x1, float x2, float cos, float sin) {
  return FmaRn(x1, cos, -MulRn(x2, sin));
}
QT_HOST_DEVICE float RopeSecond(float x1, float x2, float cos, float sin) {
  return FmaRn(x2, cos, MulRn(x1, sin));
}

// ---- rules 5 and 6: attention; c = float(scale * log2 e) ----

inline constexpr int kAttentionBlock = 64;
inline constexpr int kAttentionSegment = 512;

// What the block with maximum m' multiplies and subtracts. `old_max` -inf: nothing seen so far in
// this segment; both -inf: the block is a no-op (alpha 0 scales zeros, every p is 0).
struct SoftmaxShift {
  float alpha;  // ex2((m - m') c)
  float shift;  // -(m' c)
};
QT_HOST_DEVICE SoftmaxShift ShiftOf(float old_max, float new_max, float c) {
  const float finite = new_max == -INFINITY ? 0.0f : new_max;
  return {Ex2(MulRn(AddRn(old_max, -finite), c)), -MulRn(finite, c)};
}

QT_HOST_DEVICE float ProbabilityOf(float score, float c, float shift) {
  return Ex2(FmaRn(score, c, shift));
}

// Eight partials of a row sum to one, by pairs.
QT_HOST_DEVICE float SumOfEight(const float (&t)[8]) {
  return AddRn(AddRn(AddRn(t[0], t[1]), AddRn(t[2], t[3])),
               AddRn(AddRn(t[4], t[5]), AddRn(t[6], t[7])));
}

// Running (maximum, sum) of a row over its segments, ascending, and the factors of the outputs.
struct SegmentFactors {
  float old_factor;  // a
  float new_factor;  // b
};
// Not for the first segment, which is taken as it is, nor for one without a visible key.
QT_HOST_DEVICE SegmentFactors MergeSegment(float segment_max, float segment_sum, float c,
                                           float* row_max, float* row_sum) {
  const float merged = fmaxf(*row_max, segment_max);
  const SegmentFactors f = {Ex2(MulRn(AddRn(*row_max, -merged), c)),
                            Ex2(MulRn(AddRn(segment_max, -merged), c))};
  *row_sum = FmaRn(*row_sum, f.old_factor, MulRn(segment_sum, f.new_factor));
  *row_max = merged;
  return f;
}
QT_HOST_DEVICE float MergeOutput(float old_output, float segment_output, const SegmentFactors& f) {
  return FmaRn(old_output, f.old_factor, MulRn(segment_output, f.new_factor));
}

QT_HOST_DEVICE float LogSumExp(float row_max, float row_sum, float scale) {
  return FmaRn(row_max, scale, LogOf(row_sum));
}

// ---- rule 7: router weights and combine ----

QT_HOST_DEVICE float RouterExp(float logit, float largest) {
  return Ex2(MulRn(AddRn(logit, -largest), kLog2E));
}
QT_HOST_DEVICE float CombineStep(float weight, float expert_output, float sum) {
  return FmaRn(weight, expert_output, sum);
}

// ---- rule 8: log-probabilities; x = z * inverse temperature ----

inline constexpr int kVocabBlock = 128;

// One term of s_b, with shift = VocabShift(m_b).
QT_HOST_DEVICE float VocabShift(float block_max) {
  return block_max == -INFINITY ? 0.0f : -MulRn(block_max, kLog2E);
}
QT_HOST_DEVICE float VocabExp(float x, float shift) { return Ex2(FmaRn(x, kLog2E, shift)); }

// s_b seen from the row's maximum: a leaf of the neighbour tree.
QT_HOST_DEVICE float VocabLeaf(float block_sum, float block_max, float row_max) {
  return block_max == -INFINITY ? 0.0f
                                : MulRn(block_sum, Ex2(MulRn(AddRn(block_max, -row_max), kLog2E)));
}

QT_HOST_DEVICE float LogprobOf(float x_target, float row_max, float row_sum) {
  return AddRn(AddRn(x_target, -row_max), -LogOf(row_sum));
}

}  // namespace quatrain::cuda
