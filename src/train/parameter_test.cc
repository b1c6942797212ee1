#include "train/parameter.h"

#include "kernels/int4_quantize.h"
#include "train/test_support.h"

namespace quatrain {
namespace {

class ParametersTest : public SmallMoeTest {
 protected:
  void SetUp() override {
    SmallMoeTest::SetUp();
    trained_.emplace(TableWithExpertCodes());
  }
  void TearDown() override {
    trained_.reset();
    SmallMoeTest::TearDown();
  }

  void FillGradients(Gradients& gradients, float size) const {
    for (size_t i = 0; i < start_->size(); ++i) {
      const at::Tensor& grad = gradients.Of(static_cast<int>(i));
      for (int64_t k = 0; k < grad.numel(); ++k)
        grad.data_ptr<float>()[k] =
            size * static_cast<float>(UniformDouble(9, i, static_cast<uint64_t>(k)) - 0.5);
    }
  }

  // Trained weights are the quantisation (or rounding) of the masters.
  void ExpectWeightsOfMasters(Parameters& parameters) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      const at::Tensor rounded = parameters.master(i).to(at::kBFloat16);
      const Weight& weight = (*trained_)[i];
      if (!weight.is_quantized()) {
        EXPECT_TRUE(at::equal(weight.dense, rounded)) << weight.spec.name;
        continue;
      }
      const int64_t rows = weight.spec.shape[0], columns = weight.spec.shape[1];
      const auto* data = static_cast<const BFloat16*>(rounded.const_data_ptr());
      const QuantizedWeight expected = Quantize(
          pool_, {weight.spec.name, {data, static_cast<size_t>(rows * columns)}, rows, columns},
          QuantScheme{});
      EXPECT_EQ(weight.codes.packed, expected.packed) << weight.spec.name;
      EXPECT_TRUE(std::equal(weight.codes.scale.begin(), weight.codes.scale.end(),
                             expected.scale.begin(),
                             [](BFloat16 a, BFloat16 b) { return ToFloat(a) == ToFloat(b); }))
          << weight.spec.name;
    }
  }

  ThreadPool pool_{1};
  OpContext ctx_{pool_};
  std::optional<ModelWeights> trained_;
};

TEST_F(ParametersTest, TheStartAndEveryStepWriteTheQuantisationOfTheMasters) {
  Parameters parameters(ctx_, *start_, &*trained_, nullptr, {}, {}, MasterStart::kValues);
  ExpectWeightsOfMasters(parameters);
  Gradients gradients(*start_);
  int64_t num_flipped = 0;
  for (int step = 1; step <= 2; ++step) {
    FillGradients(gradients, 1.0f);
    const auto result = parameters.Step(ctx_, gradients, 1e-2);
    EXPECT_EQ(parameters.step(), step);
    EXPECT_EQ(result.stats.num_codes, 2 * 4 * 3 * 64 * 32);
    num_flipped += result.stats.num_flipped_codes;
    ExpectWeightsOfMasters(parameters);
  }
  EXPECT_GT(num_flipped, 0);
}

TEST_F(ParametersTest, DecayLeavesVectorsAlone) {
  for (const bool decay_vectors : {false, true}) {
    OptimizerConfig config;
    config.weight_decay = 0.5;
    config.decay_vectors = decay_vectors;
    Parameters parameters(ctx_, *start_, &*trained_, nullptr, config, {}, MasterStart::kValues);
    std::vector<at::Tensor> before;
    for (size_t i = 0; i < parameters.size(); ++i) before.push_back(parameters.master(i).clone());
    Gradients zero(*start_);
    parameters.Step(ctx_, zero, 0.1);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const bool is_vector = parameters.spec(i).shape.size() == 1;
      const double factor = is_vector && !decay_vectors ? 1.0 : 1.0 - 0.1 * 0.5;
      const at::Tensor expected = before[i] * factor;
      EXPECT_LE((parameters.master(i) - expected).abs().max().item<double>(), 1e-7)
          << parameters.spec(i).name;
    }
  }
}

TEST_F(ParametersTest, TheGlobalNormIsClippedAsTorchDoes) {
  Gradients gradients(*start_);
  FillGradients(gradients, 1.0f);
  double sum = 0.0;
  for (size_t i = 0; i < start_->size(); ++i)
    sum += gradients.Of(static_cast<int>(i)).to(at::kDouble).square().sum().item<double>();
  OptimizerConfig config;
  config.clip_grad = 0.25;
  config.weight_decay = 0.0;
  Parameters parameters(ctx_, *start_, &*trained_, nullptr, config, {}, MasterStart::kValues);
  const auto result = parameters.Step(ctx_, gradients, 1e-3);
  EXPECT_NEAR(result.grad_norm, std::sqrt(sum), 1e-9 * std::sqrt(sum));
  // The first moment after one step is (1 - beta1) times the clipped gradient.
  const double scale = 0.25 / (std::sqrt(sum) + 1e-6);
  const at::Tensor expected = gradients.Of(0) * (scale * (1.0 - config.adam_beta1));
  EXPECT_LE((parameters.exp_avg(0) - expected).abs().max().item<double>(), 1e-9);
}

TEST_F(ParametersTest, AGradientThatIsNoNumberChangesNothing) {
  Parameters parameters(ctx_, *start_, &*trained_, nullptr, {}, {}, MasterStart::kValues);
  Gradients gradients(*start_);
  FillGradients(gradients, 1.0f);
  gradients.Of(3).data_ptr<float>()[1] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor before = parameters.master(0).clone();
  const std::string message = MessageOf([&] { parameters.Step(ctx_, gradients, 1e-3); });
  EXPECT_TRUE(Contains(message, "not finite")) << message;
  EXPECT_TRUE(Contains(message, "optimizer step 1, " + (*start_)[3].spec.name)) << message;
  EXPECT_EQ(parameters.step(), 0);
  EXPECT_TRUE(at::equal(before, parameters.master(0)));
  ExpectWeightsOfMasters(parameters);
}

TEST_F(ParametersTest, AWeightThatIsNotItsMastersIsFoundByName) {
  Parameters parameters(ctx_, *start_, &*trained_, nullptr, {}, {}, MasterStart::kValues);
  parameters.CheckWeights(ctx_);
  for (size_t i = 0; i < trained_->size(); ++i) {
    Weight& weight = (*trained_)[i];
    const Weight good{weight.spec, weight.dense.defined() ? weight.dense.clone() : at::Tensor(),
                      weight.codes};
    if (weight.is_quantized()) {
      weight.codes.packed.back() ^= 1 << 28;
    } else {
      weight.dense.view({-1})[0].add_(1.0);
    }
    EXPECT_TRUE(Contains(MessageOf([&] { parameters.CheckWeights(ctx_); }), weight.spec.name));
    if (weight.is_quantized()) {
      weight.codes.packed = good.codes.packed;
    } else {
      weight.dense.copy_(good.dense);
    }
  }
  parameters.CheckWeights(ctx_);
}

TEST_F(ParametersTest, AStartThatIsNoNumberIsNamedByPlace) {
  (*start_)[4].dense.data_ptr<at::BFloat16>()[5] = std::numeric_limits<float>::infinity();
  const std::string text = MessageOf(
      [&] { Parameters(ctx_, *start_, &*trained_, nullptr, {}, {}, MasterStart::kValues); });
  EXPECT_TRUE(Contains(text, (*start_)[4].spec.name));
  EXPECT_TRUE(Contains(text, "column 5"));
}

}  // namespace
}  // namespace quatrain
