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

// Two batches, and their embeddings as both models' hidden states.
struct Samples {
  Samples(const OpContext& ctx, const Decoder& decoder)
      : hidden({4, 3, 4, 3}, decoder.config().hidden_size, std::nullopt),
        attended({4, 3}, decoder.config().num_attention_heads * decoder.config().head_dim,
                 std::nullopt),
        activated(ActivatedStates(decoder.config(), 0, {4, 3}, std::nullopt)) {
    for (const std::vector<int32_t>& ids : {std::vector<int32_t>{4, 9, 77, 300}, {5, 6, 7}}) {
      const size_t i = batches.size();
      batches.push_back({MakeVarlenBatch({ids}), "here"});
      embeddings.push_back(decoder.Embed(ctx, batches.back().batch));
      hidden.Write(i, embeddings.back());
      hidden.Write(2 + i, embeddings.back());
    }
    hidden.Advance();
  }
  std::vector<SampleBatch> batches;
  std::vector<at::Tensor> embeddings;
  HiddenStates hidden, attended, activated;
};

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
  Samples samples(ctx, model.decoder);
  int num_calls = 0;
  for (int64_t layer = 0; layer < 2; ++layer) {
    LayerWalk walk(ctx, model.decoder, model.decoder, layer, samples.batches,
                   {samples.hidden, samples.attended, samples.activated});
    for (const LayerStep step : kLayerSteps) {
      LayerInputs inputs = InputsOf(ctx, model, step, layer);
      ASSERT_FALSE(inputs.empty());
      walk.Run(step, inputs, [&] { ++num_calls; });
      for (const LayerInput& input : inputs.Finish()) {
        for (const float moment : input.error.moment_IM) ASSERT_EQ(moment, 0.0f);
      }
    }
    walk.Finish([&] { ++num_calls; });
    samples.hidden.Advance();
  }
  EXPECT_EQ(num_calls, 2 * 5 * 2);
  for (size_t i = 0; i < 2; ++i) {
    at::Tensor expected = samples.embeddings[i];
    for (int64_t layer = 0; layer < 2; ++layer) {
      expected = model.decoder.ForwardLayer(ctx, layer, expected, samples.batches[i].batch);
    }
    EXPECT_TRUE(at::equal(samples.hidden.Read(i), expected));
    EXPECT_TRUE(at::equal(samples.hidden.Read(2 + i), expected));
  }
}

TEST_P(LayerWalkTest, WeightsSeeTheErrorsOfThoseThatRanBeforeThem) {
  ThreadPool pool(2);
  const OpContext ctx{pool};
  const Model reference(GetParam());
  Model model(GetParam());
  Samples samples(ctx, model.decoder);
  LayerWalk walk(ctx, model.decoder, reference.decoder, 0, samples.batches,
                 {samples.hidden, samples.attended, samples.activated});
  for (const LayerStep step : kLayerSteps) {
    LayerInputs inputs = InputsOf(ctx, model, step, 0);
    walk.Run(step, inputs, [] {});
    bool has_error = false;
    for (const LayerInput& input : inputs.Finish()) {
      for (const float moment : input.error.moment_IM) has_error = has_error || moment != 0.0f;
    }
    EXPECT_EQ(has_error, step != LayerStep::kQkv);
    if (step != LayerStep::kQkv) continue;
    const int v_proj = model.weights.Find("model.layers.0.self_attn.v_proj.weight");
    model.weights[static_cast<size_t>(v_proj)].dense.mul_(1.5);  // as if badly quantised
  }
  walk.Finish([] {});
  for (size_t i = 0; i < 2; ++i) {
    const at::Tensor& x_TD = samples.embeddings[i];
    const ForwardBatch& batch = samples.batches[i].batch;
    EXPECT_TRUE(
        at::equal(samples.hidden.ReadWritten(i), model.decoder.ForwardLayer(ctx, 0, x_TD, batch)));
    EXPECT_TRUE(at::equal(samples.hidden.ReadWritten(2 + i),
                          reference.decoder.ForwardLayer(ctx, 0, x_TD, batch)));
  }
}

TEST_P(LayerWalkTest, BytesOfAStepAreThoseOfTheLargestLayer) {
  ModelConfig config = Checkpoint(kModels + GetParam()).config();
  const auto bytes_of = [&](int64_t layer) {
    return AttendedStates(config, {4, 3}, std::nullopt).size_bytes() +
           ActivatedStates(config, layer, {4, 3}, std::nullopt).size_bytes();
  };
  EXPECT_EQ(StepStateBytes(config, 7), bytes_of(0));
  // A dense layer among experts, wider than they are together.
  config.intermediate_size = 100000;
  config.is_moe_layer[1] = false;
  EXPECT_EQ(StepStateBytes(config, 7), bytes_of(1));
}

INSTANTIATE_TEST_SUITE_P(Models, LayerWalkTest, testing::Values("tiny-llama", "tiny-qwen3-moe"),
                         [](const auto& info) {
                           return info.param == "tiny-llama" ? "Dense" : "Experts";
                         });

}  // namespace
}  // namespace quatrain
