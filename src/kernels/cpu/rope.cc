#include <cmath>

#include "base/error.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/simd_targets.h"
#include "kernels/elementwise.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"
// clang-format on

#ifndef QUATRAIN_KERNELS_CPU_ROPE_ROWS_
#define QUATRAIN_KERNELS_CPU_ROPE_ROWS_
namespace quatrain {

template <class T>
struct RopeRows {
  RopeTable table;
  const int32_t* positions;
  int64_t heads;
  T* x;  // [tokens, heads, head_dim]
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_ROPE_ROWS_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

// Rotates the pairs (x_i, x_{i + H/2}) of tokens [begin, end) by +angle or, transposed, by -angle.
template <bool kTransposed, class T>
HWY_INLINE void RotateTokens(const RopeRows<T>& rows, int64_t begin, int64_t end) {
  const int64_t half = rows.table.head_dim / 2;
  for (int64_t token = begin; token < end; ++token) {
    const float* cos_row = rows.table.cos + rows.positions[token] * half;
    const float* sin_row = rows.table.sin + rows.positions[token] * half;
    T* x_token = rows.x + token * rows.heads * 2 * half;
    for (int64_t i = 0; i < half; i += kF16Lanes) {
      const F16 cos = LoadAt16(cos_row, i, half);
      const F16 positive = LoadAt16(sin_row, i, half);
      const F16 sin = kTransposed ? -positive : positive;
      for (int64_t head = 0; head < rows.heads; ++head) {
        T* first = x_token + head * 2 * half;
        T* second = first + half;
        const F16 x1 = LoadAt16(first, i, half);
        const F16 x2 = LoadAt16(second, i, half);
        StoreAt16(Fma(x1, cos, -(x2 * sin)), first, i, half);
        StoreAt16(Fma(x2, cos, x1 * sin), second, i, half);
      }
    }
  }
}

void RotateF32(const RopeRows<float>& rows, int64_t begin, int64_t end) {
  RotateTokens<false>(rows, begin, end);
}
void RotateBf16(const RopeRows<BFloat16>& rows, int64_t begin, int64_t end) {
  RotateTokens<false>(rows, begin, end);
}
void RotateBack(const RopeRows<float>& rows, int64_t begin, int64_t end) {
  RotateTokens<true>(rows, begin, end);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(RotateF32);
HWY_EXPORT(RotateBf16);
HWY_EXPORT(RotateBack);

void Rotate(const RopeRows<float>& rows, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(RotateF32)(rows, begin, end);
}
void Rotate(const RopeRows<BFloat16>& rows, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(RotateBf16)(rows, begin, end);
}

void CheckHeadDim(int64_t head_dim) {
  QT_CHECK(head_dim > 0 && head_dim % 2 == 0, "head_dim {}", head_dim);
}

}  // namespace

void FillRopeTable(int64_t max_positions, std::span<const double> inverse_frequencies, float* cos,
                   float* sin) {
  const int64_t half = std::ssize(inverse_frequencies);
  CheckHeadDim(2 * half);
  for (int64_t i = 0; i < half; ++i) {
    for (int64_t position = 0; position < max_positions; ++position) {
      const double angle =
          static_cast<double>(position) * inverse_frequencies[static_cast<size_t>(i)];
      cos[position * half + i] = static_cast<float>(std::cos(angle));
      sin[position * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

template <class T>
void RopeForward(ThreadPool& pool, const RopeTable& table, std::span<const int32_t> positions,
                 int64_t heads, T* x_THH) {
  CheckHeadDim(table.head_dim);
  const RopeRows<T> rows{table, positions.data(), heads, x_THH};
  ParallelChunks(pool, std::ssize(positions), ChunkRows(heads * table.head_dim),
                 [&](int64_t begin, int64_t end) { Rotate(rows, begin, end); });
}

void RopeBackward(ThreadPool& pool, const RopeTable& table, std::span<const int32_t> positions,
                  int64_t heads, float* dx_THH) {
  CheckHeadDim(table.head_dim);
  const RopeRows<float> rows{table, positions.data(), heads, dx_THH};
  ParallelChunks(pool, std::ssize(positions), ChunkRows(heads * table.head_dim),
                 [&](int64_t begin, int64_t end) {
                   HWY_DYNAMIC_DISPATCH(RotateBack)(rows, begin, end);
                 });
}

template void RopeForward<float>(ThreadPool&, const RopeTable&, std::span<const int32_t>, int64_t,
                                 float*);
template void RopeForward<BFloat16>(ThreadPool&, const RopeTable&, std::span<const int32_t>,
                                    int64_t, BFloat16*);

}  // namespace quatrain
#endif  // HWY_ONCE
