#include "ops/moe_ops.h"

namespace quatrain {

Routing Route(const OpContext& ctx, const RouterConfig& config, const at::Tensor& logits_TE,
              const at::Tensor& replay_ids_TK) {
  const int64_t num_tokens = logits_TE.size(0);
  QT_CHECK(logits_TE.size(1) == config.num_experts, "router logits shape");
  Routing routing;
  routing.weights_TK = EmptyTensor({num_tokens, config.num_experts_per_tok}, at::kFloat);
  const bool is_replay = replay_ids_TK.defined();
  if (is_replay) {
    QT_CHECK(
        replay_ids_TK.size(0) == num_tokens && replay_ids_TK.size(1) == config.num_experts_per_tok,
        "replayed routing has {} rows for {} tokens", replay_ids_TK.size(0), num_tokens);
    routing.ids_TK = replay_ids_TK;
  } else {
    routing.ids_TK = EmptyTensor({num_tokens, config.num_experts_per_tok}, at::kInt);
  }
  RouterForward(ctx.pool, config, DataOf<float>(logits_TE), num_tokens, is_replay,
                DataOf<int32_t>(routing.ids_TK), DataOf<float>(routing.weights_TK));
  return routing;
}

at::Tensor RouteGrad(const OpContext& ctx, const RouterConfig& config, const at::Tensor& logits_TE,
                     const at::Tensor& ids_TK, const at::Tensor& dweights_TK) {
  at::Tensor dlogits_TE = EmptyTensor(logits_TE.sizes(), at::kFloat);
  RouterBackward(ctx.pool, config, DataOf<float>(logits_TE), logits_TE.size(0),
                 DataOf<int32_t>(ids_TK), DataOf<float>(dweights_TK), DataOf<float>(dlogits_TE));
  return dlogits_TE;
}

at::Tensor GatherTokens(const OpContext& ctx, const at::Tensor& x_TD,
                        const MoePermutation& permutation) {
  const int64_t rows = static_cast<int64_t>(permutation.row_token.size());
  at::Tensor rows_RD = EmptyTensor({rows, x_TD.size(1)}, x_TD.scalar_type());
  DispatchActivation(x_TD.scalar_type(), [&]<class T>(T) {
    GatherRows<T>(ctx.pool, DataOf<T>(x_TD), permutation, x_TD.size(1), DataOf<T>(rows_RD));
  });
  return rows_RD;
}

void GatherTokensGrad(const OpContext& ctx, const at::Tensor& drows_RD,
                      const MoePermutation& permutation, const at::Tensor& dx_TD) {
  GatherRowsBackward(ctx.pool, DataOf<float>(drows_RD), permutation, dx_TD.size(1),
                     DataOf<float>(dx_TD));
}

at::Tensor Combine(const OpContext& ctx, const at::Tensor& y_RD, const at::Tensor& weights_TK,
                   const MoePermutation& permutation) {
  at::Tensor out_TD = EmptyTensor({weights_TK.size(0), y_RD.size(1)}, y_RD.scalar_type());
  DispatchActivation(y_RD.scalar_type(), [&]<class T>(T) {
    CombineForward<T>(ctx.pool, DataOf<T>(y_RD), DataOf<float>(weights_TK), permutation,
                      y_RD.size(1), DataOf<T>(out_TD));
  });
  return out_TD;
}

CombineGrads CombineGrad(const OpContext& ctx, const at::Tensor& y_RD, const at::Tensor& weights_TK,
                         const MoePermutation& permutation, const at::Tensor& dout_TD) {
  CombineGrads grads{EmptyTensor(y_RD.sizes(), at::kFloat),
                     EmptyTensor(weights_TK.sizes(), at::kFloat)};
  DispatchActivation(y_RD.scalar_type(), [&]<class T>(T) {
    CombineBackward<T>(ctx.pool,
                       {.y = DataOf<T>(y_RD),
                        .weights = DataOf<float>(weights_TK),
                        .dout = DataOf<float>(dout_TD),
                        .dy = DataOf<float>(grads.dy_RD),
                        .dweights = DataOf<float>(grads.dweights_TK)},
                       permutation, y_RD.size(1));
  });
  return grads;
}

}  // namespace quatrain
