#include "calibrate/layer_walk.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "calibrate/reference_inputs.h"

namespace quatrain {
namespace {

int64_t AttendedFeatures(const ModelConfig& config) {
  return config.num_attention_heads * config.head_dim;
}

// What SwiGLU leaves of a token: rows of so many features.
struct ActivatedShape {
  int64_t rows = 0, features = 0;
};

ActivatedShape ActivatedShapeOf(const ModelConfig& config, int64_t layer) {
  if (!config.is_moe_layer[static_cast<size_t>(layer)]) return {1, config.intermediate_size};
  return {config.num_experts_per_tok, config.moe_intermediate_size};
}

}  // namespace

HiddenStates AttendedStates(const ModelConfig& config, std::vector<int64_t> tokens,
                            std::optional<std::filesystem::path> folder) {
  return {std::move(tokens), AttendedFeatures(config), std::move(folder), "attended"};
}

HiddenStates ActivatedStates(const ModelConfig& config, int64_t layer, std::vector<int64_t> tokens,
                             std::optional<std::filesystem::path> folder) {
  const ActivatedShape shape = ActivatedShapeOf(config, layer);
  for (int64_t& count : tokens) count *= shape.rows;
  return {std::move(tokens), shape.features, std::move(folder), "activated"};
}

uint64_t StepStateBytes(const ModelConfig& config, int64_t num_tokens) {
  int64_t most = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const ActivatedShape shape = ActivatedShapeOf(config, layer);
    most = std::max(most, shape.rows * shape.features);
  }
  return sizeof(BFloat16) * static_cast<uint64_t>(num_tokens * (AttendedFeatures(config) + most));
}

LayerStep StepOf(const WeightSpec& spec) {
  const std::string module = spec.module();
  if (module.ends_with(".o_proj")) return LayerStep::kO;
  if (module.ends_with(".down_proj")) return LayerStep::kDown;
  return spec.role == WeightRole::kAttention ? LayerStep::kQkv : LayerStep::kGateUp;
}

LayerWalk::LayerWalk(const OpContext& ctx, const Decoder& decoder, const Decoder& reference,
                     int64_t layer, const std::vector<SampleBatch>& batches, WalkStates states)
    : ctx_(ctx),
      decoder_(decoder),
      reference_(reference),
      layer_(layer),
      batches_(batches),
      states_(states) {}

void LayerWalk::Run(LayerStep step, LayerInputs& inputs, FunctionRef<void()> after_batch) {
  // Without weights that are quantised the first step changes no hidden state.
  const bool is_idle = step == LayerStep::kQkv && inputs.empty();
  for (size_t index = 0; index < batches_.size(); ++index) {
    if (!is_idle) RunBatch(step, inputs, index);
    after_batch();
  }
}

void LayerWalk::RunBatch(LayerStep step, LayerInputs& inputs, size_t index) {
  const SampleBatch& batch = batches_[index];
  ReferenceInputs pairs;
  const LinearObserver keep = pairs.Observer();
  const LinearObserver reference_observer = [&](const Weight& weight, const at::Tensor& x_TI) {
    // The router refuses such rows without a name for them.
    if (weight.spec.role == WeightRole::kRouter) {
      CheckFiniteInput(x_TI, weight.spec.module(), batch.where);
    }
    keep(weight, x_TI);
  };
  const LinearObserver observer = inputs.Observer(batch.where, pairs);
  Traces traces;
  const bool is_moe = decoder_.config().is_moe_layer[static_cast<size_t>(layer_)];
  if (is_moe) {
    pairs.SetPermutations(&traces.reference.mlp.permutation, &traces.quantized.mlp.permutation);
  }
  // What the first layer reads is the same in both models.
  if (layer_ > 0 || step != LayerStep::kQkv) {
    const bool is_watched = !inputs.empty();
    RunReference(
        reference_.EnvOf(ctx_, batch.batch, layer_, is_watched ? &reference_observer : nullptr),
        step, batches_.size() + index, traces.reference);
  }
  RunQuantized(decoder_.EnvOf(ctx_, batch.batch, layer_, inputs.empty() ? nullptr : &observer),
               step, index, traces.quantized);
  inputs.FinishBatch();
}

void LayerWalk::RunReference(const LayerEnv& env, LayerStep step, size_t entry, LayerTrace& trace) {
  HiddenStates& hidden = states_.hidden;
  const bool is_attention = step == LayerStep::kQkv || step == LayerStep::kO;
  const at::Tensor x_TD = is_attention ? hidden.Read(entry) : hidden.ReadWritten(entry);
  switch (step) {
    case LayerStep::kQkv:
      BeginAttention(env, x_TD, trace.attention);
      return;
    case LayerStep::kO:
      BeginAttention(env, x_TD, trace.attention);
      RunAttention(env, trace.attention);
      hidden.Write(entry, AddResidual(ctx_, x_TD, FinishAttention(env, trace.attention)));
      return;
    case LayerStep::kGateUp:
      BeginMlp(env, x_TD, trace.mlp);
      return;
    case LayerStep::kDown:
      BeginMlp(env, x_TD, trace.mlp);
      RunMlp(env, trace.mlp);
      if (!is_last()) {
        hidden.Write(entry, AddResidual(ctx_, x_TD, FinishMlp(env, trace.mlp)));
      }
      return;
  }
}

void LayerWalk::RunQuantized(const LayerEnv& env, LayerStep step, size_t index, LayerTrace& trace) {
  HiddenStates& hidden = states_.hidden;
  const ModelConfig& config = decoder_.config();
  const int64_t head_dim = config.head_dim, heads = config.num_attention_heads;
  switch (step) {
    case LayerStep::kQkv:
      BeginAttention(env, hidden.Read(index), trace.attention);
      return;
    case LayerStep::kO: {
      BeginAttention(env, hidden.Read(index), trace.attention);
      RunAttention(env, trace.attention);
      states_.attended.Write(index, trace.attention.out_TNH.view({-1, heads * head_dim}));
      return;
    }
    case LayerStep::kGateUp: {
      trace.attention.out_TNH = states_.attended.ReadWritten(index).view({-1, heads, head_dim});
      const at::Tensor x_TD =
          AddResidual(ctx_, hidden.Read(index), FinishAttention(env, trace.attention));
      hidden.Write(index, x_TD);
      BeginMlp(env, x_TD, trace.mlp);
      return;
    }
    case LayerStep::kDown:
      BeginMlp(env, hidden.ReadWritten(index), trace.mlp);
      RunMlp(env, trace.mlp);
      if (!is_last()) states_.activated.Write(index, trace.mlp.act_RF);
      return;
  }
}

void LayerWalk::Finish(FunctionRef<void()> after_batch) {
  for (size_t index = 0; index < batches_.size(); ++index) {
    if (!is_last()) {
      const LayerEnv env = decoder_.EnvOf(ctx_, batches_[index].batch, layer_);
      const at::Tensor x_TD = states_.hidden.ReadWritten(index);
      LayerTrace trace;
      BeginMlp(env, x_TD, trace.mlp);
      trace.mlp.act_RF = states_.activated.ReadWritten(index);
      states_.hidden.Write(index, AddResidual(ctx_, x_TD, FinishMlp(env, trace.mlp)));
    }
    after_batch();
  }
}

}  // namespace quatrain
