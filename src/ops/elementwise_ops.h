// Norms, RoPE, SwiGLU, embedding and residual over tensors, with gradients (FP32).
// Letters: T tokens, D hidden, N heads, H head_dim, F feed-forward size, V vocabulary.
#pragma once

#include "kernels/elementwise.h"
#include "ops/tensor.h"

namespace quatrain {

at::Tensor Embedding(const OpContext& ctx, const at::Tensor& table_VD,
                     std::span<const int32_t> token_ids);
void EmbeddingGrad(const OpContext& ctx, const at::Tensor& dx_TD,
                   std::span<const int32_t> token_ids, const at::Tensor& dtable_VD);

// Over the last dimension; any number of leading dimensions.
at::Tensor RmsNorm(const OpContext& ctx, const at::Tensor& x, const at::Tensor& weight, double eps);

struct RmsNormGradCall {
  at::Tensor x;  // the forward's input
  at::Tensor weight;
  at::Tensor dy;       // FP32, shape of x
  at::Tensor dx;       // FP32: overwritten, or added to with accumulate_dx
  at::Tensor dweight;  // FP32, accumulated
  double eps = 0.0;
  bool accumulate_dx = false;
};
void RmsNormGrad(const OpContext& ctx, const RmsNormGradCall& call);

// In place on x_TNH.
void RopeInPlace(const OpContext& ctx, const RopeTable& table, std::span<const int32_t> positions,
                 const at::Tensor& x_TNH);
void RopeGradInPlace(const OpContext& ctx, const RopeTable& table,
                     std::span<const int32_t> positions, const at::Tensor& dx_TNH);

at::Tensor SiluMul(const OpContext& ctx, const at::Tensor& gate_TF, const at::Tensor& up_TF);
struct SiluMulGrads {
  at::Tensor dgate_TF, dup_TF;
};
SiluMulGrads SiluMulGrad(const OpContext& ctx, const at::Tensor& gate_TF, const at::Tensor& up_TF,
                         const at::Tensor& dout_TF);

// Returns round(x + y) as a new tensor.
at::Tensor AddResidual(const OpContext& ctx, const at::Tensor& x_TD, const at::Tensor& y_TD);

}  // namespace quatrain
