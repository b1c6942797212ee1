// Gradients of the operators that have one.
#pragma once

#include "torch_library/operators.h"

namespace quatrain::torch_library {

// The straight-through estimator: the gradient of w' is that of the weight. With kAbsmax7 no weight
// is clipped, so none is left out.
at::Tensor FakeQuantWithGradient(const at::Tensor& weight_OI, int64_t group_size);

// Gradient of x (dy w') and bias; codes and scales have none. Needs codes, not the kernel layout.
at::Tensor LinearWithGradient(const at::Tensor& x, const at::Tensor& packed,
                              const at::Tensor& scale, const std::optional<at::Tensor>& bias);

}  // namespace quatrain::torch_library
