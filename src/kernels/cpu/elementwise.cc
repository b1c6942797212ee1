#include "kernels/elementwise.h"

#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/simd_targets.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"
// clang-format on

// Embedding, SiLU product, residual and sum of squares. (RMSNorm: rms_norm.cc. RoPE: rope.cc.)

#ifndef QUATRAIN_KERNELS_CPU_ELEMENTWISE_ARGS_
#define QUATRAIN_KERNELS_CPU_ELEMENTWISE_ARGS_
namespace quatrain {

template <class T>
struct SiluMulGrad {
  const T* gate;
  const T* up;
  const float* dout;
  float* dgate;
  float* dup;
};

// Partial sums of SumOfSquares in a chunk: element i goes to i % 16.
inline constexpr int64_t kSquareLanes = 16;

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_ELEMENTWISE_ARGS_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

template <class T>
HWY_INLINE void SiluMul(const T* gate, const T* up, int64_t n, T* out) {
  const F16 one = Set16(1.0f);
  for (int64_t i = 0; i < n; i += kF16Lanes) {
    const F16 g = LoadAt16(gate, i, n);
    const F16 silu = g / (one + Exp16(-g));
    StoreAt16(silu * LoadAt16(up, i, n), out, i, n);
  }
}

// With s = sigmoid(g): d silu / dg = s (1 + g (1 - s)).
template <class T>
HWY_INLINE void SiluMulBack(const SiluMulGrad<T>& grad, int64_t begin, int64_t end) {
  const F16 one = Set16(1.0f);
  for (int64_t i = begin; i < end; i += kF16Lanes) {
    const F16 g = LoadAt16(grad.gate, i, end);
    const F16 up = LoadAt16(grad.up, i, end);
    const F16 dout = LoadAt16(grad.dout, i, end);
    const F16 sigmoid = one / (one + Exp16(-g));
    const F16 slope = sigmoid * Fma(g, one - sigmoid, one);
    StoreAt16(dout * (g * sigmoid), grad.dup, i, end);
    StoreAt16(dout * up * slope, grad.dgate, i, end);
  }
}

template <class T>
HWY_INLINE void Add(T* x, const T* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kF16Lanes) {
    StoreAt16(LoadAt16(x, i, n) + LoadAt16(y, i, n), x, i, n);
  }
}

void SiluMulF32(const float* gate, const float* up, int64_t n, float* out) {
  SiluMul(gate, up, n, out);
}
void SiluMulBf16(const BFloat16* gate, const BFloat16* up, int64_t n, BFloat16* out) {
  SiluMul(gate, up, n, out);
}
void SiluMulBackF32(const SiluMulGrad<float>& grad, int64_t begin, int64_t end) {
  SiluMulBack(grad, begin, end);
}
void SiluMulBackBf16(const SiluMulGrad<BFloat16>& grad, int64_t begin, int64_t end) {
  SiluMulBack(grad, begin, end);
}
void AddF32(float* x, const float* y, int64_t n) { Add(x, y, n); }
void AddBf16(BFloat16* x, const BFloat16* y, int64_t n) { Add(x, y, n); }

void AddRow(const float* from, int64_t n, float* to) { Add(to, from, n); }

// A product of two FP32 is exact in double, so fused or not makes no difference.
double SquaresOfChunk(const float* x, int64_t n) {
  double sums[kSquareLanes] = {};
  int64_t i = 0;
  for (; i + kSquareLanes <= n; i += kSquareLanes) {
    for (int64_t lane = 0; lane < kSquareLanes; ++lane) {
      const double value = x[i + lane];
      sums[lane] += value * value;
    }
  }
  for (int64_t lane = 0; i + lane < n; ++lane) {
    const double value = x[i + lane];
    sums[lane] += value * value;
  }
  for (int64_t width = kSquareLanes / 2; width >= 1; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(SiluMulF32);
HWY_EXPORT(SiluMulBf16);
HWY_EXPORT(SiluMulBackF32);
HWY_EXPORT(SiluMulBackBf16);
HWY_EXPORT(AddF32);
HWY_EXPORT(AddBf16);
HWY_EXPORT(AddRow);
HWY_EXPORT(SquaresOfChunk);

void SiluMul(const float* gate, const float* up, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(SiluMulF32)(gate, up, n, out);
}
void SiluMul(const BFloat16* gate, const BFloat16* up, int64_t n, BFloat16* out) {
  HWY_DYNAMIC_DISPATCH(SiluMulBf16)(gate, up, n, out);
}
void SiluMulBack(const SiluMulGrad<float>& grad, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(SiluMulBackF32)(grad, begin, end);
}
void SiluMulBack(const SiluMulGrad<BFloat16>& grad, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(SiluMulBackBf16)(grad, begin, end);
}
void Add(float* x, const float* y, int64_t n) { HWY_DYNAMIC_DISPATCH(AddF32)(x, y, n); }
void Add(BFloat16* x, const BFloat16* y, int64_t n) { HWY_DYNAMIC_DISPATCH(AddBf16)(x, y, n); }

// Columns of the table that one task owns: every task walks all tokens in order.
constexpr int64_t kColumnsPerChunk = 64;
// The chunk that the contract of SumOfSquares names.
constexpr int64_t kSquaresChunk = 4096;

}  // namespace

template <class T>
void EmbeddingForward(ThreadPool& pool, const T* table_VD, std::span<const int32_t> token_ids,
                      int64_t hidden, T* x_TD) {
  ParallelChunks(pool, std::ssize(token_ids), ChunkRows(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t id = token_ids[static_cast<size_t>(t)];
      QT_CHECK(id >= 0, "token id {} at {}", id, t);
      std::memcpy(x_TD + t * hidden, table_VD + id * hidden,
                  static_cast<size_t>(hidden) * sizeof(T));
    }
  });
}

void EmbeddingBackward(ThreadPool& pool, const float* dx_TD, std::span<const int32_t> token_ids,
                       int64_t hidden, float* dtable_VD) {
  ParallelChunks(pool, hidden, kColumnsPerChunk, [&](int64_t begin, int64_t end) {
    const auto add_row = &HWY_DYNAMIC_DISPATCH(AddRow);
    const float* dx = dx_TD + begin;
    for (const int32_t id : token_ids) {
      add_row(dx, end - begin, dtable_VD + id * hidden + begin);
      dx += hidden;
    }
  });
}

template <class T>
void SiluMulForward(ThreadPool& pool, const T* gate, const T* up, int64_t n, T* out) {
  ParallelChunks(pool, n, kChunkElements, [&](int64_t begin, int64_t end) {
    SiluMul(gate + begin, up + begin, end - begin, out + begin);
  });
}

template <class T>
void SiluMulBackward(ThreadPool& pool, const T* gate, const T* up, const float* dout, int64_t n,
                     float* dgate, float* dup) {
  const SiluMulGrad<T> grad{.gate = gate, .up = up, .dout = dout, .dgate = dgate, .dup = dup};
  ParallelChunks(pool, n, kChunkElements,
                 [&](int64_t begin, int64_t end) { SiluMulBack(grad, begin, end); });
}

template <class T>
void AddInPlace(ThreadPool& pool, T* x, const T* y, int64_t n) {
  ParallelChunks(pool, n, kChunkElements,
                 [&](int64_t begin, int64_t end) { Add(x + begin, y + begin, end - begin); });
}

double SumOfSquares(ThreadPool& pool, const float* x, int64_t n) {
  std::vector<double> sums(static_cast<size_t>(CeilDiv(n, kSquaresChunk)));
  ParallelChunks(pool, n, kSquaresChunk, [&](int64_t begin, int64_t end) {
    sums[static_cast<size_t>(begin / kSquaresChunk)] =
        HWY_DYNAMIC_DISPATCH(SquaresOfChunk)(x + begin, end - begin);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

template void EmbeddingForward<float>(ThreadPool&, const float*, std::span<const int32_t>, int64_t,
                                      float*);
template void EmbeddingForward<BFloat16>(ThreadPool&, const BFloat16*, std::span<const int32_t>,
                                         int64_t, BFloat16*);
template void SiluMulForward<float>(ThreadPool&, const float*, const float*, int64_t, float*);
template void SiluMulForward<BFloat16>(ThreadPool&, const BFloat16*, const BFloat16*, int64_t,
                                       BFloat16*);
template void SiluMulBackward<float>(ThreadPool&, const float*, const float*, const float*, int64_t,
                                     float*, float*);
template void SiluMulBackward<BFloat16>(ThreadPool&, const BFloat16*, const BFloat16*, const float*,
                                        int64_t, float*, float*);
template void AddInPlace<float>(ThreadPool&, float*, const float*, int64_t);
template void AddInPlace<BFloat16>(ThreadPool&, BFloat16*, const BFloat16*, int64_t);

}  // namespace quatrain
#endif  // HWY_ONCE
