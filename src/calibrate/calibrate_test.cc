#include "calibrate/calibrate.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <stdexcept>

#include "base/error.h"
#include "calibrate/fidelity.h"
#include "models/decoder.h"
#include "models/loader.h"
#include "quant/quantized_weight.h"

namespace quatrain {
namespace {

const std::string kModels = std::string(QT_SOURCE_DIR) + "/examples/models/";
const std::string kText = std::string(QT_SOURCE_DIR) + "/examples/data/calibration";

struct Calibrated {
  std::vector<ModuleReport> reports;
  ModelWeights weights;

  const ModuleReport& Of(const std::string& module) const {
    for (const ModuleReport& report : reports) {
      if (report.module == module) return report;
    }
    throw std::out_of_range(module);
  }
  double MeanError() const {
    double sum = 0.0;
    for (const ModuleReport& report : reports) sum += report.relative_error;
    return sum / static_cast<double>(reports.size());
  }
};

struct CalibrationCase {
  explicit CalibrationCase(const std::string& name, int64_t num_samples = 24)
      : checkpoint(kModels + name),
        data(LoadCalibrationData(
            {.source = kText, .num_samples = num_samples, .max_sequence_length = 128},
            Tokenizer::Load(kModels + name), checkpoint.config().vocab_size)) {}

  QuantPlan Plan(QuantScope scope, ScaleRule rule) const {
    return MakeQuantPlan(WeightTableOf(checkpoint.config()),
                         {.num_bits = 4, .group_size = 32, .scale_rule = rule}, scope,
                         Indivisible::kRefuse);
  }
  Calibrated Calibrate(CalibrateMethod method, QuantScope scope, int num_threads = 2) const {
    Calibrated run{{}, LoadWeights(checkpoint, at::kBFloat16)};
    Calibrate(method, scope, num_threads, run);
    return run;
  }
  void Calibrate(CalibrateMethod method, QuantScope scope, int num_threads, Calibrated& run) const {
    ThreadPool pool(num_threads);
    const ScaleRule rule =
        method == CalibrateMethod::kReference ? ScaleRule::kAbsmax7_5 : ScaleRule::kSearched;
    const QuantPlan plan = Plan(scope, rule);
    const CalibrateOptions options{.method = method};
    run.reports = CalibrateModel({pool}, {checkpoint.config(), plan, options, data, run.weights},
                                 [](int64_t, int64_t, const std::string&) {});
  }

  Checkpoint checkpoint;
  CalibrationData data;
};

void ExpectSameCodes(const ModelWeights& a, const ModelWeights& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].is_quantized(), b[i].is_quantized());
    EXPECT_EQ(a[i].codes.packed, b[i].codes.packed) << a[i].spec.name;
  }
}

TEST(CalibrateModel, ThreadCountChangesNoBitOfAMixtureOfExperts) {
  const CalibrationCase setup("tiny-qwen3-moe");
  const Calibrated one = setup.Calibrate(CalibrateMethod::kGptq, QuantScope::kAllLinear, 1);
  for (const int num_threads : {2, 3}) {
    const Calibrated other =
        setup.Calibrate(CalibrateMethod::kGptq, QuantScope::kAllLinear, num_threads);
    ExpectSameCodes(one.weights, other.weights);
    for (size_t i = 0; i < one.reports.size(); ++i) {
      EXPECT_EQ(one.reports[i].ToJson(), other.reports[i].ToJson());
    }
  }
}

TEST(CalibrateModel, DefaultBeatsTheReferenceAndBothBeatRoundToNearest) {
  const CalibrationCase setup("tiny-llama");
  const Calibrated ours = setup.Calibrate(CalibrateMethod::kGptq, QuantScope::kAllLinear);
  const Calibrated reference = setup.Calibrate(CalibrateMethod::kReference, QuantScope::kAllLinear);
  EXPECT_LT(ours.MeanError(), reference.MeanError());
  for (const Calibrated* run : {&ours, &reference}) {
    for (const ModuleReport& report : run->reports) {
      EXPECT_LT(report.relative_error, report.rtn_relative_error) << report.module;
      EXPECT_EQ(report.fallback, "");
      EXPECT_EQ(report.num_tokens, setup.data.num_tokens);
    }
  }
}

// Each weight makes up for the errors of those before it, which no error of one weight alone shows.
TEST(CalibrateModel, DefaultStaysMuchCloserToTheModelThanTheReference) {
  for (const char* name : {"tiny-llama", "tiny-qwen3-moe"}) {
    const CalibrationCase setup(name, 64);
    const Calibrated ours = setup.Calibrate(CalibrateMethod::kGptq, QuantScope::kAllLinear);
    const Calibrated reference =
        setup.Calibrate(CalibrateMethod::kReference, QuantScope::kAllLinear);
    const ModelWeights original = LoadWeights(setup.checkpoint, at::kBFloat16);
    const CalibrationData held_out = LoadCalibrationData(
        {.source = kText, .num_samples = 24, .max_sequence_length = 128, .seed = 1},
        Tokenizer::Load(kModels + name), setup.checkpoint.config().vocab_size);
    ThreadPool pool(2);
    const auto difference_of = [&](const ModelWeights& weights) {
      const Decoder before(setup.checkpoint.config(), original);
      const Decoder after(setup.checkpoint.config(), weights);
      Fidelity total;
      for (const Fidelity& sequence : CompareModels({pool}, before, after, held_out.samples)) {
        total.Add(sequence);
      }
      return total.mean_abs_logprob_difference();
    };
    EXPECT_LT(difference_of(ours.weights), 0.9 * difference_of(reference.weights)) << name;
  }
}

TEST(CalibrateModel, ExpertsScopeTouchesNothingElse) {
  const CalibrationCase setup("tiny-qwen3-moe");
  const ModelWeights before = LoadWeights(setup.checkpoint, at::kBFloat16);
  const Calibrated run = setup.Calibrate(CalibrateMethod::kGptq, QuantScope::kExperts);
  for (size_t i = 0; i < before.size(); ++i) {
    const bool is_expert = before[i].spec.role == WeightRole::kExpert;
    EXPECT_EQ(run.weights[i].is_quantized(), is_expert);
    if (!is_expert) {
      EXPECT_TRUE(at::equal(run.weights[i].dense, before[i].dense));
    }
  }
}

TEST(CalibrateModel, ExpertsCountTheTokensRoutedToThemAndColdOnesAreCalibratedToo) {
  const CalibrationCase setup("tiny-qwen3-moe", 1);
  const Calibrated run = setup.Calibrate(CalibrateMethod::kGptq, QuantScope::kExperts);
  std::map<std::string, int64_t> tokens_of_layer;
  bool has_cold = false;
  for (const ModuleReport& report : run.reports) {
    EXPECT_EQ(report.fallback, "") << report.module;
    EXPECT_LT(report.relative_error, report.rtn_relative_error) << report.module;
    has_cold = has_cold || report.num_tokens == 0;
    if (report.module.ends_with("gate_proj")) {
      tokens_of_layer[report.module.substr(0, report.module.find(".mlp"))] += report.num_tokens;
    }
  }
  EXPECT_TRUE(has_cold);
  EXPECT_EQ(tokens_of_layer.size(), 4u);
  const int64_t experts_per_token = setup.checkpoint.config().num_experts_per_tok;
  for (const auto& [layer, tokens] : tokens_of_layer) {
    EXPECT_EQ(tokens, experts_per_token * setup.data.num_tokens) << layer;
  }
}

TEST(CalibrateModel, ReferenceShowsEveryTokenToEveryExpert) {
  const CalibrationCase setup("tiny-qwen3-moe", 4);
  const Calibrated run = setup.Calibrate(CalibrateMethod::kReference, QuantScope::kExperts);
  EXPECT_EQ(run.reports.size(), 4u * 8u * 3u);
  for (const ModuleReport& report : run.reports) {
    EXPECT_EQ(report.num_tokens, setup.data.num_tokens) << report.module;
  }
}

TEST(CalibrateModel, NaNNamesModuleAndSamples) {
  const CalibrationCase setup("tiny-llama", 2);
  Calibrated run{{}, LoadWeights(setup.checkpoint, at::kBFloat16)};
  const int norm = run.weights.Find("model.layers.1.post_attention_layernorm.weight");
  run.weights[static_cast<size_t>(norm)].dense.data_ptr<at::BFloat16>()[3] =
      std::numeric_limits<float>::quiet_NaN();
  try {
    setup.Calibrate(CalibrateMethod::kGptq, QuantScope::kAllLinear, 2, run);
    FAIL() << "no error";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("model.layers.1.mlp.gate_proj"), std::string::npos) << message;
    EXPECT_NE(message.find("feature 3"), std::string::npos) << message;
    EXPECT_NE(message.find(std::to_string(setup.data.rows[0])), std::string::npos) << message;
  }
}

TEST(RoundWeight, GivesTheQuantisersOwnCodes) {
  const CalibrationCase setup("tiny-llama", 1);
  ThreadPool pool(2);
  ModelWeights weights = LoadWeights(setup.checkpoint, at::kBFloat16);
  const ModelWeights before = LoadWeights(setup.checkpoint, at::kBFloat16);
  const QuantPlan plan = setup.Plan(QuantScope::kAllLinear, ScaleRule::kAbsmax7);
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!plan.is_quantized[i]) continue;
    RoundWeight({pool}, plan.scheme, weights[i]);
    const WeightSpec& spec = before[i].spec;
    const std::span<const BFloat16> dense(DataOf<BFloat16>(before[i].dense),
                                          static_cast<size_t>(before[i].dense.numel()));
    const QuantizedWeight expected =
        Quantize(pool, {spec.name, dense, spec.shape[0], spec.shape[1]}, plan.scheme);
    EXPECT_EQ(weights[i].codes.packed, expected.packed) << spec.name;
  }
}

}  // namespace
}  // namespace quatrain
