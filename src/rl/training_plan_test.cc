#include "rl/training_plan.h"

#include <gtest/gtest.h>

#include <limits>

namespace quatrain {
namespace {

RlConfig Config() {
  RlConfig config;
  config.checkpoint.save = testing::TempDir();
  config.rollout.rollout_batch_size = 4;
  config.batch.use_dynamic_batch_size = true;
  config.batch.max_tokens_per_gpu = 1000;
  return config;
}

TEST(TrainingPlan, CountsBytesOfEveryParameterOnce) {
  const Checkpoint model(std::string(QT_SOURCE_DIR) + "/examples/models/tiny-llama");
  const auto parameters = static_cast<uint64_t>(LoadWeights(model, at::kBFloat16).num_parameters());
  const TrainingPlan plain = PlanTraining(Config(), model, QatMode::kBf16);
  EXPECT_EQ(plain.optimizer_bytes, 16 * parameters);
  EXPECT_EQ(plain.weight_bytes, 4 * parameters);
  EXPECT_EQ(plain.checkpoint_bytes, 14 * parameters);
  const ModelConfig& config = model.config();
  EXPECT_EQ(plain.activation_bytes,
            static_cast<uint64_t>(2000 * config.hidden_size * (config.num_hidden_layers + 1)));
  RlConfig by_count = Config();
  by_count.batch.use_dynamic_batch_size = false;
  by_count.batch.micro_batch_size = 2;
  EXPECT_EQ(PlanTraining(by_count, model, QatMode::kBf16).activation_bytes,
            static_cast<uint64_t>(4 * config.max_position_embeddings * config.hidden_size *
                                  (config.num_hidden_layers + 1)));
  RlConfig recomputed = Config();
  recomputed.batch.trace_bytes = 0;
  EXPECT_EQ(PlanTraining(recomputed, model, QatMode::kBf16).memory_bytes() + (256 << 20),
            plain.memory_bytes());
  // A second table, and its export.
  const TrainingPlan mixed = PlanTraining(Config(), model, QatMode::kBf16TrainInt4Rollout);
  EXPECT_GT(mixed.weight_bytes, plain.weight_bytes);
  EXPECT_GT(mixed.checkpoint_bytes, plain.checkpoint_bytes);
}

TEST(TrainingPlan, WhatDoesNotFitIsRefused) {
  TrainingPlan plan;
  CheckTrainingPlan(Config(), plan);
  plan.optimizer_bytes = std::numeric_limits<uint64_t>::max() / 4;
  EXPECT_THROW(CheckTrainingPlan(Config(), plan), Error);
  plan = {};
  plan.checkpoint_bytes = std::numeric_limits<uint64_t>::max() / 4;
  EXPECT_THROW(CheckTrainingPlan(Config(), plan), Error);
}

}  // namespace
}  // namespace quatrain
