#include <cmath>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/simd_targets.h"
#include "kernels/elementwise.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rms_norm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"
// clang-format on

// Plan: a chunk of rows per task, two passes over a row (it stays in L1). The backward adds its
// share of dweight into one row of partials per chunk; these are added up in order afterwards.

#ifndef QUATRAIN_KERNELS_CPU_RMS_NORM_ROWS_
#define QUATRAIN_KERNELS_CPU_RMS_NORM_ROWS_
namespace quatrain {

// Rows [begin, end) of matrices [rows, dim].
template <class T>
struct RmsNormRows {
  const T* x;
  const T* weight;
  T* y;
  int64_t dim;
  float eps;
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_RMS_NORM_ROWS_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

// 1 / sqrt(mean(x^2) + eps) from the sum of squares.
HWY_INLINE float InverseRms(float sum_of_squares, int64_t dim, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(dim) + eps);
}

template <class T>
HWY_INLINE void ForwardRows(const RmsNormRows<T>& rows, int64_t begin, int64_t end) {
  const int64_t dim = rows.dim;
  for (int64_t row = begin; row < end; ++row) {
    const T* x_D = rows.x + row * dim;
    T* y_D = rows.y + row * dim;
    F16 squares = Zero16();
    for (int64_t d = 0; d < dim; d += kF16Lanes) {
      const F16 x = LoadAt16(x_D, d, dim);
      squares = Fma(x, x, squares);
    }
    const F16 inverse = Set16(InverseRms(SumLanes(squares), dim, rows.eps));
    for (int64_t d = 0; d < dim; d += kF16Lanes) {
      const F16 normed = Round16<T>(LoadAt16(x_D, d, dim) * inverse);
      StoreAt16(LoadAt16(rows.weight, d, dim) * normed, y_D, d, dim);
    }
  }
}

// With n = x / rms: dx = (w dy - n mean(w dy n)) / rms, dweight += dy n.
template <class T>
HWY_INLINE void BackwardRows(const RmsNormGradArgs<T>& args, int64_t begin, int64_t end,
                             float* dweight_D) {
  const int64_t dim = args.dim;
  for (int64_t row = begin; row < end; ++row) {
    const T* x_D = args.x + row * dim;
    const float* dy_D = args.dy + row * dim;
    float* dx_D = args.dx + row * dim;
    F16 squares = Zero16();
    F16 products = Zero16();
    for (int64_t d = 0; d < dim; d += kF16Lanes) {
      const F16 x = LoadAt16(x_D, d, dim);
      squares = Fma(x, x, squares);
      products = Fma(LoadAt16(args.weight, d, dim) * LoadAt16(dy_D, d, dim), x, products);
    }
    const float inverse = InverseRms(SumLanes(squares), dim, args.eps);
    const F16 scale = Set16(inverse);
    const F16 mean = Set16(SumLanes(products) * inverse / static_cast<float>(dim));
    for (int64_t d = 0; d < dim; d += kF16Lanes) {
      const F16 dy = LoadAt16(dy_D, d, dim);
      const F16 normed = LoadAt16(x_D, d, dim) * scale;
      StoreAt16(Fma(dy, normed, LoadAt16(dweight_D, d, dim)), dweight_D, d, dim);
      const F16 centred = Fma(-normed, mean, LoadAt16(args.weight, d, dim) * dy);
      const F16 old = args.accumulate_dx ? LoadAt16(dx_D, d, dim) : Zero16();
      StoreAt16(Fma(centred, scale, old), dx_D, d, dim);
    }
  }
}

void ForwardRowsF32(const RmsNormRows<float>& rows, int64_t begin, int64_t end) {
  ForwardRows(rows, begin, end);
}
void ForwardRowsBf16(const RmsNormRows<BFloat16>& rows, int64_t begin, int64_t end) {
  ForwardRows(rows, begin, end);
}
void BackwardRowsF32(const RmsNormGradArgs<float>& args, int64_t begin, int64_t end,
                     float* dweight_D) {
  BackwardRows(args, begin, end, dweight_D);
}
void BackwardRowsBf16(const RmsNormGradArgs<BFloat16>& args, int64_t begin, int64_t end,
                      float* dweight_D) {
  BackwardRows(args, begin, end, dweight_D);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(ForwardRowsF32);
HWY_EXPORT(ForwardRowsBf16);
HWY_EXPORT(BackwardRowsF32);
HWY_EXPORT(BackwardRowsBf16);

void Forward(const RmsNormRows<float>& rows, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(ForwardRowsF32)(rows, begin, end);
}
void Forward(const RmsNormRows<BFloat16>& rows, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(ForwardRowsBf16)(rows, begin, end);
}
void Backward(const RmsNormGradArgs<float>& args, int64_t begin, int64_t end, float* dweight_D) {
  HWY_DYNAMIC_DISPATCH(BackwardRowsF32)(args, begin, end, dweight_D);
}
void Backward(const RmsNormGradArgs<BFloat16>& args, int64_t begin, int64_t end, float* dweight_D) {
  HWY_DYNAMIC_DISPATCH(BackwardRowsBf16)(args, begin, end, dweight_D);
}

// A partial row of dweight per chunk costs memory: chunks of at least 32 rows keep it below 1/32
// of the gradient.
constexpr int64_t kMinRowsPerPartial = 32;

}  // namespace

template <class T>
void RmsNormForward(ThreadPool& pool, const T* x_TD, const T* weight_D, int64_t rows, int64_t dim,
                    float eps, T* y_TD) {
  QT_CHECK(rows >= 0 && dim > 0, "[{}, {}]", rows, dim);
  const RmsNormRows<T> matrix{.x = x_TD, .weight = weight_D, .y = y_TD, .dim = dim, .eps = eps};
  ParallelChunks(pool, rows, ChunkRows(dim),
                 [&](int64_t begin, int64_t end) { Forward(matrix, begin, end); });
}

template <class T>
void RmsNormBackward(ThreadPool& pool, const RmsNormGradArgs<T>& args) {
  const int64_t dim = args.dim;
  QT_CHECK(args.rows >= 0 && dim > 0, "[{}, {}]", args.rows, dim);
  const int64_t chunk_rows = std::max(kMinRowsPerPartial, ChunkRows(dim));
  const int64_t num_chunks = CeilDiv(args.rows, chunk_rows);
  std::vector<float> partials(static_cast<size_t>(num_chunks * dim), 0.0f);
  ParallelChunks(pool, args.rows, chunk_rows, [&](int64_t begin, int64_t end) {
    Backward(args, begin, end, partials.data() + begin / chunk_rows * dim);
  });
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const float* partial_D = partials.data() + chunk * dim;
    for (int64_t d = 0; d < dim; ++d) args.dweight[d] += partial_D[d];
  }
}

template void RmsNormForward<float>(ThreadPool&, const float*, const float*, int64_t, int64_t,
                                    float, float*);
template void RmsNormForward<BFloat16>(ThreadPool&, const BFloat16*, const BFloat16*, int64_t,
                                       int64_t, float, BFloat16*);
template void RmsNormBackward<float>(ThreadPool&, const RmsNormGradArgs<float>&);
template void RmsNormBackward<BFloat16>(ThreadPool&, const RmsNormGradArgs<BFloat16>&);

}  // namespace quatrain
#endif  // HWY_ONCE
