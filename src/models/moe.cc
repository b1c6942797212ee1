// Feed-forward of a layer: dense MLP and mixture of experts share gate/up/SwiGLU/down over rows;
// the experts only add routing before and the weighted combine after.
#include "models/layer.h"

namespace quatrain {
namespace {

RouterConfig RouterOf(const ModelConfig& config) {
  return {config.num_experts, config.num_experts_per_tok, config.norm_topk_prob};
}

// Ids of this layer from the replay record, undefined when nothing is replayed.
at::Tensor ReplayedIds(const LayerEnv& env) {
  const RoutedExperts* replay = env.batch.replay;
  if (replay == nullptr) return {};
  const int64_t k = env.config.num_experts_per_tok;
  QT_CHECK(replay->num_tokens == env.batch.num_tokens() && replay->num_experts_per_tok == k &&
               replay->num_moe_layers == env.config.num_moe_layers(),
           "replay record is for {} tokens, the batch has {}", replay->num_tokens,
           env.batch.num_tokens());
  at::Tensor ids_TK = EmptyTensor({replay->num_tokens, k}, at::kInt);
  const int64_t moe_layer = env.config.moe_layer_index(env.layer);
  for (int64_t token = 0; token < replay->num_tokens; ++token) {
    std::copy_n(replay->At(token, moe_layer), k, ids_TK.data_ptr<int32_t>() + token * k);
  }
  return ids_TK;
}

void Record(const LayerEnv& env, const at::Tensor& ids_TK) {
  RoutedExperts* record = env.batch.record;
  if (record == nullptr) return;
  const int64_t k = env.config.num_experts_per_tok;
  const int64_t moe_layer = env.config.moe_layer_index(env.layer);
  for (int64_t token = 0; token < record->num_tokens; ++token) {
    std::copy_n(ids_TK.data_ptr<int32_t>() + token * k, k, record->At(token, moe_layer));
  }
}

// Rows of MLP i: all of them for the dense MLP, the expert's range otherwise.
at::Tensor RowsOf(const LayerEnv& env, const MlpTrace& trace, size_t i, const at::Tensor& rows) {
  if (env.refs.router < 0) return rows;
  const std::vector<int64_t>& begin = trace.permutation.expert_begin;
  return rows.narrow(0, begin[i], begin[i + 1] - begin[i]);
}

void ObserveProjection(const LayerEnv& env, const MlpTrace& trace, LinearRef MlpRefs::*projection,
                       const at::Tensor& x) {
  if (env.observer == nullptr) return;
  for (size_t i = 0; i < env.refs.mlps.size(); ++i) {
    env.Observe(env.refs.mlps[i].*projection, RowsOf(env, trace, i, x));
  }
}

// One projection of every MLP over its rows, in one parallel region; y_R gets the rows of all.
void RunProjection(const LayerEnv& env, const MlpTrace& trace, LinearRef MlpRefs::*projection,
                   const at::Tensor& x, const at::Tensor& y) {
  std::vector<LinearCall> calls;
  for (size_t i = 0; i < env.refs.mlps.size(); ++i) {
    const LinearRef& ref = env.refs.mlps[i].*projection;
    const at::Tensor x_i = RowsOf(env, trace, i, x);
    if (x_i.size(0) == 0) continue;
    calls.push_back({x_i, env.At(ref.weight).View(),
                     ref.bias >= 0 ? env.Vector(ref.bias) : at::Tensor(),
                     RowsOf(env, trace, i, y)});
  }
  RunLinear(env.ctx, calls);
}

void RunProjectionGrad(const LayerEnv& env, const MlpTrace& trace, LinearRef MlpRefs::*projection,
                       const at::Tensor& x, const at::Tensor& dy, const at::Tensor& dx,
                       Gradients& gradients) {
  std::vector<LinearGradCall> calls;
  for (size_t i = 0; i < env.refs.mlps.size(); ++i) {
    const at::Tensor x_i = RowsOf(env, trace, i, x);
    if (x_i.size(0) == 0) continue;
    calls.push_back(env.GradCall(env.refs.mlps[i].*projection, x_i, RowsOf(env, trace, i, dy),
                                 RowsOf(env, trace, i, dx), gradients));
  }
  RunLinearGrad(env.ctx, calls);
}

// The kernel's error names token and expert; this one the router too.
Routing RouteByName(const LayerEnv& env, const at::Tensor& logits_TE,
                    const at::Tensor& replay_ids_TK) {
  try {
    return Route(env.ctx, RouterOf(env.config), logits_TE, replay_ids_TK);
  } catch (const Error& error) {
    throw Error(error.code(),
                fmt::format("{}: {}", env.At(env.refs.router).spec.name, error.what()));
  }
}

// Chooses experts and sorts the tokens' rows by expert.
void RouteRows(const LayerEnv& env, MlpTrace& trace) {
  env.Observe({env.refs.router, -1}, trace.norm_TD);
  trace.router_logits_TE = LinearLogits(env.ctx, trace.norm_TD, env.At(env.refs.router).View());
  trace.routing = RouteByName(env, trace.router_logits_TE, ReplayedIds(env));
  const bool is_compared = env.batch.record != nullptr && env.batch.replay != nullptr;
  Record(env,
         is_compared ? RouteByName(env, trace.router_logits_TE, {}).ids_TK : trace.routing.ids_TK);
  const std::span<const int32_t> ids(trace.routing.ids_TK.data_ptr<int32_t>(),
                                     static_cast<size_t>(trace.routing.ids_TK.numel()));
  trace.permutation = PermuteByExpert(ids, env.config.num_experts, env.config.num_experts_per_tok);
  trace.rows_RD = GatherTokens(env.ctx, trace.norm_TD, trace.permutation);
}

}  // namespace

void BeginMlp(const LayerEnv& env, const at::Tensor& x_TD, MlpTrace& out) {
  out.norm_TD =
      RmsNorm(env.ctx, x_TD, env.Vector(env.refs.post_attention_norm), env.config.rms_norm_eps);
  if (env.refs.router >= 0) {
    RouteRows(env, out);
  } else {
    out.rows_RD = out.norm_TD;
  }
  ObserveProjection(env, out, &MlpRefs::gate, out.rows_RD);
  ObserveProjection(env, out, &MlpRefs::up, out.rows_RD);
}

void RunMlp(const LayerEnv& env, MlpTrace& out) {
  const int64_t size = env.At(env.refs.mlps[0].gate.weight).spec.shape[0];
  out.gate_RF = EmptyTensor({out.rows_RD.size(0), size}, out.rows_RD.scalar_type());
  out.up_RF = at::empty_like(out.gate_RF);
  RunProjection(env, out, &MlpRefs::gate, out.rows_RD, out.gate_RF);
  RunProjection(env, out, &MlpRefs::up, out.rows_RD, out.up_RF);
  out.act_RF = SiluMul(env.ctx, out.gate_RF, out.up_RF);
  ObserveProjection(env, out, &MlpRefs::down, out.act_RF);
}

at::Tensor FinishMlp(const LayerEnv& env, MlpTrace& out) {
  out.down_RD = EmptyTensor({out.act_RF.size(0), env.config.hidden_size}, out.act_RF.scalar_type());
  RunProjection(env, out, &MlpRefs::down, out.act_RF, out.down_RD);
  if (env.refs.router < 0) return out.down_RD;
  return Combine(env.ctx, out.down_RD, out.routing.weights_TK, out.permutation);
}

at::Tensor MlpBlock(const LayerEnv& env, const at::Tensor& x_TD, MlpTrace* trace) {
  MlpTrace local;
  MlpTrace& out = trace != nullptr ? *trace : local;
  BeginMlp(env, x_TD, out);
  RunMlp(env, out);
  return FinishMlp(env, out);
}

void MlpBlockGrad(const LayerEnv& env, const LayerTrace& layer, const at::Tensor& dx_TD,
                  Gradients& gradients) {
  const MlpTrace& trace = layer.mlp;
  const bool is_moe = env.refs.router >= 0;
  at::Tensor ddown_RD = dx_TD;
  at::Tensor dweights_TK;
  if (is_moe) {
    const CombineGrads grads =
        CombineGrad(env.ctx, trace.down_RD, trace.routing.weights_TK, trace.permutation, dx_TD);
    ddown_RD = grads.dy_RD;
    dweights_TK = grads.dweights_TK;
  }
  const at::Tensor dact_RF = EmptyTensor(trace.act_RF.sizes(), at::kFloat);
  RunProjectionGrad(env, trace, &MlpRefs::down, trace.act_RF, ddown_RD, dact_RF, gradients);
  const SiluMulGrads dgate_up = SiluMulGrad(env.ctx, trace.gate_RF, trace.up_RF, dact_RF);
  const at::Tensor drows_RD = EmptyTensor(trace.rows_RD.sizes(), at::kFloat);
  const at::Tensor drows_up_RD = EmptyTensor(trace.rows_RD.sizes(), at::kFloat);
  RunProjectionGrad(env, trace, &MlpRefs::gate, trace.rows_RD, dgate_up.dgate_TF, drows_RD,
                    gradients);
  RunProjectionGrad(env, trace, &MlpRefs::up, trace.rows_RD, dgate_up.dup_TF, drows_up_RD,
                    gradients);
  drows_RD.add_(drows_up_RD);
  at::Tensor dnorm_TD = drows_RD;
  if (is_moe) {
    dnorm_TD = EmptyTensor(trace.norm_TD.sizes(), at::kFloat);
    const at::Tensor dlogits_TE = RouteGrad(env.ctx, RouterOf(env.config), trace.router_logits_TE,
                                            trace.routing.ids_TK, dweights_TK);
    const LinearGradCall router_grad =
        env.GradCall({env.refs.router, -1}, trace.norm_TD, dlogits_TE, dnorm_TD, gradients);
    RunLinearGrad(env.ctx, {&router_grad, 1});
    GatherTokensGrad(env.ctx, drows_RD, trace.permutation, dnorm_TD);
  }
  RmsNormGrad(env.ctx, {.x = layer.residual_TD,
                        .weight = env.Vector(env.refs.post_attention_norm),
                        .dy = dnorm_TD,
                        .dx = dx_TD,
                        .dweight = gradients.Of(env.refs.post_attention_norm),
                        .eps = env.config.rms_norm_eps,
                        .accumulate_dx = true});
}

}  // namespace quatrain
