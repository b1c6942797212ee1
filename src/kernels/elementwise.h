// Row-wise and element-wise steps of the decoder and their gradients. T = BFloat16 or float is the
// type of activations; gradients are always float. Rows are cut into fixed chunks, reductions over
// a row run in 16 partial sums (lane d % 16) and a fixed tree, reductions over rows in fixed chunks
// added in order. Letters: T tokens (rows), D row length, H head_dim.
#pragma once

#include <cstdint>
#include <span>

#include "base/threads.h"
#include "kernels/bfloat16.h"

namespace quatrain {

// x_TD = table_VD[token_ids_T]. The table has the activation type.
template <class T>
void EmbeddingForward(ThreadPool& pool, const T* table_VD, std::span<const int32_t> token_ids,
                      int64_t hidden, T* x_TD);
// dtable_VD[token] += dx rows, in token order.
void EmbeddingBackward(ThreadPool& pool, const float* dx_TD, std::span<const int32_t> token_ids,
                       int64_t hidden, float* dtable_VD);

// y = round(w * round(x / sqrt(mean(x^2) + eps))), FP32 inside, rounding to T as written.
template <class T>
void RmsNormForward(ThreadPool& pool, const T* x_TD, const T* weight_D, int64_t rows, int64_t dim,
                    float eps, T* y_TD);
// Gradient of RmsNormForward with rounding taken as identity.
template <class T>
struct RmsNormGradArgs {
  const T* x = nullptr;       // [rows, dim], the forward's input
  const T* weight = nullptr;  // [dim]
  const float* dy = nullptr;  // [rows, dim]
  int64_t rows = 0, dim = 0;
  float eps = 0.0f;
  float* dx = nullptr;         // [rows, dim]
  bool accumulate_dx = false;  // dx += instead of dx =; dx may be dy's memory when false
  float* dweight = nullptr;    // [dim], accumulated
};
template <class T>
void RmsNormBackward(ThreadPool& pool, const RmsNormGradArgs<T>& args);

// cos/sin of angle position * frequency_i, computed in double, stored as float [max_positions, H /
// 2] each. Half-split convention of HF: element i pairs with i + H / 2.
struct RopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t head_dim = 0;
};
// inverse_frequencies [H / 2]: theta^(-2 i / H) for plain RoPE.
void FillRopeTable(int64_t max_positions, std::span<const double> inverse_frequencies, float* cos,
                   float* sin);
// In place on x [T, heads, H]: x1' = fma(x1, cos, -(x2 * sin)), x2' = fma(x2, cos, x1 * sin),
// rounded once to T.
template <class T>
void RopeForward(ThreadPool& pool, const RopeTable& table, std::span<const int32_t> positions,
                 int64_t heads, T* x_THH);
// Transposed rotation of a gradient, in place.
void RopeBackward(ThreadPool& pool, const RopeTable& table, std::span<const int32_t> positions,
                  int64_t heads, float* dx_THH);

// out = round(silu(gate) * up), silu(g) = g / (1 + exp(-g)), FP32 inside, one rounding. n elements.
template <class T>
void SiluMulForward(ThreadPool& pool, const T* gate, const T* up, int64_t n, T* out);
template <class T>
void SiluMulBackward(ThreadPool& pool, const T* gate, const T* up, const float* dout, int64_t n,
                     float* dgate, float* dup);

// x = round(x + y), the residual. n elements.
template <class T>
void AddInPlace(ThreadPool& pool, T* x, const T* y, int64_t n);

// sum of squares in double over fixed chunks of 4096, chunk sums added in order (global gradient
// norm).
double SumOfSquares(ThreadPool& pool, const float* x, int64_t n);

}  // namespace quatrain
