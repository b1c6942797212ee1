// Router, gather and combine of a MoE layer over tensors. Letters as in kernels/moe.h.
#pragma once

#include "kernels/moe.h"
#include "ops/tensor.h"

namespace quatrain {

struct Routing {
  at::Tensor ids_TK;      // int32, largest weight first (or the replayed order)
  at::Tensor weights_TK;  // FP32
};
// replay_ids_TK: undefined to choose, int32 [T, K] to replay.
Routing Route(const OpContext& ctx, const RouterConfig& config, const at::Tensor& logits_TE,
              const at::Tensor& replay_ids_TK);
// dlogits_TE, FP32.
at::Tensor RouteGrad(const OpContext& ctx, const RouterConfig& config, const at::Tensor& logits_TE,
                     const at::Tensor& ids_TK, const at::Tensor& dweights_TK);

at::Tensor GatherTokens(const OpContext& ctx, const at::Tensor& x_TD,
                        const MoePermutation& permutation);
void GatherTokensGrad(const OpContext& ctx, const at::Tensor& drows_RD,
                      const MoePermutation& permutation, const at::Tensor& dx_TD);

at::Tensor Combine(const OpContext& ctx, const at::Tensor& y_RD, const at::Tensor& weights_TK,
                   const MoePermutation& permutation);
struct CombineGrads {
  at::Tensor dy_RD, dweights_TK;  // FP32
};
CombineGrads CombineGrad(const OpContext& ctx, const at::Tensor& y_RD, const at::Tensor& weights_TK,
                         const MoePermutation& permutation, const at::Tensor& dout_TD);

}  // namespace quatrain
