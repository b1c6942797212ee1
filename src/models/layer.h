// One decoder layer: which weights it uses, what its forward leaves for the backward, and the parts
// of both passes. Letters: T tokens, D hidden, N query heads, M kv heads, H head_dim, E experts, K
// experts per token, R routed rows, F feed-forward size.
#pragma once

#include <functional>
#include <vector>

#include "models/forward_batch.h"
#include "models/weights.h"
#include "ops/elementwise_ops.h"
#include "ops/linear_ops.h"
#include "ops/moe_ops.h"

namespace quatrain {

// Indices into ModelWeights; -1: absent.
struct LinearRef {
  int weight = -1;
  int bias = -1;
};
struct MlpRefs {
  LinearRef gate, up, down;
};
struct LayerRefs {
  int input_norm = -1, post_attention_norm = -1;
  LinearRef q, k, v, o;
  int q_norm = -1, k_norm = -1;
  int router = -1;            // set for MoE layers
  std::vector<MlpRefs> mlps;  // one dense MLP, or E experts
};

// Called with the input of every quantisable linear, and of the router, before it runs; rows may be
// 0 (an expert without tokens). q/k/v share one tensor, as do gate/up.
using LinearObserver = std::function<void(const Weight& weight, const at::Tensor& x_TI)>;

// What every part of a layer needs to know.
struct LayerEnv {
  const OpContext& ctx;
  const ModelConfig& config;
  const ModelWeights& weights;
  const LayerRefs& refs;
  const ForwardBatch& batch;
  const RopeTable& rope;
  int64_t layer = 0;
  const LinearObserver* observer = nullptr;

  const Weight& At(int index) const { return weights[static_cast<size_t>(index)]; }
  const at::Tensor& Vector(int index) const { return At(index).dense; }
  LinearCall Call(const LinearRef& ref, const at::Tensor& x_TI) const;
  LinearGradCall GradCall(const LinearRef& ref, const at::Tensor& x_TI, const at::Tensor& dy_TO,
                          const at::Tensor& dx_TI, Gradients& gradients) const;
  void Observe(const LinearRef& ref, const at::Tensor& x_TI) const {
    if (observer != nullptr) (*observer)(At(ref.weight), x_TI);
  }
};

struct AttentionTrace {
  at::Tensor norm_TD;               // after input_layernorm
  at::Tensor q_raw_TNH, k_raw_TMH;  // before q/k norm; undefined without it
  at::Tensor q_TNH, k_TMH, v_TMH;   // what attention saw
  at::Tensor out_TNH;
};
struct MlpTrace {
  at::Tensor norm_TD;  // after post_attention_layernorm
  // MoE only
  at::Tensor router_logits_TE;
  Routing routing;
  MoePermutation permutation;
  at::Tensor down_RD;  // experts' outputs
  // Dense: rows are tokens (R = T). MoE: rows sorted by expert.
  at::Tensor rows_RD, gate_RF, up_RF, act_RF;
};
struct LayerTrace {
  at::Tensor x_TD;  // the layer's input
  AttentionTrace attention;
  at::Tensor residual_TD;  // after attention
  MlpTrace mlp;

  // Of its tensors but x_TD, which the layer below has made.
  int64_t num_bytes() const;
};

// The steps of AttentionBlock and MlpBlock, each up to the inputs of the next linears, which it
// shows to the observer: calibration quantises weights in between. A trace that is passed on holds
// what the next step reads.
void BeginAttention(const LayerEnv& env, const at::Tensor& x_TD, AttentionTrace& trace);
void RunAttention(const LayerEnv& env, AttentionTrace& trace);  // q, k, v and attention
at::Tensor FinishAttention(const LayerEnv& env, const AttentionTrace& trace);  // o: y_TD
void BeginMlp(const LayerEnv& env, const at::Tensor& x_TD, MlpTrace& trace);   // norm and routing
void RunMlp(const LayerEnv& env, MlpTrace& trace);           // gate, up and SwiGLU
at::Tensor FinishMlp(const LayerEnv& env, MlpTrace& trace);  // down: y_TD

// y_TD of attention on x_TD (before the residual).
at::Tensor AttentionBlock(const LayerEnv& env, const at::Tensor& x_TD, AttentionTrace* trace);
// dx_TD (FP32) comes in as the gradient of the block's output (with its residual) and leaves as
// that of its input: the gradient through attention is added to it in the last step.
void AttentionBlockGrad(const LayerEnv& env, const LayerTrace& trace, const at::Tensor& dx_TD,
                        Gradients& gradients);

// y_TD of the dense MLP or the experts on x_TD (before the residual).
at::Tensor MlpBlock(const LayerEnv& env, const at::Tensor& x_TD, MlpTrace* trace);
void MlpBlockGrad(const LayerEnv& env, const LayerTrace& trace, const at::Tensor& dx_TD,
                  Gradients& gradients);

}  // namespace quatrain
