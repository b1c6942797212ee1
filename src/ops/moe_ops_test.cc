#include "ops/moe_ops.h"

#include "ops/test_support.h"

namespace quatrain {
namespace {

class MoeOps : public testing::Test {
 protected:
  ThreadPool pool_{1};
  OpContext ctx_{pool_};
  const at::Tensor logits_TE_ = RandomTensor({4, 5}, 1);
};

TEST_F(MoeOps, RouteTakesTheLargestAndNormalisesThem) {
  const auto [values, ids] = logits_TE_.topk(2, -1);
  const Routing normed = Route(ctx_, {5, 2, true}, logits_TE_, {});
  EXPECT_TRUE(at::equal(normed.ids_TK.to(at::kLong), ids));
  ExpectClose(normed.weights_TK, at::softmax(values, -1), 1e-6);
  const Routing plain = Route(ctx_, {5, 2, false}, logits_TE_, {});
  ExpectClose(plain.weights_TK, at::softmax(logits_TE_, -1).gather(-1, ids), 1e-6);
}

TEST_F(MoeOps, ReplayKeepsIdsAndComputesTheirWeights) {
  const at::Tensor ids = at::tensor({4, 0, 1, 2, 3, 1, 0, 4}, at::kInt).view({4, 2});
  const Routing routing = Route(ctx_, {5, 2, true}, logits_TE_, ids);
  EXPECT_TRUE(at::equal(routing.ids_TK, ids));
  ExpectClose(routing.weights_TK, at::softmax(logits_TE_.gather(-1, ids.to(at::kLong)), -1), 1e-6);
  ids[2][1] = 5;
  EXPECT_THROW(Route(ctx_, {5, 2, true}, logits_TE_, ids), Error);
}

TEST_F(MoeOps, RouteGradient) {
  const at::Tensor ids = at::tensor({4, 0, 1, 2, 3, 1, 0, 4}, at::kInt).view({4, 2});
  const at::Tensor dweights = RandomTensor({4, 2}, 2);
  for (const bool norm_topk_prob : {true, false}) {
    const RouterConfig config{5, 2, norm_topk_prob};
    ExpectGradient(logits_TE_, RouteGrad(ctx_, config, logits_TE_, ids, dweights),
                   [&] { return Dot(dweights, Route(ctx_, config, logits_TE_, ids).weights_TK); });
  }
}

TEST_F(MoeOps, GatherAndCombineAreInverseUnderEqualWeightsAndTheirGradients) {
  const std::vector<int32_t> ids = {4, 0, 1, 2, 3, 1, 0, 4};
  const MoePermutation permutation = PermuteByExpert(ids, 5, 2);
  const at::Tensor x = RandomTensor({4, 3}, 3), weights = RandomTensor({4, 2}, 4),
                   dout = RandomTensor({4, 3}, 5);
  const at::Tensor rows = GatherTokens(ctx_, x, permutation);
  ASSERT_EQ(rows.size(0), 8);
  for (int64_t r = 0; r < 8; ++r)
    EXPECT_TRUE(at::equal(rows[r], x[permutation.row_token[static_cast<size_t>(r)]]));
  ExpectClose(Combine(ctx_, rows, at::full({4, 2}, 0.5), permutation), x, 1e-6);

  const CombineGrads grads = CombineGrad(ctx_, rows, weights, permutation, dout);
  const auto loss = [&] { return Dot(dout, Combine(ctx_, rows, weights, permutation)); };
  ExpectGradient(rows, grads.dy_RD, loss);
  ExpectGradient(weights, grads.dweights_TK, loss);

  const at::Tensor drows = RandomTensor({8, 3}, 6), dx = ZeroTensor({4, 3}, at::kFloat);
  GatherTokensGrad(ctx_, drows, permutation, dx);
  ExpectGradient(x, dx, [&] { return Dot(drows, GatherTokens(ctx_, x, permutation)); });
}

}  // namespace
}  // namespace quatrain
