#include "rl/setup.h"

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "calibrate/quant_plan.h"
#include "quant/metadata.h"
#include "rl/training_plan.h"

namespace quatrain {
namespace {

constexpr const char* kFlagVariable = "OPEN_TRAINING_INT4_FAKE_QAT_FLAG";
constexpr const char* kGroupVariable = "OPEN_TRAINING_INT4_GROUP_SIZE";

[[noreturn]] void Usage(const std::string& where, const std::string& what,
                        const std::string& expected, const std::string& found,
                        const std::string& todo) {
  throw Error(ErrorCode::kUsage,
              {.where = where, .what = what, .expected = expected, .found = found, .todo = todo});
}

QatDecision DecideForBf16Checkpoint(const QatArgs& args, bool is_qat) {
  if (!is_qat) {
    if (args.requantise_group_size.has_value()) {
      Log().warn("--requantise-group-size has no effect without an INT4 --hf-checkpoint");
    }
    return {QatMode::kBf16, 0};
  }
  if (args.rollout_weights == "bf16") {
    if (args.quant_group_size == 0) {
      Usage("--rollout-weights bf16", "the group size is not known from a BF16 checkpoint",
            "--quant-group-size N", "none", "Add --quant-group-size 32, for example");
    }
    Log().warn("mismatched: training reads INT4 weights, rollout BF16 ones");
    return {QatMode::kQatTrainBf16Rollout, args.quant_group_size};
  }
  Usage(
      "--hf-checkpoint",
      std::string(kFlagVariable) + "=1 asks for INT4 rollout weights, but the checkpoint has none",
      "an INT4 directory (config.json with a quantization_config)", "a BF16 one",
      "Convert it with 'quatrain convert' and pass the result; keep the BF16 directory for "
      "--ref-load. For the "
      "mismatched case add --rollout-weights bf16 --quant-group-size N");
}

// Group size of an INT4 checkpoint against the environment.
int64_t DecideGroupSize(const QatArgs& args, const QuantScheme& scheme) {
  const int64_t wanted = args.requantise_group_size.value_or(scheme.group_size);
  if (args.group_size.has_value() && *args.group_size != wanted) {
    Usage(kGroupVariable, "the group size disagrees with the checkpoint's",
          fmt::format("{} (from {})", wanted,
                      args.requantise_group_size ? "--requantise-group-size" : "--hf-checkpoint"),
          fmt::format("{}", *args.group_size),
          fmt::format("Set it to {}, or re-group from the masters with --requantise-group-size {}",
                      wanted, *args.group_size));
  }
  return args.requantise_group_size.value_or(0);
}

// Weights that neither table quantises are one tensor: the optimizer writes it once.
void ShareDense(const ModelWeights& from, ModelWeights* to) {
  for (size_t i = 0; i < from.size(); ++i) {
    if (!(*to)[i].is_quantized()) (*to)[i].dense = from[i].dense;
  }
}

// Bounds of the codes of an INT4 directory: quatrain.json's, else all that the bits can hold.
CodeGrid GridOfCheckpoint(const Checkpoint& hf) {
  const std::filesystem::path file = hf.repo().directory() / kMetadataFile;
  if (!std::filesystem::exists(file)) return GridOf(ScaleRule::kFrozen, hf.scheme()->num_bits);
  return ParseMetadata(ParseJson(ReadFile(file), file.string()), file.string()).grid;
}

void CheckSameModel(const Checkpoint& hf, const Checkpoint& ref) {
  const std::vector<WeightSpec> a = WeightTableOf(hf.config()), b = WeightTableOf(ref.config());
  bool is_same = a.size() == b.size();
  for (size_t i = 0; is_same && i < a.size(); ++i)
    is_same = a[i].name == b[i].name && a[i].shape == b[i].shape;
  if (!is_same) {
    Usage("--ref-load " + ref.name(), "it is another model than --hf-checkpoint",
          fmt::format("the {} weights of {}", a.size(), hf.name()),
          fmt::format("{} weights", b.size()),
          "Pass the BF16 directory that the INT4 one was converted from");
  }
}

}  // namespace

QatDecision DecideQat(const QatArgs& args, const std::optional<QuantScheme>& scheme) {
  const bool is_qat = args.fake_qat_flag.value_or(false);
  if (args.frozen_scales && (!is_qat || !scheme.has_value() || args.requantise_group_size)) {
    Usage("--scale-rule frozen, --qat-init calibrated",
          "there are no calibrated scales to train under",
          fmt::format("{}=1, an INT4 --hf-checkpoint and its own group size", kFlagVariable),
          !is_qat               ? "the flag off"
          : !scheme.has_value() ? "a BF16 checkpoint"
                                : "--requantise-group-size",
          "Drop them, or convert the model with 'quatrain convert' and train with QAT on");
  }
  if (!scheme.has_value()) return DecideForBf16Checkpoint(args, is_qat);
  if (!args.rollout_weights.empty() || args.quant_group_size != 0) {
    Usage("--rollout-weights, --quant-group-size", "they are for a BF16 --hf-checkpoint", "neither",
          "an INT4 checkpoint", "Drop them; the group size is the checkpoint's");
  }
  const int64_t group_size = DecideGroupSize(args, *scheme);
  if (is_qat) return {QatMode::kQat, group_size};
  Log().warn(
      "mismatched: {} is off, so training reads BF16 weights while rollout reads INT4 ones that "
      "are made anew "
      "after every step",
      kFlagVariable);
  return {QatMode::kBf16TrainInt4Rollout, group_size};
}

CodeGrid DecideGrid(const QatArgs& args, const std::optional<QuantScheme>& scheme,
                    const CodeGrid& checkpoint_grid) {
  if (!scheme.has_value()) {
    const QuantScheme fresh;
    return NarrowGrid(fresh.num_bits, args.code_max == 0 ? fresh.grid().hi : args.code_max,
                      "--code-max");
  }
  if (args.code_max != 0 && args.code_max != checkpoint_grid.hi) {
    Usage("--code-max", "the largest code disagrees with the checkpoint's",
          fmt::format("{} (from --hf-checkpoint)", checkpoint_grid.hi),
          fmt::format("{}", args.code_max),
          "Drop the flag, or convert the model with it: quatrain convert --method rtn --code-max " +
              fmt::format("{}", args.code_max));
  }
  return NarrowGrid(checkpoint_grid.num_bits, checkpoint_grid.hi, "--hf-checkpoint");
}

ModelWeights TrainingModels::MakeQuantized(const QatArgs& args) {
  if (qat_.mode != QatMode::kQatTrainBf16Rollout) {
    scheme_ = hf_->scheme();
    ModelWeights loaded = LoadWeights(*hf_, at::kBFloat16);
    if (args.frozen_scales) return loaded;
    return AllocateLike(loaded, qat_.group_size);
  }
  const bool is_all_linear =
      args.scope.empty() ? hf_->config().num_experts == 0 : args.scope == "all-linear";
  const std::vector<WeightSpec> table = WeightTableOf(hf_->config());
  QuantScheme wanted;
  wanted.group_size = qat_.group_size;
  const QuantPlan plan =
      MakeQuantPlan(table, wanted, is_all_linear ? QuantScope::kAllLinear : QuantScope::kExperts,
                    Indivisible::kRefuse);
  scheme_ = plan.scheme;
  std::vector<Weight> format;
  for (size_t i = 0; i < table.size(); ++i) {
    Weight weight{table[i], {}, {}};
    if (plan.is_quantized[i]) {
      weight.codes.num_bits = plan.scheme.num_bits;
      weight.codes.out_features = table[i].shape[0];
      weight.codes.in_features = table[i].shape[1];
    }
    format.push_back(std::move(weight));
  }
  return AllocateLike(ModelWeights(std::move(format)), qat_.group_size);
}

TrainingModels::TrainingModels(const RlConfig& config) {
  hf_ = std::make_unique<Checkpoint>(config.checkpoint.hf_checkpoint);
  qat_ = DecideQat(config.qat, hf_->scheme());
  if (!config.checkpoint.ref_load.empty()) {
    ref_ = std::make_unique<Checkpoint>(config.checkpoint.ref_load);
    CheckSameModel(*hf_, *ref_);
    if (ref_->scheme().has_value()) {
      Usage("--ref-load " + ref_->name(), "the reference must be full precision",
            "a BF16 directory", "an INT4 one",
            "Pass the directory that --hf-checkpoint was converted from");
    }
  } else if (hf_->scheme().has_value()) {
    Usage("--ref-load", "training an INT4 --hf-checkpoint needs the BF16 weights it came from",
          "a BF16 directory", "none", "Pass the directory that --hf-checkpoint was converted from");
  }
  CheckTrainingPlan(config, PlanTraining(config, *hf_, qat_.mode));
  start_weights_.emplace(LoadWeights(start(), at::kBFloat16));
  if (qat_.mode == QatMode::kBf16) {
    trained_.emplace(AllocateLike(*start_weights_, 0));
  } else {
    ModelWeights quantized = MakeQuantized(config.qat);
    const CodeGrid grid = hf_->scheme() ? GridOfCheckpoint(*hf_) : CodeGrid{};
    scheme_->scale_rule = config.qat.frozen_scales ? ScaleRule::kFrozen : ScaleRule::kAbsmax7;
    scheme_->frozen_grid =
        config.qat.frozen_scales ? grid : DecideGrid(config.qat, hf_->scheme(), grid);
    if (qat_.group_size != 0) scheme_->group_size = qat_.group_size;
    if (qat_.mode == QatMode::kQat) {
      trained_.emplace(std::move(quantized));
    } else {
      ModelWeights dense = AllocateLike(*start_weights_, 0);
      ShareDense(dense, &quantized);
      const bool trains_dense = qat_.mode == QatMode::kBf16TrainInt4Rollout;
      trained_.emplace(std::move(trains_dense ? dense : quantized));
      rollout_.emplace(std::move(trains_dense ? quantized : dense));
    }
    if (num_quantized() == 0) {
      throw Error(ErrorCode::kData, {.where = hf_->name(),
                                     .what = "quantisation is on, but nothing is quantised",
                                     .expected = "linear weights with weight_packed",
                                     .found = "none",
                                     .todo = "Convert the model with 'quatrain convert'"});
    }
  }
  trained_decoder_ = std::make_unique<Decoder>(hf_->config(), *trained_);
  if (rollout_) rollout_decoder_ = std::make_unique<Decoder>(hf_->config(), *rollout_);
  if (config.algorithm.loss.kl_loss.has_value() || config.algorithm.kl_coef != 0.0) {
    reference_decoder_ = std::make_unique<Decoder>(hf_->config(), *start_weights_);
  }
}

void TrainingModels::ReleaseStart() {
  if (reference_decoder_ == nullptr) start_weights_.reset();
}

const ModelWeights* TrainingModels::quantized_table() const {
  if (qat_.mode == QatMode::kBf16) return nullptr;
  return qat_.mode == QatMode::kBf16TrainInt4Rollout ? &*rollout_ : &*trained_;
}

int64_t TrainingModels::num_quantized() const {
  const ModelWeights* table = quantized_table();
  int64_t count = 0;
  for (size_t i = 0; table != nullptr && i < table->size(); ++i)
    count += (*table)[i].is_quantized();
  return count;
}

}  // namespace quatrain
