#include "calibrate/calibrate.h"

#include <cmath>
#include <numeric>
#include <utility>

#include "calibrate/layer_inputs.h"
#include "calibrate/scale_search.h"
#include "quant/quantized_weight.h"

namespace quatrain {
namespace {

constexpr int64_t kBatchTokens = 4096;  // samples that run together: results do not depend on it

// Samples that run together.
struct SampleBatch {
  ForwardBatch batch;
  std::string where;  // for errors
};

std::vector<SampleBatch> MakeBatches(const CalibrationData& data) {
  std::vector<SampleBatch> batches;
  for (size_t first = 0; first < data.samples.size();) {
    std::vector<std::vector<int32_t>> sequences;
    size_t num_tokens = 0, end = first;
    while (end < data.samples.size() &&
           (end == first || num_tokens + data.samples[end].size() <= kBatchTokens)) {
      num_tokens += data.samples[end].size();
      sequences.push_back(data.samples[end++]);
    }
    const std::vector<int64_t> rows(data.rows.begin() + static_cast<int64_t>(first),
                                    data.rows.begin() + static_cast<int64_t>(end));
    batches.push_back(
        {MakeVarlenBatch(sequences), fmt::format("the samples of rows {}", fmt::join(rows, ", "))});
    first = end;
  }
  return batches;
}

GptqOptions GptqOptionsOf(const QuantScheme& scheme, const CalibrateOptions& options,
                          int64_t in_features) {
  GptqOptions gptq;
  if (options.method == CalibrateMethod::kReference) {
    gptq = ReferenceGptqOptions(scheme.num_bits, scheme.GroupSizeFor(in_features));
  }
  gptq.num_bits = scheme.num_bits;
  gptq.group_size = scheme.GroupSizeFor(in_features);
  gptq.scale_rule = scheme.scale_rule;
  gptq.dampening_frac = options.dampening_frac;
  gptq.actorder = options.actorder;
  return gptq;
}

WeightMatrix MatrixOf(const Weight& weight) {
  return {DataOf<BFloat16>(weight.dense), weight.spec.shape[0], weight.spec.shape[1]};
}

NamedMatrix NamedMatrixOf(const Weight& weight) {
  const WeightMatrix matrix = MatrixOf(weight);
  return {weight.spec.name,
          {matrix.data, static_cast<size_t>(matrix.out_features * matrix.in_features)},
          matrix.out_features,
          matrix.in_features};
}

void ReplaceByCodes(Weight& weight, QuantizedWeight codes) {
  weight.codes = std::move(codes);
  weight.dense = at::Tensor();
}

double Sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// tr(E H E^T) of E = w - w', or of w itself.
double SignalOf(ThreadPool& pool, const Hessian& hessian, const Weight& weight) {
  const at::Tensor w = weight.dense.to(at::kFloat);
  return Sum(OutputError(pool, hessian, w.const_data_ptr<float>(), w.size(0)));
}

double RtnLoss(ThreadPool& pool, const Hessian& hessian, const Weight& weight, QuantScheme scheme) {
  scheme.scale_rule = ScaleRule::kAbsmax7;
  const std::vector<BFloat16> rounded =
      Dequantize(pool, Quantize(pool, NamedMatrixOf(weight), scheme));
  const WeightMatrix matrix = MatrixOf(weight);
  std::vector<float> error;
  error.reserve(rounded.size());
  for (size_t i = 0; i < rounded.size(); ++i) {
    error.push_back(ToFloat(matrix.data[i]) - ToFloat(rounded[i]));
  }
  return Sum(OutputError(pool, hessian, error.data(), matrix.out_features));
}

}  // namespace

// One run over all layers.
struct Calibration::Parts {
  const OpContext& ctx_;
  const QuantPlan& plan_;
  const CalibrateOptions& options_;
  const CalibrationData& data_;
  ModelWeights& weights_;
  const Decoder& decoder_;
  HiddenStates& states_;
  const CalibrateProgress& progress_;
  std::vector<SampleBatch> batches_;
  std::vector<ModuleReport> reports_;  // of the layer at hand
  std::string layer_note_;
  int64_t done_steps_ = 0, total_steps_ = 0;

  int64_t StepsOf(int64_t layer) const {
    int64_t steps = 2 * static_cast<int64_t>(batches_.size());
    for (size_t i = 0; i < weights_.size(); ++i) {
      steps += weights_[i].spec.layer == layer && plan_.is_quantized[i];
    }
    return steps;
  }

  void Embed() {
    for (size_t i = 0; i < batches_.size(); ++i) {
      states_.Write(i, decoder_.Embed(ctx_, batches_[i].batch));
    }
  }

  void RunLayer(int64_t layer) {
    const int64_t num_layers = decoder_.config().num_hidden_layers;
    layer_note_ = fmt::format("layer {} of {}", layer + 1, num_layers);
    const ExpertTokens expert_tokens =
        options_.method == CalibrateMethod::kReference ? ExpertTokens::kAll : ExpertTokens::kRouted;
    LayerInputs inputs(ctx_, weights_, plan_.is_quantized, layer, expert_tokens, data_.num_tokens);
    if (inputs.empty()) {
      done_steps_ += static_cast<int64_t>(batches_.size());
    } else {
      for (size_t i = 0; i < batches_.size(); ++i) {
        const LinearObserver observer = inputs.Observer(batches_[i].where);
        decoder_.ForwardLayer(ctx_, layer, states_.Read(i), batches_[i].batch, &observer);
        Step(", observing");
      }
      for (const LayerInput& input : inputs.Finish()) QuantizeInput(input);
    }
    const bool is_last = layer + 1 == num_layers;  // nothing reads what it leaves
    for (size_t i = 0; i < batches_.size(); ++i) {
      if (!is_last) {
        states_.Write(i, decoder_.ForwardLayer(ctx_, layer, states_.Read(i), batches_[i].batch));
      }
      Step(", next inputs");
    }
  }

  // All weights that read one input share its factor.
  void QuantizeInput(const LayerInput& input) {
    const Weight& first = weights_[static_cast<size_t>(input.weights.front())];
    const GptqOptions gptq = GptqOptionsOf(plan_.scheme, options_, first.spec.shape[1]);
    const HessianFactor factor = FactorHessian(ctx_.pool, input.hessian, gptq, first.spec.module());
    for (const int index : input.weights) {
      Weight& weight = weights_[static_cast<size_t>(index)];
      const GptqResult result = QuantizeWeight(ctx_.pool, MatrixOf(weight), input.hessian, factor,
                                               gptq, weight.spec.module());
      Report(input, factor, weight, result);
      ReplaceByCodes(weight, PackWeight(result.codes_OI, result.scale_OG, weight.spec.shape[0],
                                        weight.spec.shape[1], plan_.scheme.num_bits));
      Step(", quantising");
    }
  }

  void Report(const LayerInput& input, const HessianFactor& factor, const Weight& weight,
              const GptqResult& result) {
    const double signal = SignalOf(ctx_.pool, input.hessian, weight);
    const double rtn_loss = RtnLoss(ctx_.pool, input.hessian, weight, plan_.scheme);
    const auto relative = [&](double loss) {
      return signal > 0.0 ? std::sqrt(std::max(loss, 0.0) / signal) : 0.0;
    };
    reports_.push_back({.module = weight.spec.module(),
                        .num_tokens = input.num_tokens,
                        .relative_error = relative(result.loss),
                        .rtn_relative_error = relative(rtn_loss),
                        .dampening_frac = factor.dampening_frac,
                        .fallback = result.fallback_reason});
  }

  void Step(const char* what) { progress_(++done_steps_, total_steps_, layer_note_ + what); }
};

std::vector<int64_t> Calibration::BatchTokens(const CalibrationData& data) {
  std::vector<int64_t> tokens;
  for (const SampleBatch& batch : MakeBatches(data)) tokens.push_back(batch.batch.num_tokens());
  return tokens;
}

Calibration::Calibration(const OpContext& ctx, const CalibrationTask& task, const Decoder& decoder,
                         HiddenStates& states, const CalibrateProgress& progress)
    : parts_(new Parts{ctx,
                       task.plan,
                       task.options,
                       task.data,
                       task.weights,
                       decoder,
                       states,
                       progress,
                       MakeBatches(task.data),
                       {},
                       {}}) {
  QT_CHECK(task.options.method != CalibrateMethod::kRtn, "RoundWeight needs no data");
  for (int64_t layer = 0; layer < task.config.num_hidden_layers; ++layer) {
    parts_->total_steps_ += parts_->StepsOf(layer);
  }
}

Calibration::~Calibration() = default;

void Calibration::Embed() { parts_->Embed(); }

std::vector<ModuleReport> Calibration::RunLayer(int64_t layer) {
  parts_->RunLayer(layer);
  return std::exchange(parts_->reports_, {});
}

void Calibration::SkipLayer(int64_t layer) { parts_->total_steps_ -= parts_->StepsOf(layer); }

Json ModuleReport::ToJson() const {
  Json json = {{"module", module},
               {"tokens", num_tokens},
               {"relative_error", relative_error},
               {"rtn_relative_error", rtn_relative_error},
               {"dampening_frac", dampening_frac}};
  if (!fallback.empty()) json["fallback"] = fallback;
  return json;
}

ModuleReport ModuleReport::FromJson(const Json& json) {
  return {.module = json.at("module").get<std::string>(),
          .num_tokens = json.at("tokens").get<int64_t>(),
          .relative_error = json.at("relative_error").get<double>(),
          .rtn_relative_error = json.at("rtn_relative_error").get<double>(),
          .dampening_frac = json.at("dampening_frac").get<double>(),
          .fallback = json.value("fallback", std::string())};
}

std::vector<ModuleReport> CalibrateModel(const OpContext& ctx, const CalibrationTask& task,
                                         const CalibrateProgress& progress) {
  const Decoder decoder(task.config, task.weights);
  HiddenStates states(Calibration::BatchTokens(task.data), task.config.hidden_size, std::nullopt);
  Calibration calibration(ctx, task, decoder, states, progress);
  calibration.Embed();
  std::vector<ModuleReport> reports;
  for (int64_t layer = 0; layer < task.config.num_hidden_layers; ++layer) {
    states.Advance();
    for (ModuleReport& report : calibration.RunLayer(layer)) reports.push_back(std::move(report));
  }
  return reports;
}

void RoundWeight(const OpContext& ctx, const QuantScheme& scheme, Weight& weight) {
  const NamedMatrix matrix = NamedMatrixOf(weight);
  if (scheme.scale_rule != ScaleRule::kSearched) {
    ReplaceByCodes(weight, Quantize(ctx.pool, matrix, scheme));
    return;
  }
  CheckQuantizable(matrix, scheme);
  const std::vector<float> importance_I(static_cast<size_t>(matrix.in_features), 1.0f);
  const std::vector<BFloat16> scale_OG =
      ChooseScales(ctx.pool, MatrixOf(weight), scheme.SpecFor(matrix.in_features), importance_I);
  ReplaceByCodes(weight, QuantizeWithScales(ctx.pool, matrix, scheme, scale_OG));
}

}  // namespace quatrain
