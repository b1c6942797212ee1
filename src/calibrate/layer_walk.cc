#include "calibrate/layer_walk.h"

#include "base/error.h"
#include "calibrate/reference_inputs.h"

namespace quatrain {

LayerStep StepOf(const WeightSpec& spec) {
  const std::string module = spec.module();
  if (module.ends_with(".o_proj")) return LayerStep::kO;
  if (module.ends_with(".down_proj")) return LayerStep::kDown;
  return spec.role == WeightRole::kAttention ? LayerStep::kQkv : LayerStep::kGateUp;
}

LayerWalk::LayerWalk(const OpContext& ctx, const Decoder& decoder, const Decoder& reference,
                     int64_t layer, std::vector<SampleBatch>& batches)
    : ctx_(ctx),
      decoder_(decoder),
      reference_(reference),
      layer_(layer),
      batches_(batches),
      attended_TNH_(batches.size()) {}

void LayerWalk::Run(LayerStep step, LayerInputs& inputs) {
  if (step == LayerStep::kQkv && inputs.empty()) return;  // it changes no hidden state
  for (size_t index = 0; index < batches_.size(); ++index) RunBatch(step, inputs, index);
}

void LayerWalk::RunBatch(LayerStep step, LayerInputs& inputs, size_t index) {
  SampleBatch& batch = batches_[index];
  const bool is_same = batch.reference_TD.is_same(batch.x_TD);
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
  if (!is_same || step != LayerStep::kQkv) {
    const bool is_watched = !inputs.empty();
    RunReference(
        reference_.EnvOf(ctx_, batch.batch, layer_, is_watched ? &reference_observer : nullptr),
        step, batch, traces.reference);
  }
  RunQuantized(decoder_.EnvOf(ctx_, batch.batch, layer_, inputs.empty() ? nullptr : &observer),
               step, index, traces.quantized);
}

void LayerWalk::RunReference(const LayerEnv& env, LayerStep step, SampleBatch& batch,
                             LayerTrace& trace) {
  const at::Tensor& x_TD = batch.reference_TD;
  const bool is_last = layer_ + 1 == reference_.config().num_hidden_layers;
  switch (step) {
    case LayerStep::kQkv:
      BeginAttention(env, x_TD, trace.attention);
      return;
    case LayerStep::kO:
      BeginAttention(env, x_TD, trace.attention);
      RunAttention(env, trace.attention);
      batch.reference_TD = AddResidual(ctx_, x_TD, FinishAttention(env, trace.attention));
      return;
    case LayerStep::kGateUp:
      BeginMlp(env, x_TD, trace.mlp);
      return;
    case LayerStep::kDown:
      BeginMlp(env, x_TD, trace.mlp);
      RunMlp(env, trace.mlp);
      if (!is_last) batch.reference_TD = AddResidual(ctx_, x_TD, FinishMlp(env, trace.mlp));
      return;
  }
}

void LayerWalk::RunQuantized(const LayerEnv& env, LayerStep step, size_t index, LayerTrace& trace) {
  at::Tensor& x_TD = batches_[index].x_TD;
  at::Tensor& attended_TNH = attended_TNH_[index];
  switch (step) {
    case LayerStep::kQkv:
      BeginAttention(env, x_TD, trace.attention);
      return;
    case LayerStep::kO:
      BeginAttention(env, x_TD, trace.attention);
      RunAttention(env, trace.attention);
      attended_TNH = trace.attention.out_TNH;
      return;
    case LayerStep::kGateUp:
      trace.attention.out_TNH = attended_TNH;
      x_TD = AddResidual(ctx_, x_TD, FinishAttention(env, trace.attention));
      attended_TNH = at::Tensor();
      BeginMlp(env, x_TD, trace.mlp);
      return;
    case LayerStep::kDown:
      BeginMlp(env, x_TD, trace.mlp);
      RunMlp(env, trace.mlp);
      return;
  }
}

void LayerWalk::Finish() {
  if (layer_ + 1 == decoder_.config().num_hidden_layers) return;
  for (SampleBatch& batch : batches_) {
    const LayerEnv env = decoder_.EnvOf(ctx_, batch.batch, layer_);
    LayerTrace trace;
    BeginMlp(env, batch.x_TD, trace.mlp);
    RunMlp(env, trace.mlp);
    batch.x_TD = AddResidual(ctx_, batch.x_TD, FinishMlp(env, trace.mlp));
  }
}

}  // namespace quatrain
