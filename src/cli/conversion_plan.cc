#include "cli/conversion_plan.h"

#include <algorithm>
#include <map>

#include "base/metrics.h"
#include "ops/linear_ops.h"

namespace quatrain {
namespace {

constexpr double kBatchTokens = 1024;  // of calibration; longer samples run alone

double ElementsOf(const WeightSpec& spec) {
  double count = 1;
  for (const int64_t size : spec.shape) count *= static_cast<double>(size);
  return count;
}

// Multiplications and additions a second of a BF16 linear layer.
double MeasureRate(ThreadPool& pool) {
  constexpr int64_t kSize = 512;
  constexpr double kSeconds = 0.03;
  const OpContext ctx{pool};
  const at::Tensor x_TI = ZeroTensor({kSize, kSize}, at::kBFloat16);
  const at::Tensor weight_OI = ZeroTensor({kSize, kSize}, at::kBFloat16);
  const WeightView view = {.type = WeightType::kBFloat16,
                           .out_features = kSize,
                           .in_features = kSize,
                           .data = weight_OI.const_data_ptr()};
  const Timer timer;
  double operations = 0;
  while (timer.seconds() < kSeconds) {
    Linear(ctx, x_TI, view);
    operations += 2.0 * kSize * kSize * kSize;
  }
  return operations / timer.seconds();
}

// Share of the tokens that an expert sees.
double TokenShare(const ModelConfig& config, const WeightSpec& spec, bool all_experts) {
  if (spec.role != WeightRole::kExpert || all_experts) return 1.0;
  return static_cast<double>(config.num_experts_per_tok) / static_cast<double>(config.num_experts);
}

// Operations of calibrating on this many tokens: two passes (of one model, or of the unquantised
// one and ours), Hessians and our errors of inputs, factors, our corrections and solving.
double Operations(const Checkpoint& source, const QuantPlan& plan, bool is_reference,
                  double num_tokens) {
  double total = 0;
  const std::vector<WeightSpec>& table = source.table();
  for (size_t i = 0; i < table.size(); ++i) {
    const WeightSpec& spec = table[i];
    if (spec.layer < 0 || spec.shape.size() != 2) continue;
    const double n = static_cast<double>(spec.shape[0]), k = static_cast<double>(spec.shape[1]);
    const double tokens = num_tokens * TokenShare(source.config(), spec, is_reference);
    total += 2 * 2 * n * k * tokens;
    if (!plan.is_quantized[i]) continue;
    const std::string module = spec.module();
    // Of q, k and v, and of gate and up, one input is summed and factored for all.
    const bool shares =
        module.ends_with("k_proj") || module.ends_with("v_proj") || module.ends_with("up_proj");
    if (!shares) total += k * k * tokens + k * k * k / 3;
    if (!shares && !is_reference) total += 2 * k * k * tokens + 2 * k * k * k;
    total += (is_reference ? 4 : 6) * n * k * k;  // the solver, and the losses of the report
  }
  return total;
}

}  // namespace

std::vector<WeightFormat> FormatsOf(const std::vector<WeightSpec>& table, const QuantPlan& plan) {
  std::vector<WeightFormat> formats(table.size());
  for (size_t i = 0; i < table.size(); ++i) {
    if (!plan.is_quantized[i]) continue;
    formats[i] = {plan.scheme.num_bits, plan.scheme.GroupSizeFor(table[i].shape[1])};
  }
  return formats;
}

uint64_t StoredBytes(const WeightSpec& spec, const WeightFormat& format) {
  if (format.num_bits == 0) return 2 * static_cast<uint64_t>(ElementsOf(spec));
  return static_cast<uint64_t>(
      FileBytes(spec.shape[0], spec.shape[1], format.num_bits, format.group_size));
}

ConversionPlan PlanConversion(ThreadPool& pool, const Checkpoint& source, const QuantPlan& plan,
                              const CalibrateOptions& options, const CalibrationData* data) {
  const std::vector<WeightSpec>& table = source.table();
  const std::vector<WeightFormat> formats = FormatsOf(table, plan);
  std::map<int64_t, double> weights, hessians;  // by layer
  double largest_weight = 0, largest_hessian = 0, widest = 0, output = 0, read = 0;
  for (size_t i = 0; i < table.size(); ++i) {
    const WeightSpec& spec = table[i];
    const double stored = static_cast<double>(StoredBytes(spec, formats[i]));
    const double bytes = 2 * ElementsOf(spec) + (formats[i].num_bits == 0 ? 0 : stored);
    output += stored;
    read += bytes;
    weights[spec.layer] += bytes;
    largest_weight = std::max(largest_weight, bytes);
    if (spec.layer >= 0) widest = std::max(widest, static_cast<double>(spec.shape[0]));
    if (formats[i].num_bits == 0) continue;
    const double hessian = 4.0 * static_cast<double>(spec.shape[1] * spec.shape[1]);
    hessians[spec.layer] += hessian;
    largest_hessian = std::max(largest_hessian, hessian);
  }
  double mapped = 0;  // pages of the source that are read and then let go
  for (const TensorView& tensor : source.repo().tensors().tensors()) {
    mapped = std::max(mapped, static_cast<double>(tensor.bytes.size()));
  }
  for (const std::string& name : source.UnknownTensors()) {
    output += static_cast<double>(source.repo().tensors().Get(name).bytes.size());
  }
  ConversionPlan result{.output_bytes = static_cast<uint64_t>(output)};
  constexpr double kDiskRate = 5e8;  // bytes a second, read, rounded and written
  result.seconds = read / kDiskRate;
  // As stored, in FP32 for its report, and its codes.
  double memory = mapped + largest_weight * 3;
  if (data != nullptr) {
    double largest_layer = 0, largest_hessians = 0;
    for (const auto& [layer, bytes] : weights) largest_layer = std::max(largest_layer, bytes);
    for (const auto& [layer, bytes] : hessians)
      largest_hessians = std::max(largest_hessians, bytes);
    const double hidden = static_cast<double>(source.config().hidden_size);
    const double expert_rows =
        static_cast<double>(source.config().num_experts_per_tok) *
        (2 * hidden + 4 * static_cast<double>(source.config().moe_intermediate_size));
    memory += largest_layer + largest_hessians + 3 * largest_hessian +
              kBatchTokens * 2 * (8 * hidden + 4 * widest + expert_rows);
    double heldout_tokens = 0;
    for (const std::vector<int32_t>& ids : data->heldout) {
      heldout_tokens += static_cast<double>(ids.size());
    }
    const double tokens = static_cast<double>(data->num_tokens);
    // Our own method runs the unquantised model beside.
    const bool is_reference = options.method == CalibrateMethod::kReference;
    const double models = is_reference ? 1 : 2;
    result.cache_bytes =
        static_cast<uint64_t>(2 * 2 * (models * tokens + 2 * heldout_tokens) * hidden) +
        Calibration::StepBytes(source.config(), *data, options.method);
    result.seconds +=
        Operations(source, plan, is_reference, tokens + 2 * heldout_tokens) / MeasureRate(pool);
  }
  result.memory_bytes = static_cast<uint64_t>(memory);
  return result;
}

std::string GuessText(double seconds) {
  if (seconds < 90) return fmt::format("about {:.0f} s", std::max(1.0, seconds));
  if (seconds < 5400) return fmt::format("about {:.0f} min", seconds / 60);
  return fmt::format("about {:.1f} h", seconds / 3600);
}

}  // namespace quatrain
