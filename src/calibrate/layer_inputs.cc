#include "calibrate/layer_inputs.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "ops/elementwise_ops.h"
#include "ops/linear_ops.h"

namespace quatrain {
namespace {

std::string ProjectionOf(const WeightSpec& spec) {
  const std::string module = spec.module();
  return module.substr(module.rfind('.') + 1);
}

bool IsDown(const WeightSpec& spec) { return ProjectionOf(spec) == "down_proj"; }

// Weights with one key read one input.
std::string InputKey(const WeightSpec& spec, ExpertTokens expert_tokens) {
  const std::string projection = ProjectionOf(spec);
  if (spec.role == WeightRole::kAttention) return projection == "o_proj" ? "o" : "qkv";
  const std::string input = projection == "down_proj" ? "down" : "gate_up";
  const bool is_shared = expert_tokens == ExpertTokens::kAll && input == "gate_up";
  return is_shared ? input : fmt::format("{} {}", input, spec.expert);
}

// Tokens that every expert is run on for the sake of its down_proj.
int64_t ProbeTokens(int64_t in_features, int64_t num_tokens) {
  constexpr int64_t kLeast = 1024, kPerFeature = 4;
  return std::min(num_tokens, std::max(kLeast, kPerFeature * in_features));
}

void Accumulate(const OpContext& ctx, const at::Tensor& x_TI, Hessian& hessian) {
  DispatchActivation(x_TI.scalar_type(), [&](auto type) {
    AccumulateHessian(ctx.pool, DataOf<decltype(type)>(x_TI), x_TI.size(0), hessian);
  });
}

// Of the one weight that reads the input where that is cheaper than what all could share.
int64_t OutputsOfError(const LayerInput& input, const WeightSpec& spec) {
  const bool is_alone = input.weights.size() == 1 && spec.role != WeightRole::kExpert;
  return is_alone && 2 * spec.shape[0] < spec.shape[1] ? spec.shape[0] : 0;
}

// Where each row of x* begins.
template <class T>
std::vector<const T*> RowsOf(const ReferenceRows& reference, const at::Tensor& x_TI) {
  const int64_t features = x_TI.size(1);
  const T* source = DataOf<T>(reference.source_SI);
  const T* own = DataOf<T>(x_TI);
  std::vector<const T*> rows(reference.row_T.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t row = reference.row_T[i];
    rows[i] = row == ReferenceRows::kOwnRow ? own + static_cast<int64_t>(i) * features
                                            : source + row * features;
  }
  return rows;
}

// x* - x, FP32.
template <class T>
at::Tensor DifferenceOf(const OpContext& ctx, const std::vector<const T*>& reference_T,
                        const at::Tensor& x_TI) {
  at::Tensor difference_TI = EmptyTensor(x_TI.sizes(), at::kFloat);
  const int64_t features = x_TI.size(1);
  ctx.pool.ParallelFor(x_TI.size(0), [&](int64_t row, int) {
    const T* reference = reference_T[static_cast<size_t>(row)];
    const T* x = DataOf<T>(x_TI) + row * features;
    float* difference = DataOf<float>(difference_TI) + row * features;
    for (int64_t i = 0; i < features; ++i) difference[i] = ToFloat(reference[i]) - ToFloat(x[i]);
  });
  return difference_TI;
}

// The Hessian, and the error against the unquantised model's inputs where they are known.
void AccumulateInput(const OpContext& ctx, const Weight& weight, const at::Tensor& x_TI,
                     const ReferenceRows& reference, LayerInput& input) {
  if (!reference.source_SI.defined()) {
    Accumulate(ctx, x_TI, input.hessian);
    return;
  }
  InputError& error = input.error;
  error.in_features = x_TI.size(1);
  error.num_outputs = OutputsOfError(input, weight.spec);
  DispatchActivation(x_TI.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* x = DataOf<T>(x_TI);
    const std::vector<const T*> reference_T = RowsOf<T>(reference, x_TI);
    if (error.num_outputs == 0) {
      AccumulateHessianAndError(ctx.pool, x, MatrixRows<T>{.scattered = reference_T.data()},
                                x_TI.size(0), input.hessian, error);
      return;
    }
    Accumulate(ctx, x_TI, input.hessian);
    const at::Tensor error_TO =
        LinearLogits(ctx, DifferenceOf<T>(ctx, reference_T, x_TI), weight.View());
    AccumulateOutputError(ctx.pool, x, DataOf<float>(error_TO), x_TI.size(0), error);
  });
}

}  // namespace

void CheckFiniteInput(const at::Tensor& x_TI, const std::string& module, const std::string& where) {
  std::optional<BadInput> bad;
  DispatchActivation(x_TI.scalar_type(), [&](auto type) {
    bad = FindBadInput(DataOf<decltype(type)>(x_TI), x_TI.size(0), x_TI.size(1));
  });
  if (!bad) return;
  throw Error(ErrorCode::kData,
              {.where = module,
               .what = fmt::format("an input is not finite at feature {} while calibrating with {}",
                                   bad->feature, where),
               .expected = "finite activations",
               .found = fmt::format("{}", bad->value),
               .todo = "The weights of this layer or of one before it overflow on that text; check "
                       "that the source model works."});
}

LayerInputs::LayerInputs(const OpContext& ctx, const ModelWeights& weights,
                         const std::vector<bool>& is_quantized, int64_t layer,
                         ExpertTokens expert_tokens, int64_t num_tokens)
    : ctx_(ctx),
      weights_(weights),
      layer_(layer),
      expert_tokens_(expert_tokens),
      num_tokens_(num_tokens) {
  for (size_t i = 0; i < weights.size(); ++i) {
    if (is_quantized[i] && weights[i].spec.layer == layer) AddInput(static_cast<int>(i));
  }
}

void LayerInputs::AddInput(int weight_index) {
  const WeightSpec& spec = weights_[static_cast<size_t>(weight_index)].spec;
  const std::string key = InputKey(spec, expert_tokens_);
  const auto found = std::find(keys_.begin(), keys_.end(), key);
  if (found != keys_.end()) {
    inputs_[static_cast<size_t>(found - keys_.begin())].weights.push_back(weight_index);
    return;
  }
  const bool is_shared = key == "gate_up";
  keys_.push_back(key);
  inputs_.push_back({.weights = {weight_index},
                     .hessian = Hessian(spec.shape[1]),
                     .expert = is_shared ? -1 : spec.expert});
  if (spec.role == WeightRole::kExpert && IsDown(spec)) {
    experts_.push_back(spec.expert);
    num_probe_tokens_ = ProbeTokens(spec.shape[1], num_tokens_);
  }
}

LinearObserver LayerInputs::Observer(std::string where) {
  return [this, where = std::move(where)](const Weight& weight, const at::Tensor& x_TI) {
    Observe(weight, x_TI, where, nullptr);
  };
}

LinearObserver LayerInputs::Observer(std::string where, const ReferenceInputs& reference) {
  return
      [this, where = std::move(where), &reference](const Weight& weight, const at::Tensor& x_TI) {
        Observe(weight, x_TI, where, &reference);
      };
}

LayerInput* LayerInputs::InputOf(int weight_index) {
  for (LayerInput& input : inputs_) {
    if (input.weights.front() == weight_index) return &input;
  }
  return nullptr;
}

void LayerInputs::Observe(const Weight& weight, const at::Tensor& x_TI, const std::string& where,
                          const ReferenceInputs* reference) {
  if (weight.spec.role == WeightRole::kRouter) {
    if (experts_.empty()) return;
    CheckFiniteInput(x_TI, weight.spec.module(), where);
    ObserveRouter(x_TI);
    return;
  }
  LayerInput* input = InputOf(weights_.Find(weight.spec.name));
  if (input == nullptr) return;
  if (weight.spec.role == WeightRole::kExpert && expert_tokens_ == ExpertTokens::kAll) return;
  const Observation observation{
      *input, weight, x_TI,
      reference == nullptr ? ReferenceRows() : reference->RowsFor(weight, x_TI), where};
  if (weight.spec.role == WeightRole::kExpert) {
    waiting_.push_back(observation);
  } else {
    TakeIn(observation);
  }
}

void LayerInputs::TakeIn(const Observation& observation) const {
  const auto& [input, weight, x_TI, reference, where] = observation;
  CheckFiniteInput(x_TI, weight.spec.module(), where);
  input.num_tokens += x_TI.size(0);
  AccumulateInput(ctx_, weight, x_TI, reference, input);
}

void LayerInputs::FinishBatch() {
  const std::vector<Observation> waiting = std::exchange(waiting_, {});
  ctx_.pool.ParallelFor(static_cast<int64_t>(waiting.size()),
                        [&](int64_t i, int) { TakeIn(waiting[static_cast<size_t>(i)]); });
}

void LayerInputs::ObserveRouter(const at::Tensor& x_TD) {
  if (expert_tokens_ == ExpertTokens::kRouted) {
    KeepProbeTokens(x_TD);
    return;
  }
  for (LayerInput& input : inputs_) {
    const WeightSpec& spec = weights_[static_cast<size_t>(input.weights.front())].spec;
    if (spec.role != WeightRole::kExpert) continue;
    Accumulate(ctx_, IsDown(spec) ? ExpertActivation(spec.expert, x_TD) : x_TD, input.hessian);
    input.num_tokens += x_TD.size(0);
  }
}

// Evenly spaced over the whole calibration set.
void LayerInputs::KeepProbeTokens(const at::Tensor& x_TD) {
  for (int64_t t = 0; t < x_TD.size(0); ++t, ++num_seen_tokens_) {
    const int64_t kept = num_seen_tokens_ * num_probe_tokens_ / num_tokens_;
    if ((num_seen_tokens_ + 1) * num_probe_tokens_ / num_tokens_ > kept) {
      probe_.push_back(x_TD.narrow(0, t, 1).clone());
    }
  }
}

int LayerInputs::ExpertWeight(int64_t expert, const char* projection) const {
  const int index = weights_.Find(
      fmt::format("model.layers.{}.mlp.experts.{}.{}.weight", layer_, expert, projection));
  QT_CHECK(index >= 0, "layer {} expert {} {}", layer_, expert, projection);
  return index;
}

// What the expert's down_proj would read on these tokens.
at::Tensor LayerInputs::ExpertActivation(int64_t expert, const at::Tensor& x_TD) const {
  const auto run = [&](const char* projection) {
    const size_t index = static_cast<size_t>(ExpertWeight(expert, projection));
    return Linear(ctx_, x_TD, weights_[index].View());
  };
  return SiluMul(ctx_, run("gate_proj"), run("up_proj"));
}

std::vector<LayerInput> LayerInputs::Finish() {
  FinishBatch();
  if (expert_tokens_ == ExpertTokens::kAll) return std::move(inputs_);
  BlendGateUp();
  BlendDown();
  return std::move(inputs_);
}

void LayerInputs::BlendGateUp() {
  Hessian all_tokens;  // every token counts once for each expert that it went to
  InputError all_errors;
  const auto is_gate_up = [&](const LayerInput& input) {
    return input.expert >= 0 && !IsDown(weights_[static_cast<size_t>(input.weights.front())].spec);
  };
  for (const LayerInput& input : inputs_) {
    if (!is_gate_up(input)) continue;
    if (all_tokens.in_features == 0) all_tokens = Hessian(input.hessian.in_features);
    all_errors.in_features = all_tokens.in_features;
    MergeHessian(ctx_.pool, input.hessian, all_tokens);
    MergeInputError(input.error, 1.0, all_errors);
  }
  const auto prior_tokens = static_cast<double>(all_tokens.in_features);
  const double layer_tokens = static_cast<double>(std::max<int64_t>(all_tokens.num_tokens, 1));
  for (LayerInput& input : inputs_) {
    if (!is_gate_up(input)) continue;
    input.hessian = BlendHessian(ctx_.pool, input.hessian, all_tokens, prior_tokens);
    input.error.in_features = all_tokens.in_features;
    MergeInputError(all_errors, prior_tokens / layer_tokens, input.error);
  }
}

void LayerInputs::BlendDown() {
  if (experts_.empty()) return;
  const at::Tensor probe_TD = at::cat(probe_);
  for (LayerInput& input : inputs_) {
    const WeightSpec& spec = weights_[static_cast<size_t>(input.weights.front())].spec;
    if (input.expert < 0 || !IsDown(spec)) continue;
    Hessian probed(spec.shape[1]);
    Accumulate(ctx_, ExpertActivation(input.expert, probe_TD), probed);
    input.hessian =
        BlendHessian(ctx_.pool, input.hessian, probed, static_cast<double>(spec.shape[1]));
  }
}

}  // namespace quatrain
