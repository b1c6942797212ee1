#include "models/decoder.h"

namespace quatrain {
namespace {

// Resolves the names of one layer to indices.
class LayerResolver {
 public:
  LayerResolver(const ModelWeights& weights, int64_t layer)
      : weights_(weights), prefix_("model.layers." + std::to_string(layer) + ".") {}

  int Vector(const std::string& module) const { return Required(prefix_ + module + ".weight"); }
  LinearRef Linear(const std::string& module) const {
    return {Required(prefix_ + module + ".weight"), weights_.Find(prefix_ + module + ".bias")};
  }
  MlpRefs Mlp(const std::string& module) const {
    return {Linear(module + ".gate_proj"), Linear(module + ".up_proj"),
            Linear(module + ".down_proj")};
  }

 private:
  int Required(const std::string& name) const {
    const int index = weights_.Find(name);
    QT_CHECK(index >= 0, "{} is missing from the weight table", name);
    return index;
  }
  const ModelWeights& weights_;
  std::string prefix_;
};

LayerRefs ResolveLayer(const ModelConfig& config, const ModelWeights& weights, int64_t layer) {
  const LayerResolver resolve(weights, layer);
  LayerRefs refs;
  refs.input_norm = resolve.Vector("input_layernorm");
  refs.post_attention_norm = resolve.Vector("post_attention_layernorm");
  refs.q = resolve.Linear("self_attn.q_proj");
  refs.k = resolve.Linear("self_attn.k_proj");
  refs.v = resolve.Linear("self_attn.v_proj");
  refs.o = resolve.Linear("self_attn.o_proj");
  if (config.has_qk_norm) {
    refs.q_norm = resolve.Vector("self_attn.q_norm");
    refs.k_norm = resolve.Vector("self_attn.k_norm");
  }
  if (!config.is_moe_layer[static_cast<size_t>(layer)]) {
    refs.mlps.push_back(resolve.Mlp("mlp"));
    return refs;
  }
  refs.router = resolve.Vector("mlp.gate");
  for (int64_t expert = 0; expert < config.num_experts; ++expert) {
    refs.mlps.push_back(resolve.Mlp("mlp.experts." + std::to_string(expert)));
  }
  return refs;
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, const ModelWeights& weights)
    : config_(config), weights_(weights) {
  embedding_ = weights.Find("model.embed_tokens.weight");
  final_norm_ = weights.Find("model.norm.weight");
  lm_head_ = config.tie_word_embeddings ? embedding_ : weights.Find("lm_head.weight");
  QT_CHECK(embedding_ >= 0 && final_norm_ >= 0 && lm_head_ >= 0, "weight table is incomplete");
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    layers_.push_back(ResolveLayer(config, weights, layer));
  }
  rope_cos_.resize(static_cast<size_t>(config.max_position_embeddings * config.head_dim / 2));
  rope_sin_.resize(rope_cos_.size());
  FillRopeTable(config.max_position_embeddings, RopeInverseFrequencies(config), rope_cos_.data(),
                rope_sin_.data());
  rope_ = {rope_cos_.data(), rope_sin_.data(), config.head_dim};
}

Decoder::~Decoder() = default;

int64_t LayerTrace::num_bytes() const {
  int64_t bytes = 0;
  for (const at::Tensor& tensor :
       {attention.norm_TD, attention.q_raw_TNH, attention.k_raw_TMH, attention.q_TNH,
        attention.k_TMH, attention.v_TMH, attention.out_TNH, residual_TD, mlp.norm_TD,
        mlp.router_logits_TE, mlp.routing.ids_TK, mlp.routing.weights_TK, mlp.down_RD, mlp.rows_RD,
        mlp.gate_RF, mlp.up_RF, mlp.act_RF}) {
    if (tensor.defined()) bytes += static_cast<int64_t>(tensor.nbytes());
  }
  return bytes + static_cast<int64_t>(sizeof(int32_t) * (mlp.permutation.row_token.size() +
                                                         mlp.permutation.slot_row.size()));
}

at::ScalarType Decoder::activation_type() const {
  return weights_[static_cast<size_t>(final_norm_)].dense.scalar_type();
}

LayerEnv Decoder::EnvOf(const OpContext& ctx, const ForwardBatch& batch, int64_t layer,
                        const LinearObserver* observer) const {
  return {ctx,   config_, weights_, layers_[static_cast<size_t>(layer)],
          batch, rope_,   layer,    observer};
}

void Decoder::CheckBatch(const ForwardBatch& batch) const {
  QT_CHECK(batch.positions.size() == batch.token_ids.size(), "one position a token");
  for (size_t t = 0; t < batch.token_ids.size(); ++t) {
    QT_CHECK(batch.token_ids[t] >= 0 && batch.token_ids[t] < config_.vocab_size,
             "token id {} at row {}, vocabulary {}", batch.token_ids[t], t, config_.vocab_size);
    QT_CHECK(batch.positions[t] >= 0 && batch.positions[t] < config_.max_position_embeddings,
             "position {} at row {}, context {}", batch.positions[t], t,
             config_.max_position_embeddings);
  }
  if (batch.record != nullptr) {
    RoutedExperts& record = *batch.record;
    record.num_tokens = batch.num_tokens();
    record.num_moe_layers = config_.num_moe_layers();
    record.num_experts_per_tok = config_.num_experts_per_tok;
    record.ids_TLK.assign(static_cast<size_t>(record.num_tokens * record.ids_per_token()), -1);
  }
}

at::Tensor Decoder::Embed(const OpContext& ctx, const ForwardBatch& batch) const {
  CheckBatch(batch);
  return Embedding(ctx, weights_[static_cast<size_t>(embedding_)].dense, batch.token_ids);
}

at::Tensor Decoder::RunLayer(const LayerEnv& env, const at::Tensor& x_TD, LayerTrace* trace) const {
  const at::Tensor attended = AttentionBlock(env, x_TD, trace ? &trace->attention : nullptr);
  const at::Tensor residual_TD = AddResidual(env.ctx, x_TD, attended);
  if (trace != nullptr) {
    trace->x_TD = x_TD;
    trace->residual_TD = residual_TD;
  }
  const at::Tensor fed = MlpBlock(env, residual_TD, trace ? &trace->mlp : nullptr);
  return AddResidual(env.ctx, residual_TD, fed);
}

at::Tensor Decoder::ForwardLayer(const OpContext& ctx, int64_t layer, const at::Tensor& x_TD,
                                 const ForwardBatch& batch, const LinearObserver* observer) const {
  return RunLayer(EnvOf(ctx, batch, layer, observer), x_TD, nullptr);
}

at::Tensor Decoder::FinalNorm(const OpContext& ctx, const at::Tensor& x_TD) const {
  return RmsNorm(ctx, x_TD, weights_[static_cast<size_t>(final_norm_)].dense, config_.rms_norm_eps);
}

WeightView Decoder::LmHead() const { return weights_[static_cast<size_t>(lm_head_)].View(); }

at::Tensor Decoder::Forward(const OpContext& ctx, const ForwardBatch& batch) const {
  return ForwardWithTape(ctx, batch, nullptr);
}

at::Tensor Decoder::ForwardWithTape(const OpContext& ctx, const ForwardBatch& batch,
                                    DecoderTape* tape) const {
  at::Tensor x_TD = Embed(ctx, batch);
  if (tape != nullptr) {
    tape->layer_inputs_TD.clear();
    tape->traces.clear();
  }
  int64_t room = tape != nullptr ? tape->trace_bytes : 0;
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    LayerTrace trace;
    if (tape != nullptr) tape->layer_inputs_TD.push_back(x_TD);
    x_TD = RunLayer(EnvOf(ctx, batch, layer), x_TD, room > 0 ? &trace : nullptr);
    if (room == 0) continue;
    const int64_t size = trace.num_bytes();
    room = size <= room ? room - size : 0;
    if (room > 0) tape->traces.push_back(std::move(trace));
  }
  if (tape != nullptr) tape->last_TD = x_TD;
  return FinalNorm(ctx, x_TD);
}

void Decoder::Backward(const OpContext& ctx, const ForwardBatch& batch, const DecoderTape& tape,
                       const at::Tensor& dhidden_TD, Gradients& gradients) const {
  QT_CHECK(tape.layer_inputs_TD.size() == layers_.size(), "the tape is of another forward");
  at::Tensor dx_TD = EmptyTensor(tape.last_TD.sizes(), at::kFloat);
  RmsNormGrad(ctx, {.x = tape.last_TD,
                    .weight = weights_[static_cast<size_t>(final_norm_)].dense,
                    .dy = dhidden_TD,
                    .dx = dx_TD,
                    .dweight = gradients.Of(final_norm_),
                    .eps = config_.rms_norm_eps});
  for (int64_t layer = config_.num_hidden_layers - 1; layer >= 0; --layer) {
    const LayerEnv env = EnvOf(ctx, batch, layer);
    const auto index = static_cast<size_t>(layer);
    LayerTrace recomputed;
    const bool is_kept = index < tape.traces.size();
    if (!is_kept) RunLayer(env, tape.layer_inputs_TD[index], &recomputed);
    const LayerTrace& trace = is_kept ? tape.traces[index] : recomputed;
    // The residual passes dx on; each block adds the gradient through itself, last of all, in
    // place.
    MlpBlockGrad(env, trace, dx_TD, gradients);
    AttentionBlockGrad(env, trace, dx_TD, gradients);
  }
  EmbeddingGrad(ctx, dx_TD, batch.token_ids, gradients.Of(embedding_));
}

ForwardBatch MakeVarlenBatch(const std::vector<std::vector<int32_t>>& sequences) {
  ForwardBatch batch;
  for (const std::vector<int32_t>& ids : sequences) {
    AttentionSequence sequence;
    sequence.q_begin = sequence.kv_begin = batch.num_tokens();
    sequence.num_queries = sequence.num_keys = static_cast<int64_t>(ids.size());
    batch.sequences.push_back(sequence);
    batch.token_ids.insert(batch.token_ids.end(), ids.begin(), ids.end());
    for (size_t t = 0; t < ids.size(); ++t) batch.positions.push_back(static_cast<int32_t>(t));
  }
  return batch;
}

}  // namespace quatrain
