#include "rl/training_plan.h"

#include <algorithm>

#include "base/log.h"
#include "base/resources.h"

namespace quatrain {

TrainingPlan PlanTraining(const RlConfig& config, const Checkpoint& hf, QatMode mode) {
  uint64_t num_parameters = 0;
  for (const WeightSpec& spec : WeightTableOf(hf.config())) {
    uint64_t elements = 1;
    for (const int64_t size : spec.shape) elements *= static_cast<uint64_t>(size);
    num_parameters += elements;
  }
  const uint64_t bf16 = 2 * num_parameters;
  const uint64_t own_format = hf.repo().tensors().total_bytes();  // codes where it has them
  TrainingPlan plan;
  plan.weight_bytes = bf16 + (mode == QatMode::kBf16 ? bf16 : own_format);
  if (mode == QatMode::kBf16TrainInt4Rollout || mode == QatMode::kQatTrainBf16Rollout) {
    plan.weight_bytes += bf16;
  }
  // train/dead_zone.h keeps two copies of the codes.
  if (mode != QatMode::kBf16) plan.weight_bytes += num_parameters;
  plan.optimizer_bytes = 16 * num_parameters;
  const ModelConfig& model = hf.config();
  const int64_t micro_batch_tokens =
      config.batch.use_dynamic_batch_size
          ? config.batch.max_tokens_per_gpu
          : config.batch.micro_batch_size * model.max_position_embeddings;
  const int64_t tokens = std::min(micro_batch_tokens, config.rollout.rollout_batch_size *
                                                          config.rollout.n_samples_per_prompt *
                                                          model.max_position_embeddings);
  plan.activation_bytes =
      static_cast<uint64_t>(2 * tokens * model.hidden_size * (model.num_hidden_layers + 1));
  plan.trace_bytes = static_cast<uint64_t>(config.batch.trace_bytes);
  plan.checkpoint_bytes = bf16 + 12 * num_parameters + (mode == QatMode::kBf16 ? 0 : own_format);
  return plan;
}

void CheckTrainingPlan(const RlConfig& config, const TrainingPlan& plan) {
  RequireMemory("train this model", plan.memory_bytes(),
                "Train a smaller model, lower --max-tokens-per-gpu (or --micro-batch-size), pass "
                "--recompute-granularity full, or take a machine with more memory.");
  RequireDisk(config.checkpoint.save, plan.checkpoint_bytes,
              "Free some, or choose a --save on another disk.");
  Log().info(
      "plan: weights {}, masters, moments and gradients {}, activations {}; {} of disk for "
      "each checkpoint",
      SizeText(plan.weight_bytes), SizeText(plan.optimizer_bytes),
      SizeText(plan.activation_bytes + plan.trace_bytes), SizeText(plan.checkpoint_bytes));
}

}  // namespace quatrain
