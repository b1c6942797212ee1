#include <array>

#include "models/layer.h"

namespace quatrain {
namespace {

at::Tensor Heads(const at::Tensor& x_TO, int64_t heads, int64_t head_dim) {
  return x_TO.view({x_TO.size(0), heads, head_dim});
}

// What o_proj reads.
at::Tensor Merged(const AttentionTrace& trace) {
  return trace.out_TNH.view({trace.out_TNH.size(0), -1});
}

// Norm (if the family has it) and RoPE of q or k; `raw` keeps the norm's input for the backward.
at::Tensor NormAndRotate(const LayerEnv& env, const at::Tensor& projected, int norm,
                         at::Tensor* raw) {
  at::Tensor out = projected;
  if (norm >= 0) {
    if (raw != nullptr) *raw = projected;
    out = RmsNorm(env.ctx, projected, env.Vector(norm), env.config.rms_norm_eps);
  }
  RopeInPlace(env.ctx, env.rope, env.batch.positions, out);
  return out;
}

at::Tensor Attend(const LayerEnv& env, const AttentionTrace& qkv) {
  if (env.batch.attention != nullptr) {
    return env.batch.attention->Attend(env.ctx, env.layer, qkv.q_TNH, qkv.k_TMH, qkv.v_TMH);
  }
  return Attention(env.ctx, {qkv.q_TNH, qkv.k_TMH, qkv.v_TMH, env.batch.sequences, 0});
}

// Gradient through RoPE and norm, in place on d; returns the gradient of the projection.
at::Tensor UnrotateAndNormGrad(const LayerEnv& env, const at::Tensor& d, int norm,
                               const at::Tensor& raw, Gradients& gradients) {
  RopeGradInPlace(env.ctx, env.rope, env.batch.positions, d);
  if (norm >= 0) {
    RmsNormGrad(env.ctx, {.x = raw,
                          .weight = env.Vector(norm),
                          .dy = d,
                          .dx = d,
                          .dweight = gradients.Of(norm),
                          .eps = env.config.rms_norm_eps});
  }
  return d.view({d.size(0), -1});
}

}  // namespace

LinearCall LayerEnv::Call(const LinearRef& ref, const at::Tensor& x_TI) const {
  const Weight& weight = At(ref.weight);
  return {x_TI, weight.View(), ref.bias >= 0 ? Vector(ref.bias) : at::Tensor(),
          EmptyTensor({x_TI.size(0), weight.spec.shape[0]}, x_TI.scalar_type())};
}

LinearGradCall LayerEnv::GradCall(const LinearRef& ref, const at::Tensor& x_TI,
                                  const at::Tensor& dy_TO, const at::Tensor& dx_TI,
                                  Gradients& gradients) const {
  return {x_TI,  At(ref.weight).View(),    dy_TO,
          dx_TI, gradients.Of(ref.weight), ref.bias >= 0 ? gradients.Of(ref.bias) : at::Tensor()};
}

void BeginAttention(const LayerEnv& env, const at::Tensor& x_TD, AttentionTrace& out) {
  out.norm_TD = RmsNorm(env.ctx, x_TD, env.Vector(env.refs.input_norm), env.config.rms_norm_eps);
  for (const LinearRef* ref : {&env.refs.q, &env.refs.k, &env.refs.v})
    env.Observe(*ref, out.norm_TD);
}

void RunAttention(const LayerEnv& env, AttentionTrace& out) {
  const ModelConfig& config = env.config;
  const std::array<LinearCall, 3> qkv = {env.Call(env.refs.q, out.norm_TD),
                                         env.Call(env.refs.k, out.norm_TD),
                                         env.Call(env.refs.v, out.norm_TD)};
  RunLinear(env.ctx, qkv);
  out.q_TNH = NormAndRotate(env, Heads(qkv[0].y_TO, config.num_attention_heads, config.head_dim),
                            env.refs.q_norm, &out.q_raw_TNH);
  out.k_TMH = NormAndRotate(env, Heads(qkv[1].y_TO, config.num_key_value_heads, config.head_dim),
                            env.refs.k_norm, &out.k_raw_TMH);
  out.v_TMH = Heads(qkv[2].y_TO, config.num_key_value_heads, config.head_dim);
  out.out_TNH = Attend(env, out);
  env.Observe(env.refs.o, Merged(out));
}

at::Tensor FinishAttention(const LayerEnv& env, const AttentionTrace& trace) {
  const LinearCall o_proj = env.Call(env.refs.o, Merged(trace));
  RunLinear(env.ctx, {&o_proj, 1});
  return o_proj.y_TO;
}

at::Tensor AttentionBlock(const LayerEnv& env, const at::Tensor& x_TD, AttentionTrace* trace) {
  AttentionTrace local;
  AttentionTrace& out = trace != nullptr ? *trace : local;
  BeginAttention(env, x_TD, out);
  RunAttention(env, out);
  return FinishAttention(env, out);
}

void AttentionBlockGrad(const LayerEnv& env, const LayerTrace& layer, const at::Tensor& dx_TD,
                        Gradients& gradients) {
  const AttentionTrace& trace = layer.attention;
  const int64_t num_tokens = dx_TD.size(0);
  const at::Tensor merged = Merged(trace);
  const at::Tensor dmerged = EmptyTensor(merged.sizes(), at::kFloat);
  const LinearGradCall o_grad = env.GradCall(env.refs.o, merged, dx_TD, dmerged, gradients);
  RunLinearGrad(env.ctx, {&o_grad, 1});
  const AttentionGradTensors dqkv =
      AttentionGrad(env.ctx, {trace.q_TNH, trace.k_TMH, trace.v_TMH, env.batch.sequences, 0},
                    dmerged.view(trace.out_TNH.sizes()));
  const std::array<at::Tensor, 3> dprojected = {
      UnrotateAndNormGrad(env, dqkv.dq_TNH, env.refs.q_norm, trace.q_raw_TNH, gradients),
      UnrotateAndNormGrad(env, dqkv.dk_TMH, env.refs.k_norm, trace.k_raw_TMH, gradients),
      dqkv.dv_TMH.view({num_tokens, -1})};
  const std::array<const LinearRef*, 3> refs = {&env.refs.q, &env.refs.k, &env.refs.v};
  std::vector<LinearGradCall> calls;
  for (size_t i = 0; i < refs.size(); ++i) {
    calls.push_back(env.GradCall(*refs[i], trace.norm_TD, dprojected[i],
                                 EmptyTensor(trace.norm_TD.sizes(), at::kFloat), gradients));
  }
  RunLinearGrad(env.ctx, calls);
  const at::Tensor dnorm_TD = calls[0].dx_TI.add_(calls[1].dx_TI).add_(calls[2].dx_TI);
  RmsNormGrad(env.ctx, {.x = layer.x_TD,
                        .weight = env.Vector(env.refs.input_norm),
                        .dy = dnorm_TD,
                        .dx = dx_TD,
                        .dweight = gradients.Of(env.refs.input_norm),
                        .eps = env.config.rms_norm_eps,
                        .accumulate_dx = true});
}

}  // namespace quatrain
