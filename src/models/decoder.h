// The decoder: one forward pass for calibration, training and rollout, and its hand-derived
// backward.
//
//   ForwardBatch batch = MakeVarlenBatch({ids});
//   at::Tensor hidden_TD = decoder.Forward(ctx, batch);
//   TokenLogprobs lp = LmHeadLogprobs(ctx, hidden_TD.narrow(0, 0, n - 1), decoder.LmHead(),
//   targets, 1.0f, ...);
//
// Per layer: x = x + attention(norm(x)); x = x + mlp(norm(x)). Rounding steps: docs/numerics.md.
// Every row of the result depends on its own sequence only, bit for bit, for any batch, cut and
// thread count.
#pragma once

#include <memory>
#include <vector>

#include "models/layer.h"
#include "models/model_config.h"
#include "models/weights.h"

namespace quatrain {

// What a training forward keeps for the backward: the inputs of every layer and, of the first
// layers, all that they computed on their way, as far as `trace_bytes` go. The backward recomputes
// the other layers one at a time from their inputs, to the same bits.
struct DecoderTape {
  int64_t trace_bytes = 0;                  // set before the forward
  std::vector<at::Tensor> layer_inputs_TD;  // num_hidden_layers
  std::vector<LayerTrace> traces;           // of the first layers, perhaps none
  at::Tensor last_TD;                       // input of the final norm
};

class Decoder {
 public:
  // Borrows both; `weights` may change in place between calls (optimizer, calibration), never
  // during one.
  Decoder(const ModelConfig& config, const ModelWeights& weights);
  ~Decoder();

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  // BF16, or FP32 under --dtype float32: the type of the norms.
  at::ScalarType activation_type() const;

  // Hidden states after the final norm, [T, D]. Fills batch.record if set, uses batch.replay if
  // set.
  at::Tensor Forward(const OpContext& ctx, const ForwardBatch& batch) const;

  // The steps of Forward, for calibration, which runs a layer over all samples before it goes on.
  at::Tensor Embed(const OpContext& ctx, const ForwardBatch& batch) const;
  at::Tensor ForwardLayer(const OpContext& ctx, int64_t layer, const at::Tensor& x_TD,
                          const ForwardBatch& batch,
                          const LinearObserver* observer = nullptr) const;
  // What the steps of models/layer.h need for one layer; borrows everything.
  LayerEnv EnvOf(const OpContext& ctx, const ForwardBatch& batch, int64_t layer,
                 const LinearObserver* observer = nullptr) const;
  at::Tensor FinalNorm(const OpContext& ctx, const at::Tensor& x_TD) const;
  WeightView LmHead() const;  // [V, D]; the embedding when tied
  int lm_head_index() const { return lm_head_; }

  // Training: the forward leaves a tape; the backward takes d loss / d Forward's result (FP32 [T,
  // D]) and adds to `gradients` (straight-through for quantised weights). The LM head's own
  // gradient is LmHeadLogprobsGrad's.
  at::Tensor ForwardWithTape(const OpContext& ctx, const ForwardBatch& batch,
                             DecoderTape* tape) const;
  void Backward(const OpContext& ctx, const ForwardBatch& batch, const DecoderTape& tape,
                const at::Tensor& dhidden_TD, Gradients& gradients) const;

 private:
  at::Tensor RunLayer(const LayerEnv& env, const at::Tensor& x_TD, LayerTrace* trace) const;
  void CheckBatch(const ForwardBatch& batch) const;

  const ModelConfig& config_;
  const ModelWeights& weights_;
  std::vector<LayerRefs> layers_;
  int embedding_ = -1, final_norm_ = -1, lm_head_ = -1;
  std::vector<float> rope_cos_, rope_sin_;  // [max_position_embeddings, head_dim / 2]
  RopeTable rope_;
};

}  // namespace quatrain
