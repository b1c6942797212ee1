#include "calibrate/calibrate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "calibrate/layer_inputs.h"
#include "calibrate/layer_walk.h"
#include "calibrate/scale_search.h"
#include "quant/quantized_weight.h"

namespace quatrain {
namespace {

constexpr int64_t kBatchTokens = 1024;  // of samples that run together

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
  gptq.grid = scheme.frozen_grid;
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

// tr(T H T^T) of what the codes approximate.
double SignalOf(ThreadPool& pool, const Hessian& hessian, const WeightMatrix& matrix) {
  const std::vector<double> signal_O =
      OutputError(pool, hessian, matrix.out_features, [&](int64_t row, float* out_I) {
        for (int64_t i = 0; i < matrix.in_features; ++i) out_I[i] = matrix.At(row, i);
      });
  return std::accumulate(signal_O.begin(), signal_O.end(), 0.0);
}

double RtnLoss(ThreadPool& pool, const Hessian& hessian, const Weight& weight,
               const WeightMatrix& matrix, QuantScheme scheme) {
  scheme.scale_rule = ScaleRule::kAbsmax7;
  const std::vector<BFloat16> rounded =
      Dequantize(pool, Quantize(pool, NamedMatrixOf(weight), scheme));
  const std::vector<double> loss_O =
      OutputError(pool, hessian, matrix.out_features, [&](int64_t row, float* out_I) {
        const BFloat16* rounded_I = rounded.data() + row * matrix.in_features;
        for (int64_t i = 0; i < matrix.in_features; ++i) {
          out_I[i] = matrix.At(row, i) - ToFloat(rounded_I[i]);
        }
      });
  return std::accumulate(loss_O.begin(), loss_O.end(), 0.0);
}

std::vector<int64_t> TokensOf(const std::vector<SampleBatch>& batches) {
  std::vector<int64_t> tokens;
  for (const SampleBatch& batch : batches) tokens.push_back(batch.batch.num_tokens());
  return tokens;
}

ModelWeights SpecsOf(const ModelWeights& weights) {
  std::vector<Weight> specs;
  for (size_t i = 0; i < weights.size(); ++i) specs.push_back({weights[i].spec, {}, {}});
  return ModelWeights(std::move(specs));
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
  HiddenStates attended_;
  ModelWeights reference_weights_;  // dense weights of the layer at hand, before quantisation
  Decoder reference_decoder_;
  std::vector<ModuleReport> reports_;  // of the layer at hand
  std::string layer_note_;
  int64_t done_steps_ = 0, total_steps_ = 0;

  Parts(const OpContext& ctx, const CalibrationTask& task, const Decoder& decoder,
        HiddenStates& states, const CalibrateProgress& progress)
      : ctx_(ctx),
        plan_(task.plan),
        options_(task.options),
        data_(task.data),
        weights_(task.weights),
        decoder_(decoder),
        states_(states),
        progress_(progress),
        batches_(MakeBatches(task.data)),
        attended_(AttendedStates(task.config, TokensOf(batches_), states.folder())),
        reference_weights_(SpecsOf(task.weights)),
        reference_decoder_(task.config, reference_weights_) {}

  bool is_reference_method() const { return options_.method == CalibrateMethod::kReference; }

  int64_t StepsOf(int64_t layer) const {
    const auto passes = is_reference_method() ? 2 : static_cast<int64_t>(kLayerSteps.size()) + 1;
    int64_t steps = passes * static_cast<int64_t>(batches_.size());
    for (size_t i = 0; i < weights_.size(); ++i) {
      steps += weights_[i].spec.layer == layer && plan_.is_quantized[i];
    }
    return steps;
  }

  void Embed() {
    for (size_t i = 0; i < batches_.size(); ++i) {
      const at::Tensor x_TD = decoder_.Embed(ctx_, batches_[i].batch);
      states_.Write(i, x_TD);
      if (!is_reference_method()) states_.Write(batches_.size() + i, x_TD);
    }
  }

  void RunLayer(int64_t layer) {
    layer_note_ = fmt::format("layer {} of {}", layer + 1, decoder_.config().num_hidden_layers);
    if (is_reference_method()) {
      RunLayerAtOnce(layer);
    } else {
      RunLayerInSteps(layer);
    }
  }

  bool IsLast(int64_t layer) const { return layer + 1 == decoder_.config().num_hidden_layers; }

  // As llm-compressor: all weights of the layer on the inputs that they have before any of them is
  // quantised.
  void RunLayerAtOnce(int64_t layer) {
    LayerInputs inputs(ctx_, weights_, plan_.is_quantized, layer, ExpertTokens::kAll,
                       data_.num_tokens);
    if (inputs.empty()) {
      done_steps_ += static_cast<int64_t>(batches_.size());
    } else {
      for (size_t i = 0; i < batches_.size(); ++i) {
        const LinearObserver observer = inputs.Observer(batches_[i].where);
        decoder_.ForwardLayer(ctx_, layer, states_.Read(i), batches_[i].batch, &observer);
        Step(", observing");
      }
      QuantizeInputs(inputs.Finish());
    }
    for (size_t i = 0; i < batches_.size(); ++i) {
      if (!IsLast(layer)) {
        states_.Write(i, decoder_.ForwardLayer(ctx_, layer, states_.Read(i), batches_[i].batch));
      }
      Step(", next inputs");
    }
  }

  // Our own: each weight on the inputs that it will meet, beside the unquantised model.
  void RunLayerInSteps(int64_t layer) {
    SetReference(layer, true);
    HiddenStates activated =
        ActivatedStates(decoder_.config(), layer, TokensOf(batches_), states_.folder());
    LayerWalk walk(ctx_, decoder_, reference_decoder_, layer, batches_,
                   {states_, attended_, activated});
    for (const LayerStep step : kLayerSteps) {
      std::vector<bool> is_wanted = plan_.is_quantized;
      for (size_t i = 0; i < is_wanted.size(); ++i) {
        if (is_wanted[i] && StepOf(weights_[i].spec) != step) is_wanted[i] = false;
      }
      LayerInputs inputs(ctx_, weights_, is_wanted, layer, ExpertTokens::kRouted, data_.num_tokens);
      walk.Run(step, inputs, [&] { Step(", observing"); });
      QuantizeInputs(inputs.Finish());
    }
    walk.Finish([&] { Step(", next inputs"); });
    SetReference(layer, false);
  }

  // The reference shares the layer's weights as they are before quantisation, or lets go of them.
  void SetReference(int64_t layer, bool is_shared) {
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i].spec.layer != layer) continue;
      reference_weights_[i].dense = is_shared ? weights_[i].dense : at::Tensor();
    }
  }

  // Inputs of few features (experts) are taken many at once, a thread each: one alone would not
  // keep all threads busy.
  void QuantizeInputs(const std::vector<LayerInput>& inputs) {
    constexpr int64_t kFewFeatures = 1024;
    constexpr size_t kAtOnce = 16;
    const auto is_small = [&](size_t i) { return inputs[i].hessian.in_features <= kFewFeatures; };
    for (size_t first = 0; first < inputs.size();) {
      size_t end = first + 1;
      while (is_small(first) && end < std::min(inputs.size(), first + kAtOnce) && is_small(end)) {
        ++end;
      }
      std::vector<std::vector<ModuleReport>> reports(end - first);
      ctx_.pool.ParallelFor(static_cast<int64_t>(end - first), [&](int64_t i, int) {
        const auto at = static_cast<size_t>(i);
        reports[at] = QuantizeInput(inputs[first + at]);
      });
      for (std::vector<ModuleReport>& of_input : reports) {
        for (ModuleReport& report : of_input) {
          reports_.push_back(std::move(report));
          Step(", quantising");
        }
      }
      first = end;
    }
  }

  // All weights that read one input share its factor. Their reports.
  std::vector<ModuleReport> QuantizeInput(const LayerInput& input) {
    const Weight& first = weights_[static_cast<size_t>(input.weights.front())];
    const GptqOptions gptq = GptqOptionsOf(plan_.scheme, options_, first.spec.shape[1]);
    const HessianFactor factor = FactorHessian(ctx_.pool, input.hessian, gptq, first.spec.module());
    std::optional<InputCorrection> correction;
    if (factor.is_usable() && !input.error.empty()) {
      correction.emplace(ctx_.pool, factor, input.error);
    }
    std::vector<ModuleReport> reports;
    for (const int index : input.weights) {
      Weight& weight = weights_[static_cast<size_t>(index)];
      WeightMatrix matrix = MatrixOf(weight);
      std::vector<float> target_OI;
      if (correction.has_value()) {
        target_OI = correction->Apply(ctx_.pool, matrix);
        matrix.target = target_OI.data();
      }
      const GptqResult result =
          QuantizeWeight(ctx_.pool, matrix, input.hessian, factor, gptq, weight.spec.module());
      reports.push_back(ReportOf(input, factor, weight, matrix, result));
      ReplaceByCodes(weight, PackWeight(result.codes_OI, result.scale_OG, weight.spec.shape[0],
                                        weight.spec.shape[1], plan_.scheme.num_bits));
    }
    return reports;
  }

  ModuleReport ReportOf(const LayerInput& input, const HessianFactor& factor, const Weight& weight,
                        const WeightMatrix& matrix, const GptqResult& result) const {
    const double signal = SignalOf(ctx_.pool, input.hessian, matrix);
    const double rtn_loss = RtnLoss(ctx_.pool, input.hessian, weight, matrix, plan_.scheme);
    const auto relative = [&](double loss) {
      return signal > 0.0 ? std::sqrt(std::max(loss, 0.0) / signal) : 0.0;
    };
    return {.module = weight.spec.module(),
            .num_tokens = input.num_tokens,
            .relative_error = relative(result.loss),
            .rtn_relative_error = relative(rtn_loss),
            .dampening_frac = factor.dampening_frac,
            .fallback = result.fallback_reason};
  }

  void Step(const char* what) { progress_(++done_steps_, total_steps_, layer_note_ + what); }
};

std::vector<int64_t> Calibration::EntryTokens(const CalibrationData& data, CalibrateMethod method) {
  std::vector<int64_t> tokens = TokensOf(MakeBatches(data));
  if (method != CalibrateMethod::kReference) {
    const std::vector<int64_t> of_quantized = tokens;
    tokens.insert(tokens.end(), of_quantized.begin(), of_quantized.end());
  }
  return tokens;
}

uint64_t Calibration::StepBytes(const ModelConfig& config, const CalibrationData& data,
                                CalibrateMethod method) {
  if (method != CalibrateMethod::kGptq) return 0;
  return StepStateBytes(config, data.num_tokens);
}

Calibration::Calibration(const OpContext& ctx, const CalibrationTask& task, const Decoder& decoder,
                         HiddenStates& states, const CalibrateProgress& progress)
    : parts_(new Parts(ctx, task, decoder, states, progress)) {
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
  HiddenStates states(Calibration::EntryTokens(task.data, task.options.method),
                      task.config.hidden_size, std::nullopt);
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
