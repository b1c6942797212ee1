// Linear layers over tensors: y = x W^T + b and both gradients; many calls run in one parallel
// region. Letters: T rows, I in_features, O out_features.
#pragma once

#include "kernels/linear.h"
#include "ops/tensor.h"

namespace quatrain {

struct LinearCall {
  at::Tensor x_TI;    // BF16 or FP32
  WeightView weight;  // [O, I]
  at::Tensor bias_O;  // undefined: none; type of x
  at::Tensor y_TO;    // written: type of x, or FP32 for unrounded logits
};
// All calls share one activation type.
void RunLinear(const OpContext& ctx, std::span<const LinearCall> calls);

// One call; returns y in the type of x.
at::Tensor Linear(const OpContext& ctx, const at::Tensor& x_TI, const WeightView& weight,
                  const at::Tensor& bias_O = {});
// Unrounded FP32 result (router and LM-head logits).
at::Tensor LinearLogits(const OpContext& ctx, const at::Tensor& x_TI, const WeightView& weight);

struct LinearGradCall {
  at::Tensor x_TI;  // the forward's input; undefined if dweight is not wanted
  WeightView weight;
  at::Tensor dy_TO;       // FP32
  at::Tensor dx_TI;       // FP32, overwritten; undefined: not wanted
  at::Tensor dweight_OI;  // FP32, accumulated; undefined: not wanted
  at::Tensor dbias_O;     // FP32, accumulated; undefined: none
};
void RunLinearGrad(const OpContext& ctx, std::span<const LinearGradCall> calls);

}  // namespace quatrain
