#include "torch_library/gradients.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>

#include "torch_library/operators.h"

namespace quatrain::torch_library {
namespace {

// The gradients call the operators by name, so the library has to be loaded.
void LoadLibrary() {
  ASSERT_NE(dlopen(QT_TORCH_LIBRARY_FILE, RTLD_NOW | RTLD_GLOBAL), nullptr) << dlerror();
}

at::Tensor Leaf(at::IntArrayRef sizes, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(sizes).requires_grad_();
}

TEST(TorchLibraryGradients, FakeQuantPassesTheGradientThrough) {
  LoadLibrary();
  const at::Tensor weight = Leaf({8, 64}, 1);
  const at::Tensor dy = Leaf({8, 64}, 2).detach();
  const at::Tensor fake = FakeQuantWithGradient(weight, 32);
  EXPECT_TRUE(at::equal(fake.detach(), FakeQuantCpu(weight.detach(), 32)));
  fake.backward(dy);
  EXPECT_TRUE(at::equal(weight.grad(), dy));
}

TEST(TorchLibraryGradients, LinearGivesThoseOfInputAndBias) {
  LoadLibrary();
  const auto [packed, scale] = PackCpu(Leaf({16, 64}, 3).detach(), 32);
  const at::Tensor x = Leaf({2, 5, 64}, 4), bias = Leaf({16}, 5);
  const at::Tensor dy = Leaf({2, 5, 16}, 6).detach();
  LinearWithGradient(x, packed, scale, bias).backward(dy);
  const at::Tensor plain = UnpackCpu(packed, scale).to(at::kFloat);
  EXPECT_TRUE(at::allclose(x.grad(), at::matmul(dy, plain), 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(bias.grad(), dy.sum(at::IntArrayRef{0, 1}), 1e-5, 1e-5));
}

TEST(TorchLibraryGradients, WithoutBiasOnlyTheInputHasOne) {
  LoadLibrary();
  const auto [packed, scale] = PackCpu(Leaf({16, 64}, 7).detach(), 64);
  const at::Tensor x = Leaf({3, 64}, 8);
  LinearWithGradient(x, packed, scale, std::nullopt).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(scale.grad().defined());
}

TEST(TorchLibraryGradients, NobodySumsForABiasThatAsksForNothing) {
  LoadLibrary();
  const auto [packed, scale] = PackCpu(Leaf({16, 64}, 7).detach(), 64);
  const at::Tensor bias = Leaf({16}, 9).detach(), weight = Leaf({16, 64}, 10);
  for (const bool is_train : {false, true}) {
    const at::Tensor x = Leaf({3, 64}, 8);
    const at::Tensor y = is_train ? LinearTrainWithGradient(x, weight, 32, bias)
                                  : LinearWithGradient(x, packed, scale, bias);
    const auto edges = y.grad_fn()->next_edges();
    ASSERT_EQ(edges.size(), is_train ? 3u : 4u);
    EXPECT_FALSE(edges.back().is_valid());
    const torch::autograd::variable_list grads = (*y.grad_fn())({at::ones_like(y)});
    EXPECT_TRUE(grads.front().defined());
    EXPECT_FALSE(grads.back().defined());
  }
}

TEST(TorchLibraryGradients, OfAFloatBiasIsSummedInFloat) {
  LoadLibrary();
  const at::Tensor x = Leaf({300, 64}, 20).detach().to(at::kBFloat16);
  const at::Tensor weight = Leaf({16, 64}, 21).detach(), bias = Leaf({16}, 22);
  const at::Tensor dy = Leaf({300, 16}, 23).detach().to(at::kBFloat16);
  LinearTrainWithGradient(x, weight, 32, bias).backward(dy);
  EXPECT_TRUE(at::allclose(bias.grad(), dy.to(at::kFloat).sum(0), 1e-5, 1e-5));
}

TEST(TorchLibraryGradients, OfNothingAreEmptyOrZero) {
  LoadLibrary();
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{0, 64}, {0, 12, 64}, {3, 0, 64}}) {
    const at::Tensor x = Leaf({5, 64}, 13), weight = Leaf(sizes, 14), bias = Leaf({0}, 15);
    LinearTrainWithGradient(x, weight, 32, bias).sum().backward();
    EXPECT_TRUE(at::equal(x.grad(), at::zeros({5, 64})));
    EXPECT_EQ(weight.grad().sizes(), at::IntArrayRef(sizes));
    EXPECT_EQ(bias.grad().sizes(), (at::IntArrayRef{0}));
    const auto [packed, scale] = PackCpu(weight.detach(), 32);
    const at::Tensor again = Leaf({5, 64}, 16);
    LinearWithGradient(again, packed, scale, std::nullopt).sum().backward();
    EXPECT_TRUE(at::equal(again.grad(), at::zeros({5, 64})));
  }
  const at::Tensor x = Leaf({0, 64}, 17), weight = Leaf({16, 64}, 18), bias = Leaf({16}, 19);
  LinearTrainWithGradient(x, weight, 32, bias).sum().backward();
  EXPECT_EQ(x.grad().sizes(), (at::IntArrayRef{0, 64}));
  EXPECT_TRUE(at::equal(weight.grad(), at::zeros({16, 64})));
  EXPECT_TRUE(at::equal(bias.grad(), at::zeros({16})));
  const std::vector<at::Tensor> moe = {Leaf({0, 64}, 1), Leaf({6, 64}, 2), Leaf({6, 64, 64}, 3),
                                       Leaf({6, 64, 32}, 4)};
  MoeTrainWithGradient(moe[0], moe[1], moe[2], moe[3], 32, 2, true, std::nullopt).sum().backward();
  for (const at::Tensor& leaf : moe) EXPECT_TRUE(at::equal(leaf.grad(), at::zeros_like(leaf)));
}

TEST(TorchLibraryGradients, LinearTrainIsLinearOverTheCodesOfItsWeight) {
  LoadLibrary();
  const at::Tensor x = Leaf({9, 64}, 9), weight = Leaf({16, 64}, 10), bias = Leaf({16}, 11);
  const at::Tensor dy = Leaf({9, 16}, 12).detach();
  const at::Tensor y = LinearTrainWithGradient(x, weight, 32, bias);
  const auto [packed, scale] = PackCpu(weight.detach(), 32);
  EXPECT_TRUE(at::equal(y, LinearCpu(x.detach(), packed, scale, bias.detach())));
  EXPECT_TRUE(at::equal(y, LinearTrain(x.detach(), weight.detach(), 32, bias.detach())));
  y.backward(dy);
  const at::Tensor plain = UnpackCpu(packed, scale).to(at::kFloat);
  EXPECT_TRUE(at::allclose(x.grad(), at::matmul(dy, plain), 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(weight.grad(), at::matmul(dy.t(), x.detach()), 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(bias.grad(), dy.sum(0), 1e-5, 1e-5));
}

TEST(TorchLibraryGradients, OfTheInputsGradientGoesToTheWeight) {
  LoadLibrary();
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{16, 64}, {2, 8, 64}}) {
    const at::Tensor x = Leaf({9, 64}, 24), weight = Leaf(sizes, 25), dy = Leaf({9, 16}, 26);
    const auto gradients = [&](const at::Tensor& y) {
      const at::Tensor dx = torch::autograd::grad({y}, {x}, {dy}, true, true)[0];
      // Of |dx|^2, and of the square of that of dy: a derivative more.
      const at::Tensor penalty = dx.pow(2).sum();
      const at::Tensor ddy = torch::autograd::grad({penalty}, {dy}, {}, true, true)[0];
      auto grads = torch::autograd::grad({penalty}, {weight, dy}, {}, true);
      const auto third = torch::autograd::grad({(ddy * dy.detach()).sum()}, {dy}, {});
      grads.insert(grads.end(), third.begin(), third.end());
      return grads;
    };
    const auto ours = gradients(LinearTrainWithGradient(x, weight, 32, std::nullopt));
    const auto plain =
        gradients(at::linear(x, FakeQuantWithGradient(weight, 32).reshape({16, 64})));
    for (size_t i = 0; i < ours.size(); ++i) {
      EXPECT_EQ(ours[i].sizes(), plain[i].sizes());
      EXPECT_GT(plain[i].norm().item<double>(), 1.0);
      EXPECT_TRUE(at::allclose(ours[i], plain[i], 1e-4, 1e-3)) << "gradient " << i;
    }
  }
}

TEST(TorchLibraryGradients, OfExpertsGradientsIsRefused) {
  LoadLibrary();
  const std::vector<at::Tensor> leaves = {Leaf({13, 64}, 1), Leaf({6, 64}, 2), Leaf({6, 64, 64}, 3),
                                          Leaf({6, 64, 32}, 4)};
  for (size_t asked = 0; asked < leaves.size(); ++asked) {
    // Inputs that ask for nothing beside weights that do, too.
    const bool is_weight = asked >= 2;
    const at::Tensor x = is_weight ? leaves[0].detach() : leaves[0];
    const at::Tensor router = is_weight ? leaves[1].detach() : leaves[1];
    const at::Tensor out =
        MoeTrainWithGradient(x, router, leaves[2], leaves[3], 32, 2, true, std::nullopt);
    const at::Tensor grad =
        torch::autograd::grad({out}, {leaves[asked]}, {at::ones_like(out)}, true, true)[0];
    ASSERT_TRUE(grad.requires_grad()) << "leaf " << asked;
    EXPECT_THROW((grad.pow(2).sum() + leaves[2].sum()).backward(), c10::Error) << "leaf " << asked;
  }
}

// Experts over the weights that the codes stand for, in plain operators.
at::Tensor PlainMoe(const at::Tensor& x, const at::Tensor& router, const at::Tensor& gate_up,
                    const at::Tensor& down, bool norm_topk_prob) {
  at::Tensor weights, ids;
  std::tie(weights, ids) = at::softmax(at::matmul(x, router.t()), -1).topk(2, -1);
  if (norm_topk_prob) weights = weights / weights.sum(-1, true);
  const std::vector<at::Tensor> both = at::einsum("td,efd->tef", {x, gate_up}).chunk(2, -1);
  const at::Tensor y = at::einsum("tef,edf->ted", {at::silu(both[0]) * both[1], down});
  const at::Tensor chosen = y.gather(1, ids.unsqueeze(-1).expand({-1, -1, y.size(-1)}));
  return (weights.unsqueeze(-1) * chosen).sum(1);
}

TEST(TorchLibraryGradients, MoeTrainIsTheRolloutForwardAndTheGradientOfTheFormula) {
  LoadLibrary();
  for (const bool norm_topk_prob : {true, false}) {
    const std::vector<at::Tensor> leaves = {Leaf({13, 64}, 1), Leaf({6, 64}, 2),
                                            Leaf({6, 64, 64}, 3), Leaf({6, 64, 32}, 4)};
    const at::Tensor dout = Leaf({13, 64}, 5).detach();
    const at::Tensor out = MoeTrainWithGradient(leaves[0], leaves[1], leaves[2], leaves[3], 32, 2,
                                                norm_topk_prob, std::nullopt);
    const auto [up, up_scale] = PackCpu(leaves[2].detach(), 32);
    const auto [down, down_scale] = PackCpu(leaves[3].detach(), 32);
    EXPECT_TRUE(at::equal(out, MoeCpu({leaves[0].detach(), leaves[1].detach(), up, up_scale, down,
                                       down_scale, 2, norm_topk_prob, at::Tensor()})));
    out.backward(dout);
    std::vector<at::Tensor> plain;
    for (const at::Tensor& leaf : {leaves[0], leaves[1], FakeQuantCpu(leaves[2].detach(), 32),
                                   FakeQuantCpu(leaves[3].detach(), 32)}) {
      plain.push_back(leaf.detach().clone().requires_grad_());
    }
    PlainMoe(plain[0], plain[1], plain[2], plain[3], norm_topk_prob).backward(dout);
    for (size_t i = 0; i < leaves.size(); ++i) {
      const double error = (leaves[i].grad() - plain[i].grad()).norm().item<double>();
      EXPECT_LT(error, 1e-5 * plain[i].grad().norm().item<double>()) << "leaf " << i;
    }
  }
}

}  // namespace
}  // namespace quatrain::torch_library
