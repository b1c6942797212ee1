// What the tests of ops share: random tensors, and gradients against differences of the forward.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "base/random.h"
#include "ops/tensor.h"

namespace quatrain {

// FP32 values from -1 to 1, the same for the same seed.
inline at::Tensor RandomTensor(at::IntArrayRef shape, uint64_t seed) {
  at::Tensor tensor = EmptyTensor(shape, at::kFloat);
  for (int64_t i = 0; i < tensor.numel(); ++i)
    tensor.data_ptr<float>()[i] =
        static_cast<float>(2.0 * UniformDouble(seed, 0, static_cast<uint64_t>(i)) - 1.0);
  return tensor;
}

inline void ExpectClose(const at::Tensor& a, const at::Tensor& b, double tolerance) {
  ASSERT_EQ(a.sizes(), b.sizes());
  EXPECT_LE((a - b).abs().max().item<double>(), tolerance);
}

// `gradient` of loss() by every element of x, against central differences; loss is smooth in x.
// FP32 loses about 1e-7 / step of the loss in a difference, and step^2 of the third derivative.
inline void ExpectGradient(const at::Tensor& x, const at::Tensor& gradient,
                           const std::function<double()>& loss) {
  ASSERT_EQ(x.sizes(), gradient.sizes());
  constexpr float kStep = 1e-2f;
  for (int64_t i = 0; i < x.numel(); ++i) {
    float& value = x.data_ptr<float>()[i];
    const float old = value;
    value = old + kStep;
    const double above = loss();
    value = old - kStep;
    const double below = loss();
    value = old;
    EXPECT_NEAR(gradient.data_ptr<float>()[i], (above - below) / (2.0 * kStep), 2e-3) << i;
  }
}

// A loss whose gradient by y is `weights`.
inline double Dot(const at::Tensor& weights, const at::Tensor& y) {
  return (weights.to(at::kDouble) * y.to(at::kDouble)).sum().item<double>();
}

}  // namespace quatrain
