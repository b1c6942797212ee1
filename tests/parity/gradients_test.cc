// Our hand-derived backward against autograd of the reference (tests/goldens/oracles/gradients),
// and five AdamW steps.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "ops/logprob_ops.h"
#include "tests/parity/oracle_models.h"
#include "train/parameter.h"

namespace quatrain {
namespace {

// Mean cross entropy of tokens 1..T-1; gradients are added.
double LossAndGradients(const OpContext& ctx, const Decoder& decoder,
                        const std::vector<int32_t>& ids, Gradients& gradients) {
  const ForwardBatch batch = MakeVarlenBatch({ids});
  const auto rows = static_cast<int64_t>(ids.size()) - 1;
  const std::span<const int32_t> targets = std::span<const int32_t>(ids).subspan(1);
  DecoderTape tape;
  const at::Tensor hidden = decoder.ForwardWithTape(ctx, batch, &tape);
  const at::Tensor x_RD = hidden.narrow(0, 0, rows);
  const TokenLogprobs scored =
      LmHeadLogprobs(ctx, x_RD, decoder.LmHead(), targets, 1.0f, Entropy::kSkip);
  double loss = 0.0;
  for (const float logprob : scored.logprobs) loss -= logprob / static_cast<double>(rows);
  at::Tensor dhidden = ZeroTensor(hidden.sizes(), at::kFloat);
  const std::vector<float> dlogprobs(static_cast<size_t>(rows),
                                     static_cast<float>(-1.0 / static_cast<double>(rows)));
  LmHeadLogprobsGrad(ctx, {.x_RD = x_RD,
                           .lm_head = decoder.LmHead(),
                           .targets = targets,
                           .inv_temperature = 1.0f,
                           .dlogprobs = dlogprobs,
                           .dentropy = {},
                           .dx_RD = dhidden.narrow(0, 0, rows),
                           .dlm_head_VD = gradients.Of(decoder.lm_head_index())});
  decoder.Backward(ctx, batch, tape, dhidden, gradients);
  return loss;
}

double Norm(const at::Tensor& tensor) { return tensor.to(at::kDouble).norm().item<double>(); }

class GradientOracle : public testing::TestWithParam<std::string> {};

TEST_P(GradientOracle, NormsAndFullTensorsAgreeWithin1e3) {
  const std::string path = SourcePath("tests/goldens/oracles/gradients/" + GetParam());
  const Json oracle = ParseJson(ReadFile(path + ".json"), path);
  const OracleModel model(GetParam(), at::kFloat);
  ThreadPool pool(2);
  const OpContext ctx{pool};
  Gradients gradients(model.weights);
  const double loss = LossAndGradients(ctx, model.decoder,
                                       oracle["input_ids"].get<std::vector<int32_t>>(), gradients);
  EXPECT_NEAR(loss, oracle["loss"].get<double>(), 1e-5);
  const auto global_norm = oracle["global_norm"].get<double>();
  EXPECT_NEAR(GlobalNorm(ctx, gradients) / global_norm, 1.0, 1e-3);
  double worst_norm = 0.0, worst = 0.0;
  std::string worst_norm_name, worst_name;
  for (const auto& [name, norm] : oracle["norms"].items()) {
    const int index = model.weights.Find(name);
    ASSERT_GE(index, 0) << name;
    const double ours = gradients.IsTouched(index) ? Norm(gradients.Of(index)) : 0.0;
    const double theirs = norm.get<double>();
    if (theirs == 0.0) {
      EXPECT_EQ(ours, 0.0) << name;
    } else {
      const double difference = std::abs(ours / theirs - 1.0);
      if (difference > worst_norm) {
        worst_norm = difference;
        worst_norm_name = fmt::format("{}, {:.2e} of {:.2e}", name, theirs, global_norm);
      }
      EXPECT_NEAR(ours / theirs, 1.0, 1e-3) << name;
    }
  }
  const TensorSet full(path + ".safetensors");
  for (const TensorView& view : full.tensors()) {
    at::Tensor theirs = EmptyTensor(view.shape, at::kFloat);
    std::memcpy(theirs.data_ptr(), view.bytes.data(), view.bytes.size());
    const double error = Norm(gradients.Of(model.weights.Find(view.name)) - theirs) / Norm(theirs);
    EXPECT_LE(error, 1e-3) << view.name;
    if (error > worst) {
      worst = error;
      worst_name = view.name;
    }
  }
  std::printf("%s: largest relative difference of a norm %.2e (%s), of a gradient %.2e (%s)\n",
              GetParam().c_str(), worst_norm, worst_norm_name.c_str(), worst, worst_name.c_str());
}

INSTANTIATE_TEST_SUITE_P(Models, GradientOracle,
                         testing::Values("tiny-qwen3-moe", "tiny-llama", "small-qwen3-moe"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(AdamWOracle, FiveClippedStepsFollowTorch) {
  const std::string path = SourcePath("tests/goldens/oracles/adamw/tiny-llama.json");
  const Json oracle = ParseJson(ReadFile(path), path);
  ThreadPool pool(2);
  const OpContext ctx{pool};
  const Checkpoint checkpoint(ModelPath("tiny-llama"));
  const Json& hyper = oracle["hyper"];
  for (const Json& run : oracle["runs"]) {
    const ModelWeights start = LoadWeights(checkpoint, at::kFloat);
    ModelWeights trained = LoadWeights(checkpoint, at::kFloat);
    const Decoder decoder(checkpoint.config(), trained);
    OptimizerConfig config;
    config.lr = hyper["lr"].get<double>();
    config.adam_beta1 = hyper["betas"][0].get<double>();
    config.adam_beta2 = hyper["betas"][1].get<double>();
    config.adam_eps = hyper["eps"].get<double>();
    config.weight_decay = hyper["weight_decay"].get<double>();
    config.clip_grad = run["max_norm"].get<double>();
    config.decay_vectors = true;
    Parameters parameters(ctx, start, &trained, nullptr, config, QuantScheme{},
                          MasterStart::kValues);
    const std::vector<int32_t> ids = oracle["input_ids"].get<std::vector<int32_t>>();
    for (size_t step = 0; step < 5; ++step) {
      Gradients gradients(trained);
      const double loss = LossAndGradients(ctx, decoder, ids, gradients);
      EXPECT_NEAR(loss / run["loss"][step].get<double>(), 1.0, 1e-3) << "step " << step;
      const double norm = parameters.Step(ctx, gradients, config.lr).grad_norm;
      EXPECT_NEAR(norm / run["grad_norm"][step].get<double>(), 1.0, 1e-3) << "step " << step;
    }
    Gradients gradients(trained);
    const double after = LossAndGradients(ctx, decoder, ids, gradients);
    EXPECT_NEAR(after / run["loss_after"].get<double>(), 1.0, 1e-3);
  }
}

}  // namespace
}  // namespace quatrain
