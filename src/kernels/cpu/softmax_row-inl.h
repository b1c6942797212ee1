// Largest value and sum of exponentials of a row of logits: the one code of log-probabilities and
// sampling. Compiled once per instruction set; include simd_targets.h before Highway.
#if defined(QUATRAIN_KERNELS_CPU_SOFTMAX_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUATRAIN_KERNELS_CPU_SOFTMAX_ROW_INL_H_
#undef QUATRAIN_KERNELS_CPU_SOFTMAX_ROW_INL_H_
#else
#define QUATRAIN_KERNELS_CPU_SOFTMAX_ROW_INL_H_
#endif

#include <cstdint>
#include <limits>

#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/softmax_row.h"

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {

HWY_INLINE F16 ScaledLogits(const float* logits_V, int64_t v, int64_t vocab_size, F16 scale) {
  return LoadAt16(logits_V, v, vocab_size, -std::numeric_limits<float>::infinity()) * scale;
}

// Steps over the row with four independent maxima; the result is exact in any order.
HWY_INLINE float LargestLogit(const float* logits_V, int64_t vocab_size, float inv_temperature) {
  const F16 scale = Set16(inv_temperature);
  F16 largest[4];
  for (F16& each : largest) each = Set16(-std::numeric_limits<float>::infinity());
  int64_t v = 0;
  for (; v + 4 * kF16Lanes <= vocab_size; v += 4 * kF16Lanes) {
    QUATRAIN_UNROLL
    for (int64_t i = 0; i < 4; ++i) {
      largest[i] = Max16(largest[i], Load16(logits_V + v + i * kF16Lanes) * scale);
    }
  }
  for (; v < vocab_size; v += kF16Lanes) {
    largest[0] = Max16(largest[0], ScaledLogits(logits_V, v, vocab_size, scale));
  }
  return LargestLane(Max16(Max16(largest[0], largest[1]), Max16(largest[2], largest[3])));
}

// Also writes the exponentials to exp_V if kStores.
template <bool kStores>
HWY_INLINE SoftmaxRow SumOfRow(const float* logits_V, int64_t vocab_size, float inv_temperature,
                               float* exp_V) {
  const float largest = LargestLogit(logits_V, vocab_size, inv_temperature);
  const F16 scale = Set16(inv_temperature);
  const F16 shift = Set16(largest);
  F16 sums = Zero16();
  for (int64_t v = 0; v < vocab_size; v += kF16Lanes) {
    const F16 e = Exp16(ScaledLogits(logits_V, v, vocab_size, scale) - shift);
    if constexpr (kStores) StoreAt16(e, exp_V, v, vocab_size);
    sums = sums + e;
  }
  return {largest, SumLanes(sums)};
}

// First index of the largest logit; 0 if there is a NaN in the way.
HWY_INLINE int32_t ArgmaxOfLogits(const float* logits_V, int64_t vocab_size) {
  const float largest = LargestLogit(logits_V, vocab_size, 1.0f);
  for (int64_t v = 0; v < vocab_size; ++v) {
    if (logits_V[v] == largest) return static_cast<int32_t>(v);
  }
  return 0;
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
