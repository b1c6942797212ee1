#include "kernels/moe.h"

#include <cstring>

#include "base/error.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/simd_targets.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moe.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"
// clang-format on

// Permutation of tokens to experts and back. (The router: router.cc.)

#ifndef QUATRAIN_KERNELS_CPU_MOE_ARGS_
#define QUATRAIN_KERNELS_CPU_MOE_ARGS_
namespace quatrain {

// Rows of [R, hidden] that belong to tokens: slot_row[token * slots + slot].
struct SlotRows {
  const int32_t* slot_row;
  int64_t slots;
  int64_t hidden;
};

template <class T>
struct CombineGrad {
  const T* y;            // [R, D]
  const float* weights;  // [T, K]
  const float* dout;     // [T, D]
  float* dy;             // [R, D]
  float* dweights;       // [T, K]
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_MOE_ARGS_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

template <class T>
HWY_INLINE void Combine(const SlotRows& rows, const T* y_RD, const float* weights_TK, int64_t begin,
                        int64_t end, T* out_TD) {
  const int64_t hidden = rows.hidden;
  for (int64_t token = begin; token < end; ++token) {
    const int32_t* row_K = rows.slot_row + token * rows.slots;
    const float* weights_K = weights_TK + token * rows.slots;
    for (int64_t d = 0; d < hidden; d += kF16Lanes) {
      F16 sum = Zero16();
      for (int64_t slot = 0; slot < rows.slots; ++slot) {
        sum = Fma(Set16(weights_K[slot]), LoadAt16(y_RD + row_K[slot] * hidden, d, hidden), sum);
      }
      StoreAt16(sum, out_TD + token * hidden, d, hidden);
    }
  }
}

template <class T>
HWY_INLINE void CombineBack(const SlotRows& rows, const CombineGrad<T>& grad, int64_t begin,
                            int64_t end) {
  const int64_t hidden = rows.hidden;
  for (int64_t token = begin; token < end; ++token) {
    const float* dout_D = grad.dout + token * hidden;
    for (int64_t slot = token * rows.slots; slot < (token + 1) * rows.slots; ++slot) {
      const T* y_D = grad.y + rows.slot_row[slot] * hidden;
      float* dy_D = grad.dy + rows.slot_row[slot] * hidden;
      const F16 weight = Set16(grad.weights[slot]);
      F16 sums = Zero16();
      for (int64_t d = 0; d < hidden; d += kF16Lanes) {
        const F16 dout = LoadAt16(dout_D, d, hidden);
        sums = Fma(dout, LoadAt16(y_D, d, hidden), sums);
        StoreAt16(weight * dout, dy_D, d, hidden);
      }
      grad.dweights[slot] = SumLanes(sums);
    }
  }
}

void CombineF32(const SlotRows& rows, const float* y_RD, const float* weights_TK, int64_t begin,
                int64_t end, float* out_TD) {
  Combine(rows, y_RD, weights_TK, begin, end, out_TD);
}
void CombineBf16(const SlotRows& rows, const BFloat16* y_RD, const float* weights_TK, int64_t begin,
                 int64_t end, BFloat16* out_TD) {
  Combine(rows, y_RD, weights_TK, begin, end, out_TD);
}
void CombineBackF32(const SlotRows& rows, const CombineGrad<float>& grad, int64_t begin,
                    int64_t end) {
  CombineBack(rows, grad, begin, end);
}
void CombineBackBf16(const SlotRows& rows, const CombineGrad<BFloat16>& grad, int64_t begin,
                     int64_t end) {
  CombineBack(rows, grad, begin, end);
}

void SumSlots(const SlotRows& rows, const float* drows_RD, int64_t begin, int64_t end,
              float* dx_TD) {
  const int64_t hidden = rows.hidden;
  for (int64_t token = begin; token < end; ++token) {
    const int32_t* row_K = rows.slot_row + token * rows.slots;
    float* dx_D = dx_TD + token * hidden;
    for (int64_t d = 0; d < hidden; d += kF16Lanes) {
      F16 sum = Zero16();
      for (int64_t slot = 0; slot < rows.slots; ++slot) {
        sum = sum + LoadAt16(drows_RD + row_K[slot] * hidden, d, hidden);
      }
      StoreAt16(LoadAt16(dx_D, d, hidden) + sum, dx_D, d, hidden);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(CombineF32);
HWY_EXPORT(CombineBf16);
HWY_EXPORT(CombineBackF32);
HWY_EXPORT(CombineBackBf16);
HWY_EXPORT(SumSlots);

void Combine(const SlotRows& rows, const float* y, const float* weights, int64_t begin, int64_t end,
             float* out) {
  HWY_DYNAMIC_DISPATCH(CombineF32)(rows, y, weights, begin, end, out);
}
void Combine(const SlotRows& rows, const BFloat16* y, const float* weights, int64_t begin,
             int64_t end, BFloat16* out) {
  HWY_DYNAMIC_DISPATCH(CombineBf16)(rows, y, weights, begin, end, out);
}
void CombineBack(const SlotRows& rows, const CombineGrad<float>& grad, int64_t begin,
                 int64_t end) {
  HWY_DYNAMIC_DISPATCH(CombineBackF32)(rows, grad, begin, end);
}
void CombineBack(const SlotRows& rows, const CombineGrad<BFloat16>& grad, int64_t begin,
                 int64_t end) {
  HWY_DYNAMIC_DISPATCH(CombineBackBf16)(rows, grad, begin, end);
}

int64_t NumTokens(const MoePermutation& permutation) {
  return permutation.slots_per_token == 0
             ? 0
             : std::ssize(permutation.slot_row) / permutation.slots_per_token;
}

SlotRows RowsOf(const MoePermutation& permutation, int64_t hidden) {
  return {.slot_row = permutation.slot_row.data(),
          .slots = permutation.slots_per_token,
          .hidden = hidden};
}

}  // namespace
