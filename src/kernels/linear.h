// y = x W^T (+ bias) over BF16, FP32, INT4 and INT8 weights, and its two gradients.
//
// Exactness contract (docs/numerics.md): on the CPU every output is ONE chain
// acc = fma(x_k, w'_k, acc), k ascending from +0, FP32; w' = rn_bf16(q * s) for codes. The order
// depends on nothing else: not on the number of rows, the other tasks, the thread count or the
// vector width. Shapes: m rows, n = out_features, k = in_features.
#pragma once

#include <cstdint>
#include <span>

#include "base/threads.h"
#include "kernels/bfloat16.h"

namespace quatrain {

enum class WeightType { kFloat32, kBFloat16, kInt4, kInt8 };

// A weight as any linear reads it; borrowed memory.
struct WeightView {
  WeightType type = WeightType::kBFloat16;
  int64_t out_features = 0;    // N
  int64_t in_features = 0;     // K
  int64_t group_size = 0;      // codes only: inputs per scale (K for per-channel); divides K
  const void* data = nullptr;  // float or BFloat16 [N, K]; codes int32 [N, ceil(K * bits / 32)]
  const BFloat16* scale = nullptr;  // codes only: [N, K / group_size]
};

// T is the activation type: BFloat16, or float under --dtype float32.
template <class T>
struct LinearTask {
  const T* x = nullptr;  // [rows, K]
  int64_t rows = 0;      // may be 0
  WeightView weight;
  const T* bias = nullptr;   // [N] or null; added to the chain's result in FP32 before rounding
  T* y = nullptr;            // [rows, N]; exactly one of y and y_float is set
  float* y_float = nullptr;  // [rows, N] unrounded (router and LM-head logits)
};

// Runs all tasks in one parallel region (q/k/v of a layer, every expert of a MoE layer).
template <class T>
void LinearForward(ThreadPool& pool, std::span<const LinearTask<T>> tasks);

struct LinearInputGradTask {
  const float* dy = nullptr;  // [rows, N]
  int64_t rows = 0;
  WeightView weight;        // dequantised to w' on the way (straight-through)
  float* dx = nullptr;      // [rows, K]
  bool accumulate = false;  // dx += instead of dx =; the chain then starts from the old value
};
// dx = dy W', reduction over n ascending in FP32. Tasks must not share dx.
void LinearInputGrad(ThreadPool& pool, std::span<const LinearInputGradTask> tasks);

template <class T>
struct LinearWeightGradTask {
  const float* dy = nullptr;  // [rows, N]
  const T* x = nullptr;       // [rows, K]
  int64_t rows = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  float* dweight = nullptr;  // [N, K], += dy^T x: chains over rows, starting from the old value
  float* dbias = nullptr;    // [N] or null, += dy row by row
};
template <class T>
void LinearWeightGrad(ThreadPool& pool, std::span<const LinearWeightGradTask<T>> tasks);

// w' of rows [row_begin, row_end) in FP32, row-major [rows, K]; for oracles, reports and the
// backward.
void DequantizeRows(const WeightView& weight, int64_t row_begin, int64_t row_end, float* out);

}  // namespace quatrain
