#include "cli/memory_need.h"

#include <algorithm>

#include "cli/conversion_plan.h"

namespace quatrain {
namespace {

constexpr double kMasterMomentsGradient = 4 + 8 + 4;  // bytes a parameter
constexpr double kBf16 = 2;

double ElementsOf(const WeightSpec& spec) {
  double count = 1;
  for (const int64_t size : spec.shape) count *= static_cast<double>(size);
  return count;
}

}  // namespace

MemoryNeed MemoryNeedOf(const AdviceInput& input, int64_t group_size) {
  QuantScheme scheme;
  scheme.group_size = group_size;
  const QuantPlan plan = MakeQuantPlan(input.table, scheme, input.scope, Indivisible::kKeep);
  const std::vector<WeightFormat> formats = FormatsOf(input.table, plan);
  MemoryNeed need;
  for (size_t i = 0; i < input.table.size(); ++i) {
    const double elements = ElementsOf(input.table[i]);
    const auto stored = static_cast<double>(StoredBytes(input.table[i], formats[i]));
    need.parameters += elements;
    if (formats[i].num_bits != 0) need.quantised_parameters += elements;
    need.bf16_bytes += kBf16 * elements;
    need.int4_bytes += stored;
    need.bf16_train_bytes += (kMasterMomentsGradient + kBf16) * elements;
    need.qat_train_bytes += kMasterMomentsGradient * elements + stored;
  }
  const ModelConfig& config = input.config;
  need.kv_bytes_per_token =
      kBf16 * 2 *
      static_cast<double>(config.num_hidden_layers * config.num_key_value_heads * config.head_dim);
  return need;
}

RolloutFit FitRollout(const AdviceInput& input, double weight_bytes) {
  const double kv_heads = static_cast<double>(input.config.num_key_value_heads);
  const double kv_bytes = MemoryNeedOf(input, 32).kv_bytes_per_token;
  for (int64_t tp = 1; tp <= input.machine.num_devices; tp *= 2) {
    const auto devices = static_cast<double>(tp);
    // More devices than key-value heads hold each head more than once.
    const double kv_per_device = kv_bytes / std::min(devices, kv_heads);
    const double room = kUsableShare * input.machine.device_bytes - weight_bytes / devices;
    if (room < kv_per_device * static_cast<double>(input.context_tokens)) continue;
    return {.tp = tp,
            .kv_tokens = room / kv_per_device,
            .engines = static_cast<double>(input.machine.num_devices / tp)};
  }
  return {};
}

}  // namespace quatrain
