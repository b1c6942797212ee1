#include "ops/elementwise_ops.h"

#include <cmath>

#include "ops/test_support.h"

namespace quatrain {
namespace {

class ElementwiseOps : public testing::Test {
 protected:
  ThreadPool pool_{1};
  OpContext ctx_{pool_};
};

TEST_F(ElementwiseOps, RmsNormAndItsGradient) {
  const at::Tensor x = RandomTensor({3, 2, 16}, 1), w = RandomTensor({16}, 2),
                   dy = RandomTensor({3, 2, 16}, 3);
  const at::Tensor expected = x * at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + 1e-5) * w;
  ExpectClose(RmsNorm(ctx_, x, w, 1e-5), expected, 1e-5);
  const at::Tensor dx = EmptyTensor(x.sizes(), at::kFloat), dw = ZeroTensor({16}, at::kFloat);
  RmsNormGrad(ctx_, {.x = x, .weight = w, .dy = dy, .dx = dx, .dweight = dw, .eps = 1e-5});
  const auto loss = [&] { return Dot(dy, RmsNorm(ctx_, x, w, 1e-5)); };
  ExpectGradient(x, dx, loss);
  ExpectGradient(w, dw, loss);
}

TEST_F(ElementwiseOps, SiluMulAndItsGradient) {
  const at::Tensor gate = RandomTensor({2, 9}, 1), up = RandomTensor({2, 9}, 2),
                   dout = RandomTensor({2, 9}, 3);
  ExpectClose(SiluMul(ctx_, gate, up), gate * at::sigmoid(gate) * up, 1e-6);
  const SiluMulGrads grads = SiluMulGrad(ctx_, gate, up, dout);
  const auto loss = [&] { return Dot(dout, SiluMul(ctx_, gate, up)); };
  ExpectGradient(gate, grads.dgate_TF, loss);
  ExpectGradient(up, grads.dup_TF, loss);
}

TEST_F(ElementwiseOps, RopeTurnsAndItsGradientTurnsBack) {
  const std::vector<double> frequencies = {1.0, 0.1};
  std::vector<float> cos(8 * 2), sin(8 * 2);
  FillRopeTable(8, frequencies, cos.data(), sin.data());
  const RopeTable table{cos.data(), sin.data(), 4};
  const std::vector<int32_t> positions = {0, 7};
  const at::Tensor x = RandomTensor({2, 3, 4}, 1), turned = x.clone();
  RopeInPlace(ctx_, table, positions, turned);
  EXPECT_TRUE(at::equal(turned[0], x[0])) << "position 0 is not turned";
  const float* in = x[1].const_data_ptr<float>();
  const float* out = turned[1].const_data_ptr<float>();
  EXPECT_NEAR(out[0], in[0] * std::cos(7.0) - in[2] * std::sin(7.0), 1e-6);
  EXPECT_NEAR(out[3], in[3] * std::cos(0.7) + in[1] * std::sin(0.7), 1e-6);
  RopeGradInPlace(ctx_, table, positions, turned);
  ExpectClose(turned, x, 1e-6);
}

TEST_F(ElementwiseOps, EmbeddingTakesRowsAndItsGradientAddsToThem) {
  const at::Tensor table = RandomTensor({6, 4}, 1), dx = RandomTensor({3, 4}, 2);
  const std::vector<int32_t> ids = {5, 0, 5};
  const at::Tensor rows = Embedding(ctx_, table, ids);
  EXPECT_TRUE(at::equal(rows[0], table[5]) && at::equal(rows[1], table[0]));
  const at::Tensor dtable = ZeroTensor({6, 4}, at::kFloat);
  EmbeddingGrad(ctx_, dx, ids, dtable);
  ExpectClose(dtable[5], dx[0] + dx[2], 1e-6);
  ExpectClose(dtable[0], dx[1], 0.0);
  EXPECT_EQ(dtable[1].abs().sum().item<float>(), 0.0f);
}

TEST_F(ElementwiseOps, TheResidualIsRoundedOnce) {
  const at::Tensor x = RandomTensor({4, 8}, 1).to(at::kBFloat16),
                   y = RandomTensor({4, 8}, 2).to(at::kBFloat16);
  EXPECT_TRUE(
      at::equal(AddResidual(ctx_, x, y), (x.to(at::kFloat) + y.to(at::kFloat)).to(at::kBFloat16)));
}

}  // namespace
}  // namespace quatrain
