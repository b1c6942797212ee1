// Gradients of the operators for torch's autograd. Straight-through: the gradient of w' is that of
// the weight; codes and scales have none.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace quatrain::torch_library {

// d weight = d w'.
at::Tensor FakeQuantWithGradient(const at::Tensor& weight_OI, int64_t group_size);
// dx = dy w', dbias; from codes and, on CUDA, from the kernel layout.
at::Tensor LinearWithGradient(const at::Tensor& x, const at::Tensor& packed,
                              const at::Tensor& scale, const std::optional<at::Tensor>& bias);
// d dy = ddx w'^T, of _linear_input_grad (moe.h).
at::Tensor InputGradWithGradient(const at::Tensor& dy, const at::Tensor& packed,
                                 const at::Tensor& scale, int64_t in_features);

// w4a16_linear over the codes of `weight` (BF16 or FP32), with d weight = dy^T x, summed in FP32.
// dx has gradients of dy and, straight-through, of the weight; dweight has none: an error.
at::Tensor LinearTrain(const at::Tensor& x, const at::Tensor& weight_OI, int64_t group_size,
                       const std::optional<at::Tensor>& bias);
at::Tensor LinearTrainWithGradient(const at::Tensor& x, const at::Tensor& weight_OI,
                                   int64_t group_size, const std::optional<at::Tensor>& bias);

// w4a16_moe over the codes of gate_up [E, 2F, D] and down [E, D, F] (BF16 or FP32), with gradients
// of x, router, gate_up and down, which have none: an error.
// budget: the operator's arguments
at::Tensor MoeTrain(const at::Tensor& x_TD, const at::Tensor& router_ED, const at::Tensor& gate_up,
                    const at::Tensor& down, int64_t group_size, int64_t experts_per_token,
                    bool norm_topk_prob, const std::optional<at::Tensor>& ids);
// budget: the operator's arguments
at::Tensor MoeTrainWithGradient(const at::Tensor& x_TD, const at::Tensor& router_ED,
                                const at::Tensor& gate_up, const at::Tensor& down,
                                int64_t group_size, int64_t experts_per_token, bool norm_topk_prob,
                                const std::optional<at::Tensor>& ids);

}  // namespace quatrain::torch_library
