#include "ops/logprob_ops.h"

#include "ops/test_support.h"

namespace quatrain {
namespace {

class LogprobOps : public testing::Test {
 protected:
  WeightView Head() const {
    return {.type = WeightType::kFloat32,
            .out_features = 11,
            .in_features = 6,
            .data = head_VD_.const_data_ptr()};
  }
  TokenLogprobs Score(Entropy entropy) {
    return LmHeadLogprobs(ctx_, x_RD_, Head(), targets_, 1.25f, entropy);
  }

  ThreadPool pool_{1};
  OpContext ctx_{pool_};
  const at::Tensor x_RD_ = RandomTensor({5, 6}, 1), head_VD_ = RandomTensor({11, 6}, 2);
  const std::vector<int32_t> targets_ = {0, 10, 3, 3, 7};
};

TEST_F(LogprobOps, AreLogSoftmaxAtTheTemperature) {
  const TokenLogprobs scored = Score(Entropy::kCompute);
  const at::Tensor all = at::log_softmax(at::matmul(x_RD_, head_VD_.t()) * 1.25, -1);
  const at::Tensor entropy = -(all.exp() * all).sum(-1);
  for (size_t r = 0; r < targets_.size(); ++r) {
    const auto row = static_cast<int64_t>(r);
    EXPECT_NEAR(scored.logprobs[r], all[row][targets_[r]].item<float>(), 1e-5);
    EXPECT_NEAR(scored.entropy[r], entropy[row].item<float>(), 1e-5);
  }
  EXPECT_TRUE(Score(Entropy::kSkip).entropy.empty());
  EXPECT_EQ(Score(Entropy::kSkip).logprobs, scored.logprobs);
}

TEST_F(LogprobOps, GradientOfLogprobsAndEntropy) {
  const std::vector<float> dlogprobs = {1.0f, -0.5f, 0.0f, 2.0f, 0.3f};
  const std::vector<float> dentropy = {0.1f, 0.0f, -0.4f, 0.2f, 1.0f};
  const at::Tensor dx = EmptyTensor({5, 6}, at::kFloat), dhead = ZeroTensor({11, 6}, at::kFloat);
  LmHeadLogprobsGrad(ctx_, {.x_RD = x_RD_,
                            .lm_head = Head(),
                            .targets = targets_,
                            .inv_temperature = 1.25f,
                            .dlogprobs = dlogprobs,
                            .dentropy = dentropy,
                            .dx_RD = dx,
                            .dlm_head_VD = dhead});
  const auto loss = [&] {
    const TokenLogprobs scored = Score(Entropy::kCompute);
    double sum = 0.0;
    for (size_t r = 0; r < targets_.size(); ++r)
      sum += double{dlogprobs[r]} * scored.logprobs[r] + double{dentropy[r]} * scored.entropy[r];
    return sum;
  };
  ExpectGradient(x_RD_, dx, loss);
  ExpectGradient(head_VD_, dhead, loss);
}

}  // namespace
}  // namespace quatrain
