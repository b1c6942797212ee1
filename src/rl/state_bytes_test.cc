#include "rl/state_bytes.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

TEST(MeasureState, CountsEveryPartOnceInBytesAParameter) {
  const std::string model = std::string(QT_SOURCE_DIR) + "/examples/models/tiny-qwen3-moe";
  for (const bool is_mixed : {false, true}) {
    RlConfig config;
    config.checkpoint.hf_checkpoint = model;
    config.checkpoint.save = testing::TempDir();
    config.rollout.rollout_batch_size = 1;
    config.algorithm.kl_coef = 0.1;
    if (is_mixed) {
      config.qat.fake_qat_flag = true;
      config.qat.rollout_weights = "bf16";
      config.qat.quant_group_size = 32;
      config.qat.scope = "experts";
    }
    TrainingModels models(config);
    ThreadPool pool(1);
    Parameters parameters({pool}, models.start_weights(), &models.trained(),
                          models.separate_rollout(), {}, models.scheme().value_or(QuantScheme{}),
                          MasterStart::kValues);
    const int64_t count = models.trained().num_parameters();
    const StateBytes state = MeasureState(models, parameters, 4 * count, is_mixed ? count : 0);
    Json row;
    state.AppendTo(row);
    const auto of = [&](const std::string& part) {
      return row.value("memory/" + part + "_bytes_per_parameter", 0.0);
    };
    EXPECT_EQ(of("masters"), 4.0);
    EXPECT_EQ(of("moments"), 8.0);
    EXPECT_EQ(of("gradients"), 4.0);
    EXPECT_EQ(of("reference"), 2.0);
    if (is_mixed) {
      // Codes and scales, 0.5625 bytes, for the experts; what is BF16 in both tables counts once.
      EXPECT_LT(of("weights"), 2.0);
      EXPECT_GT(of("weights"), 0.5625);
      EXPECT_NEAR(of("weights"), 2.0 - of("rollout_weights") * (2.0 - 0.5625) / 2.0, 1e-9);
      EXPECT_EQ(of("code_history"), 1.0);
    } else {
      EXPECT_EQ(of("weights"), 2.0);
      EXPECT_EQ(of("rollout_weights"), 0.0);
      EXPECT_EQ(of("state"), 20.0);
      EXPECT_NE(state.Text().find("in all 20.00"), std::string::npos) << state.Text();
    }
  }
}

}  // namespace
}  // namespace quatrain
