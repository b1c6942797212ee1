#include "train/parameter.h"

#include <algorithm>
#include <cmath>

#include "kernels/elementwise.h"
#include "kernels/int4_quantize.h"

namespace quatrain {
namespace {

// A master that cannot be quantised is refused by name before anything is
// written.
void CheckStart(const Weight& weight, const at::Tensor& master) {
  const at::Tensor rounded = master.to(at::kBFloat16);
  const int64_t columns = weight.spec.shape.back();
  const auto bad = FindBadWeight(DataOf<BFloat16>(rounded), master.numel() / columns, columns);
  if (bad.has_value()) {
    throw Error(ErrorCode::kData,
                {.where = weight.spec.name,
                 .what = fmt::format("weight at row {}, column {} cannot be trained or quantised",
                                     bad->row, bad->column),
                 .expected = "finite values below 3.39e38",
                 .found = fmt::format("{}", bad->value),
                 .todo = "The checkpoint is damaged; fetch it again"});
  }
}

}  // namespace

Parameters::Parameters(const OpContext& ctx, const ModelWeights& start, ModelWeights* trained,
                       ModelWeights* rollout, const OptimizerConfig& config,
                       const QuantScheme& scheme, MasterStart master_start)
    : config_(config), scheme_(scheme), trained_(trained), rollout_(rollout) {
  QT_CHECK(
      start.size() == trained->size() && (rollout == nullptr || rollout->size() == start.size()),
      "weight tables of different models");
  for (size_t i = 0; i < start.size(); ++i) {
    QT_CHECK(start[i].spec.name == (*trained)[i].spec.name, "weight tables differ at {}",
             start[i].spec.name);
    specs_.push_back(start[i].spec);
    masters_.push_back(start[i].is_quantized() ? start[i].ToFloat32()
                                               : start[i].dense.to(at::kFloat).clone());
    CheckStart(start[i], masters_.back());
    exp_avg_.push_back(at::zeros_like(masters_.back()));
    exp_avg_sq_.push_back(at::zeros_like(masters_.back()));
  }
  if (master_start == MasterStart::kCodes) MoveMastersIntoCells();
  WriteWeightFromMaster(ctx.pool, Tasks(nullptr));
}

// Lets the task write into a weight's buffers.
void Parameters::AddOutput(Weight& weight, AdamWTask* task) const {
  if (weight.is_quantized()) {
    QT_CHECK(task->packed == nullptr, "{} has two quantised outputs", weight.spec.name);
    QT_CHECK(weight.codes.num_bits == scheme_.num_bits, "{} has {} bits", weight.spec.name,
             weight.codes.num_bits);
    task->packed = weight.codes.packed.data();
    task->scale = weight.codes.scale.data();
    task->spec = {scheme_.scale_rule, scheme_.grid(), weight.codes.group_size};
  } else if (weight.dense.scalar_type() == at::kFloat) {
    task->weight_float = DataOf<float>(weight.dense);
  } else {
    BFloat16* data = DataOf<BFloat16>(weight.dense);
    QT_CHECK(task->weight_bf16 == nullptr || task->weight_bf16 == data,
             "{} has two BF16 tensors; the tables must share it", weight.spec.name);
    task->weight_bf16 = data;
  }
}

Weight* Parameters::QuantizedOf(size_t index) const {
  if ((*trained_)[index].is_quantized()) return &(*trained_)[index];
  if (rollout_ != nullptr && (*rollout_)[index].is_quantized()) return &(*rollout_)[index];
  return nullptr;
}

void Parameters::MoveMastersIntoCells() {
  QT_CHECK(scheme_.scale_rule == ScaleRule::kFrozen, "codes stay under frozen scales only");
  for (size_t i = 0; i < masters_.size(); ++i) {
    const Weight* weight = QuantizedOf(i);
    if (weight == nullptr) continue;
    const QuantizedWeight& codes = weight->codes;
    const int64_t words = PackedWords(codes.in_features, codes.num_bits);
    float* master = DataOf<float>(masters_[i]);
    for (int64_t row = 0; row < codes.out_features; ++row) {
      const int32_t* row_words = codes.packed.data() + row * words;
      for (int64_t k = 0; k < codes.in_features; ++k, ++master) {
        const BFloat16 scale =
            codes.scale[static_cast<size_t>(row * codes.num_groups() + k / codes.group_size)];
        *master = MoveIntoCell(ToFloat(ToBFloat16(*master)),
                               UnpackCode(row_words, k, codes.num_bits), scale, scheme_.grid());
      }
    }
  }
}

void Parameters::ZeroClippedGradients(const OpContext& ctx, Gradients& gradients) const {
  if (scheme_.scale_rule != ScaleRule::kFrozen) return;
  for (size_t i = 0; i < masters_.size(); ++i) {
    const Weight* weight = QuantizedOf(i);
    if (weight == nullptr || !gradients.IsTouched(static_cast<int>(i))) continue;
    const QuantizedWeight& codes = weight->codes;
    ZeroClippedGradient(ctx.pool, DataOf<float>(masters_[i]), codes.out_features, codes.in_features,
                        {scheme_.scale_rule, scheme_.grid(), codes.group_size}, codes.scale.data(),
                        DataOf<float>(gradients.Of(static_cast<int>(i))));
  }
}

std::vector<AdamWTask> Parameters::Tasks(Gradients* gradients) {
  std::vector<AdamWTask> tasks;
  for (size_t i = 0; i < masters_.size(); ++i) {
    AdamWTask task;
    task.name = specs_[i].name.c_str();
    task.master = DataOf<float>(masters_[i]);
    task.exp_avg = DataOf<float>(exp_avg_[i]);
    task.exp_avg_sq = DataOf<float>(exp_avg_sq_[i]);
    if (gradients != nullptr) task.grad = DataOf<float>(gradients->Of(static_cast<int>(i)));
    const std::vector<int64_t>& shape = specs_[i].shape;
    const bool is_vector = shape.size() == 1;
    task.out_features = is_vector ? 1 : shape[0];
    task.in_features = shape.back();
    task.weight_decay = is_vector && !config_.decay_vectors ? 0.0 : config_.weight_decay;
    AddOutput((*trained_)[i], &task);
    if (rollout_ != nullptr) AddOutput((*rollout_)[i], &task);
    tasks.push_back(task);
  }
  return tasks;
}

void Parameters::Restore(const OpContext& ctx, int64_t step) {
  step_ = step;
  WriteWeightFromMaster(ctx.pool, Tasks(nullptr));
}

Parameters::StepResult Parameters::Step(const OpContext& ctx, Gradients& gradients, double lr) {
  StepResult result;
  ZeroClippedGradients(ctx, gradients);
  result.grad_norm = GlobalNorm(ctx, gradients);
  if (!std::isfinite(result.grad_norm)) {
    throw Error(ErrorCode::kData, {.where = fmt::format("optimizer step {}, {}", step_ + 1,
                                                        FirstNonFinite(ctx, gradients)),
                                   .what = "the gradient is not finite",
                                   .todo = "Nothing was changed by this step. Lower --lr, or "
                                           "look at the last samples "
                                           "for degenerate rewards"});
  }
  AdamWStep step;
  step.lr = lr;
  step.beta1 = config_.adam_beta1;
  step.beta2 = config_.adam_beta2;
  step.eps = config_.adam_eps;
  step.step = ++step_;
  // torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)).
  if (config_.clip_grad > 0.0) {
    step.grad_scale = std::min(1.0, config_.clip_grad / (result.grad_norm + 1e-6));
  }
  result.stats = AdamWUpdate(ctx.pool, step, Tasks(&gradients));
  return result;
}

void Parameters::CheckWeights(const OpContext& ctx) {
  for (size_t i = 0; i < masters_.size(); ++i) {
    for (ModelWeights* table : {trained_, rollout_}) {
      if (table != nullptr && !IsCurrent(ctx, i, (*table)[i])) {
        throw Error(ErrorCode::kData,
                    {.where = specs_[i].name,
                     .what = table == trained_ && rollout_ != nullptr
                                 ? "the trained weight is not that of its master"
                                 : "the rollout's weight is not that of its master",
                     .expected = "the same bits",
                     .todo = "This is a bug of ours; please report it with the configuration"});
      }
    }
  }
}

bool Parameters::IsCurrent(const OpContext& ctx, size_t index, const Weight& weight) {
  Weight fresh = weight;  // scales too: under kFrozen they stay
  if (weight.dense.defined()) fresh.dense = at::empty_like(weight.dense);
  AdamWTask task;
  task.name = specs_[index].name.c_str();
  task.master = DataOf<float>(masters_[index]);
  const std::vector<int64_t>& shape = specs_[index].shape;
  task.out_features = shape.size() == 1 ? 1 : shape[0];
  task.in_features = shape.back();
  AddOutput(fresh, &task);
  WriteWeightFromMaster(ctx.pool, {&task, 1});
  if (!weight.is_quantized()) return at::equal(fresh.dense, weight.dense);
  return fresh.codes.packed == weight.codes.packed &&
         std::equal(fresh.codes.scale.begin(), fresh.codes.scale.end(), weight.codes.scale.begin(),
                    [](BFloat16 a, BFloat16 b) { return a.bits == b.bits; });
}

std::string Parameters::FirstNonFinite(const OpContext& ctx, Gradients& gradients) const {
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients.IsTouched(static_cast<int>(i))) continue;
    const at::Tensor& grad = gradients.Of(static_cast<int>(i));
    if (!std::isfinite(SumOfSquares(ctx.pool, DataOf<float>(grad), grad.numel())))
      return specs_[i].name;
  }
  return "all tensors together";
}

double GlobalNorm(const OpContext& ctx, Gradients& gradients) {
  double sum = 0.0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients.IsTouched(static_cast<int>(i))) continue;
    const at::Tensor& grad = gradients.Of(static_cast<int>(i));
    sum += SumOfSquares(ctx.pool, DataOf<float>(grad), grad.numel());
  }
  return std::sqrt(sum);
}

}  // namespace quatrain
