// Registers the operators when the library is loaded:
// torch.ops.load_library(".../quatrain_torch.so").
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "torch_library/gradients.h"
#include "torch_library/moe.h"
#include "torch_library/operators.h"
#include "torch_library/shapes.h"

namespace quatrain::torch_library {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// gate_up and down: codes or kernel layout, and scales.
MoeCall CallOf(const at::Tensor& x, const at::Tensor& router, at::TensorList gate_up,
               at::TensorList down, int64_t experts_per_token, bool norm_topk_prob,
               const OptionalTensor& ids) {
  if (gate_up.size() != 2 || down.size() != 2) {
    ThrowShape("w4a16_moe", "codes and scales of gate_up and of down",
               std::to_string(gate_up.size()) + " and " + std::to_string(down.size()) + " tensors");
  }
  return {x,
          router,
          gate_up[0],
          gate_up[1],
          down[0],
          down[1],
          experts_per_token,
          norm_topk_prob,
          ids.value_or(at::Tensor())};
}

template <at::Tensor (*kMoe)(const MoeCall&)>
at::Tensor Moe(const at::Tensor& x, const at::Tensor& router, at::TensorList gate_up,
               at::TensorList down, int64_t experts_per_token, bool norm_topk_prob,
               const OptionalTensor& ids) {
  return kMoe(CallOf(x, router, gate_up, down, experts_per_token, norm_topk_prob, ids));
}

template <MoeSaved (*kForward)(const MoeCall&)>
std::vector<at::Tensor> MoeForward(const at::Tensor& x, const at::Tensor& router,
                                   at::TensorList gate_up, at::TensorList down,
                                   int64_t experts_per_token, bool norm_topk_prob,
                                   const OptionalTensor& ids) {
  return kForward(CallOf(x, router, gate_up, down, experts_per_token, norm_topk_prob, ids))
      .ToList();
}

template <MoeGrads (*kBackward)(const MoeCall&, const MoeSaved&, const at::Tensor&)>
std::vector<at::Tensor> MoeBackward(const at::Tensor& dout, at::TensorList saved,
                                    const at::Tensor& x, const at::Tensor& router,
                                    at::TensorList gate_up, at::TensorList down,
                                    bool norm_topk_prob) {
  const MoeSaved forward = MoeSaved::FromList(saved);
  const MoeGrads grads = kBackward(
      CallOf(x, router, gate_up, down, forward.ids_TK.size(1), norm_topk_prob, std::nullopt),
      forward, dout);
  return {grads.dx, grads.drouter, grads.dgate_up, grads.ddown};
}

TORCH_LIBRARY(quatrain, library) {
  library.def("fake_quant_int4(Tensor weight, int group_size) -> Tensor");
  library.def("pack_int4(Tensor weight, int group_size) -> (Tensor, Tensor)");
  library.def("unpack_int4(Tensor packed, Tensor scale) -> Tensor");
  library.def("kernel_layout_int4(Tensor packed, Tensor scale) -> Tensor");
  library.def("unpack_layout_int4(Tensor layout, Tensor scale, int in_features) -> Tensor");
  library.def("w4a16_linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias=None) -> Tensor");
  library.def(
      "w4a16_moe(Tensor x, Tensor router, Tensor[] gate_up, Tensor[] down, int experts_per_token, "
      "bool norm_topk_prob=True, Tensor? ids=None) -> Tensor");
  library.def(
      "w4a16_linear_train(Tensor x, Tensor weight, int group_size, Tensor? bias=None) -> Tensor");
  library.def(
      "w4a16_moe_train(Tensor x, Tensor router, Tensor gate_up, Tensor down, int group_size, "
      "int experts_per_token, bool norm_topk_prob=True, Tensor? ids=None) -> Tensor");
  // Parts of the training forms.
  library.def(
      "_linear_input_grad(Tensor dy, Tensor packed, Tensor scale, int in_features) -> Tensor");
  library.def("_linear_weight_grad(Tensor dy, Tensor x) -> Tensor");
  library.def(
      "_moe_forward(Tensor x, Tensor router, Tensor[] gate_up, Tensor[] down, "
      "int experts_per_token, bool norm_topk_prob, Tensor? ids) -> Tensor[]");
  library.def(
      "_moe_backward(Tensor dout, Tensor[] saved, Tensor x, Tensor router, Tensor[] gate_up, "
      "Tensor[] down, bool norm_topk_prob) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(quatrain, CPU, library) {
  library.impl("fake_quant_int4", FakeQuantCpu);
  library.impl("pack_int4", PackCpu);
  library.impl("unpack_int4", UnpackCpu);
  library.impl("w4a16_linear", LinearCpu);
  library.impl("w4a16_moe", Moe<MoeCpu>);
  library.impl("w4a16_linear_train", LinearTrain);
  library.impl("w4a16_moe_train", MoeTrain);
  library.impl("_linear_input_grad", InputGradCpu);
  library.impl("_linear_weight_grad", WeightGradCpu);
  library.impl("_moe_forward", MoeForward<MoeForwardCpu>);
  library.impl("_moe_backward", MoeBackward<MoeBackwardCpu>);
}

#if defined(QT_WITH_CUDA)
TORCH_LIBRARY_IMPL(quatrain, CUDA, library) {
  library.impl("fake_quant_int4", FakeQuantCuda);
  library.impl("pack_int4", PackCuda);
  library.impl("unpack_int4", UnpackCuda);
  library.impl("kernel_layout_int4", KernelLayoutCuda);
  library.impl("w4a16_linear", LinearCuda);
  library.impl("w4a16_moe", Moe<MoeCuda>);
  library.impl("unpack_layout_int4", UnpackLayoutCuda);
  library.impl("w4a16_linear_train", LinearTrain);
  library.impl("w4a16_moe_train", MoeTrain);
  library.impl("_linear_input_grad", InputGradCuda);
  library.impl("_linear_weight_grad", WeightGradCuda);
  library.impl("_moe_forward", MoeForward<MoeForwardCuda>);
  library.impl("_moe_backward", MoeBackward<MoeBackwardCuda>);
}
#endif

TORCH_LIBRARY_IMPL(quatrain, Autograd, library) {
  library.impl("fake_quant_int4", FakeQuantWithGradient);
  library.impl("w4a16_linear", LinearWithGradient);
  library.impl("w4a16_linear_train", LinearTrainWithGradient);
  library.impl("w4a16_moe_train", MoeTrainWithGradient);
  // A second derivative through these is an error, not a missing gradient.
  library.impl("_linear_weight_grad", torch::autograd::autogradNotImplementedFallback());
  library.impl("_moe_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace
}  // namespace quatrain::torch_library
