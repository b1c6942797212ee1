// The operators on tensors without data, which torch.compile and torch.export trace with: the
// shapes, types and checks of operators.h, gradients.h and moe.h, on any device. For CUDA x is
// BF16, as its kernels want it; which groups they take (docs/torch_operators.md) shows at the call
// only.
#pragma once

#include "torch_library/moe.h"

namespace quatrain::torch_library {

at::Tensor FakeQuantMeta(const at::Tensor& weight_OI, int64_t group_size);
std::tuple<at::Tensor, at::Tensor> PackMeta(const at::Tensor& weight_OI, int64_t group_size);
at::Tensor UnpackMeta(const at::Tensor& packed, const at::Tensor& scale);
at::Tensor KernelLayoutMeta(const at::Tensor& packed, const at::Tensor& scale);
at::Tensor UnpackLayoutMeta(const at::Tensor& layout, const at::Tensor& scale, int64_t in_features);
at::Tensor LinearMeta(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scale,
                      const std::optional<at::Tensor>& bias);
at::Tensor InputGradMeta(const at::Tensor& dy, const at::Tensor& packed, const at::Tensor& scale,
                         int64_t in_features);
at::Tensor WeightGradMeta(const at::Tensor& dy, const at::Tensor& x);
at::Tensor MoeMeta(const MoeCall& call);
MoeSaved MoeForwardMeta(const MoeCall& call);
MoeGrads MoeBackwardMeta(const MoeCall& call, const MoeSaved& saved, const at::Tensor& dout,
                         const MoeNeeds& needs);

}  // namespace quatrain::torch_library
