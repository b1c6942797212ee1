#include "kernels/moe.h"

#include <cstring>
#include <limits>
#include <vector>

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
HWY_INLINE void CombineBack(const SlotRows& rows, const CombineGradArgs<T>& grad, int64_t begin,
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
void CombineBackF32(const SlotRows& rows, const CombineGradArgs<float>& grad, int64_t begin,
                    int64_t end) {
  CombineBack(rows, grad, begin, end);
}
void CombineBackBf16(const SlotRows& rows, const CombineGradArgs<BFloat16>& grad, int64_t begin,
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
void CombineBack(const SlotRows& rows, const CombineGradArgs<float>& grad, int64_t begin,
                 int64_t end) {
  HWY_DYNAMIC_DISPATCH(CombineBackF32)(rows, grad, begin, end);
}
void CombineBack(const SlotRows& rows, const CombineGradArgs<BFloat16>& grad, int64_t begin,
                 int64_t end) {
  HWY_DYNAMIC_DISPATCH(CombineBackBf16)(rows, grad, begin, end);
}

int64_t NumTokens(const MoePermutation& permutation) {
  QT_CHECK(permutation.num_experts_per_tok > 0);
  return std::ssize(permutation.slot_row) / permutation.num_experts_per_tok;
}

SlotRows RowsOf(const MoePermutation& permutation, int64_t hidden) {
  return {.slot_row = permutation.slot_row.data(),
          .slots = permutation.num_experts_per_tok,
          .hidden = hidden};
}

}  // namespace

MoePermutation PermuteByExpert(std::span<const int32_t> ids_TK, int64_t num_experts,
                               int64_t num_experts_per_tok) {
  const int64_t num_rows = std::ssize(ids_TK);
  QT_CHECK(num_experts_per_tok > 0 && num_rows % num_experts_per_tok == 0, "{} ids, {} a token",
           num_rows, num_experts_per_tok);
  QT_CHECK(num_rows <= std::numeric_limits<int32_t>::max(), "{} routed rows", num_rows);
  MoePermutation permutation;
  permutation.num_experts_per_tok = num_experts_per_tok;
  permutation.expert_begin.assign(static_cast<size_t>(num_experts) + 1, 0);
  permutation.row_token.resize(ids_TK.size());
  permutation.slot_row.resize(ids_TK.size());
  for (const int32_t id : ids_TK) {
    QT_CHECK(id >= 0 && id < num_experts, "expert {} of {}", id, num_experts);
    ++permutation.expert_begin[static_cast<size_t>(id) + 1];
  }
  for (size_t e = 0; e < static_cast<size_t>(num_experts); ++e) {
    permutation.expert_begin[e + 1] += permutation.expert_begin[e];
  }
  std::vector<int64_t> next(permutation.expert_begin.begin(), permutation.expert_begin.end() - 1);
  for (int64_t slot = 0; slot < num_rows; ++slot) {
    const int64_t row = next[static_cast<size_t>(ids_TK[static_cast<size_t>(slot)])]++;
    permutation.slot_row[static_cast<size_t>(slot)] = static_cast<int32_t>(row);
    permutation.row_token[static_cast<size_t>(row)] =
        static_cast<int32_t>(slot / num_experts_per_tok);
  }
  return permutation;
}

template <class T>
void GatherRows(ThreadPool& pool, const T* x_TD, const MoePermutation& permutation, int64_t hidden,
                T* rows_RD) {
  const std::vector<int32_t>& row_token = permutation.row_token;
  ParallelChunks(pool, std::ssize(row_token), ChunkRows(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::memcpy(rows_RD + row * hidden, x_TD + row_token[static_cast<size_t>(row)] * hidden,
                  static_cast<size_t>(hidden) * sizeof(T));
    }
  });
}

void GatherRowsBackward(ThreadPool& pool, const float* drows_RD, const MoePermutation& permutation,
                        int64_t hidden, float* dx_TD) {
  const SlotRows rows = RowsOf(permutation, hidden);
  ParallelChunks(pool, NumTokens(permutation), ChunkRows(rows.slots * hidden),
                 [&](int64_t begin, int64_t end) {
                   HWY_DYNAMIC_DISPATCH(SumSlots)(rows, drows_RD, begin, end, dx_TD);
                 });
}

template <class T>
void CombineForward(ThreadPool& pool, const T* y_RD, const float* weights_TK,
                    const MoePermutation& permutation, int64_t hidden, T* out_TD) {
  const SlotRows rows = RowsOf(permutation, hidden);
  ParallelChunks(
      pool, NumTokens(permutation), ChunkRows(rows.slots * hidden),
      [&](int64_t begin, int64_t end) { Combine(rows, y_RD, weights_TK, begin, end, out_TD); });
}

template <class T>
void CombineBackward(ThreadPool& pool, const CombineGradArgs<T>& args,
                     const MoePermutation& permutation, int64_t hidden) {
  const SlotRows rows = RowsOf(permutation, hidden);
  ParallelChunks(pool, NumTokens(permutation), ChunkRows(rows.slots * hidden),
                 [&](int64_t begin, int64_t end) { CombineBack(rows, args, begin, end); });
}

template void GatherRows<float>(ThreadPool&, const float*, const MoePermutation&, int64_t, float*);
template void GatherRows<BFloat16>(ThreadPool&, const BFloat16*, const MoePermutation&, int64_t,
                                   BFloat16*);
template void CombineForward<float>(ThreadPool&, const float*, const float*, const MoePermutation&,
                                    int64_t, float*);
template void CombineForward<BFloat16>(ThreadPool&, const BFloat16*, const float*,
                                       const MoePermutation&, int64_t, BFloat16*);
template void CombineBackward<float>(ThreadPool&, const CombineGradArgs<float>&,
                                     const MoePermutation&, int64_t);
template void CombineBackward<BFloat16>(ThreadPool&, const CombineGradArgs<BFloat16>&,
                                        const MoePermutation&, int64_t);

}  // namespace quatrain
#endif  // HWY_ONCE
