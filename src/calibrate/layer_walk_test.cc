#include "calibrate/layer_walk.h"

#include <gtest/gtest.h>

#include <set>

#include "models/loader.h"

namespace quatrain {
namespace {

const std::string kModels = std::string(QT_SOURCE_DIR) + "/examples/models/";

struct Model {
  explicit Model(const std::string& name)
      : checkpoint(kModels + name), weights(LoadWeights(checkpoint, at::kBFloat16)) {}
  Checkpoint checkpoint;
  ModelWeights weights;
  Decoder decoder{checkpoint.config(), weights};
};

std::vector<SampleBatch> Batches(const OpContext& ctx, const Decoder& decoder) {
  std::vector<SampleBatch> batches;
  for (const std::vector<int32_t>& ids : {std::vector<int32_t>{4, 9, 77, 300}, {5, 6, 7}}) {
    batches.push_back({MakeVarlenBatch({ids}), "here", {}, {}});
    batches.back().x_TD = batches.back().reference_TD = decoder.Embed(ctx, batches.back().batch);
  }
  return batches;
}

LayerInputs InputsOf(const OpContext& ctx, const Model& model, LayerStep step, int64_t layer) {
  std::vector<bool> is_wanted;
  for (size_t i = 0; i < model.weights.size(); ++i) {
    const WeightSpec& spec = model.weights[i].spec;
    const bool is_linear = spec.role == WeightRole::kAttention || spec.role == WeightRole::kMlp ||
                           spec.role == WeightRole::kExpert;
    is_wanted.push_back(is_linear && spec.shape.size() == 2 && StepOf(spec) == step);
  }
  return {ctx, model.weights, is_wanted, layer, ExpertTokens::kRouted, 7};
}

class LayerWalkTest : public testing::TestWithParam<std::string> {};

TEST_P(LayerWalkTest, StepsGiveTheHiddenStatesOfTheWholeForward) {
  ThreadPool pool(2);
  const OpContext ctx{pool};
  const Model model(GetParam());
  std::vector<SampleBatch> batches = Batches(ctx, model.decoder);
  const std::vector<SampleBatch> plain = batches;
  for (int64_t layer = 0; layer < 2; ++layer) {
    LayerWalk walk(ctx, model.decoder, model.decoder, layer, batches);
    for (const LayerStep step : kLayerSteps) {
      LayerInputs inputs = InputsOf(ctx, model, step, layer);
      ASSERT_FALSE(inputs.empty());
      walk.Run(step, inputs);
      for (const LayerInput& input : inputs.Finish()) {
        for (const float moment : input.error.moment_IM) ASSERT_EQ(moment, 0.0f);
      }
    }
    walk.Finish();
  }
  for (size_t i = 0; i < batches.size(); ++i) {
    at::Tensor expected = plain[i].x_TD;
    for (int64_t layer = 0; layer < 2; ++layer) {
      expected = model.decoder.ForwardLayer(ctx, layer, expected, plain[i].batch);
    }
    EXPECT_TRUE(at::equal(batches[i].x_TD, expected));
    EXPECT_TRUE(at::equal(batches[i].reference_TD, expected));
  }
}

TEST_P(LayerWalkTest, WeightsSeeTheErrorsOfThoseThatRanBeforeThem) {
  ThreadPool pool(2);
  const OpContext ctx{pool};
  const Model reference(GetParam());
  Model model(GetParam());
  std::vector<SampleBatch> batches = Batches(ctx, model.decoder);
  const std::vector<SampleBatch> plain = batches;
  LayerWalk walk(ctx, model.decoder, reference.decoder, 0, batches);
  for (const LayerStep step : kLayerSteps) {
    LayerInputs inputs = InputsOf(ctx, model, step, 0);
    walk.Run(step, inputs);
    bool has_error = false;
    for (const LayerInput& input : inputs.Finish()) {
      for (const float moment : input.error.moment_IM) has_error = has_error || moment != 0.0f;
    }
    EXPECT_EQ(has_error, step != LayerStep::kQkv);
    if (step != LayerStep::kQkv) continue;
    const int v_proj = model.weights.Find("model.layers.0.self_attn.v_proj.weight");
    model.weights[static_cast<size_t>(v_proj)].dense.mul_(1.5);  // as if badly quantised
  }
  walk.Finish();
  for (size_t i = 0; i < batches.size(); ++i) {
    EXPECT_TRUE(at::equal(batches[i].x_TD,
                          model.decoder.ForwardLayer(ctx, 0, plain[i].x_TD, plain[i].batch)));
    EXPECT_TRUE(at::equal(batches[i].reference_TD,
                          reference.decoder.ForwardLayer(ctx, 0, plain[i].x_TD, plain[i].batch)));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, LayerWalkTest, testing::Values("tiny-llama", "tiny-qwen3-moe"),
                         [](const auto& info) {
                           return info.param == "tiny-llama" ? "Dense" : "Experts";
                         });

}  // namespace
}  // namespace quatrain
