#include "torch_library/gradients.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace quatrain::torch_library
