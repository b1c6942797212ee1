#include "ops/linear_ops.h"

#include "ops/test_support.h"

namespace quatrain {
namespace {

WeightView ViewOf(const at::Tensor& weight_OI) {
  return {.type = WeightType::kFloat32,
          .out_features = weight_OI.size(0),
          .in_features = weight_OI.size(1),
          .data = weight_OI.const_data_ptr()};
}

TEST(LinearOps, IsXTimesWTransposedPlusBias) {
  ThreadPool pool(1);
  const at::Tensor x = RandomTensor({5, 24}, 1), w = RandomTensor({7, 24}, 2),
                   bias = RandomTensor({7}, 3);
  ExpectClose(Linear({pool}, x, ViewOf(w)), at::matmul(x, w.t()), 1e-5);
  ExpectClose(Linear({pool}, x, ViewOf(w), bias), at::matmul(x, w.t()) + bias, 1e-5);
  const at::Tensor logits = LinearLogits({pool}, x.to(at::kBFloat16), ViewOf(w));
  EXPECT_EQ(logits.scalar_type(), at::kFloat) << "logits are not rounded";
  ExpectClose(logits, at::matmul(x.to(at::kBFloat16).to(at::kFloat), w.t()), 1e-5);
}

TEST(LinearOps, GradientsFollowTheirFormulasAndAccumulate) {
  ThreadPool pool(2);
  const at::Tensor x = RandomTensor({5, 24}, 1), w = RandomTensor({7, 24}, 2),
                   dy = RandomTensor({5, 7}, 4);
  const at::Tensor dx = EmptyTensor({5, 24}, at::kFloat);
  const at::Tensor dw = RandomTensor({7, 24}, 5), dbias = RandomTensor({7}, 6);
  const at::Tensor old_dw = dw.clone(), old_dbias = dbias.clone();
  const LinearGradCall call{x, ViewOf(w), dy, dx, dw, dbias};
  RunLinearGrad({pool}, {&call, 1});
  ExpectClose(dx, at::matmul(dy, w), 1e-5);
  ExpectClose(dw, old_dw + at::matmul(dy.t(), x), 1e-5);
  ExpectClose(dbias, old_dbias + dy.sum(0), 1e-5);
}

TEST(LinearOps, CallsMayHaveNoRows) {
  ThreadPool pool(1);
  const at::Tensor w = RandomTensor({7, 24}, 2);
  EXPECT_EQ(Linear({pool}, EmptyTensor({0, 24}, at::kFloat), ViewOf(w)).size(0), 0);
}

TEST(LinearOps, ShapesThatDoNotFitAreOurBug) {
  ThreadPool pool(1);
  const at::Tensor w = RandomTensor({7, 24}, 2);
  EXPECT_THROW(Linear({pool}, RandomTensor({5, 23}, 1), ViewOf(w)), Error);
}

}  // namespace
}  // namespace quatrain
