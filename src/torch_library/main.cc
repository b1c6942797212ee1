// Registers the operators when the library is loaded:
// torch.ops.load_library(".../quatrain_torch.so").
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <array>

#include "torch_library/gradients.h"
#include "torch_library/meta.h"
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
    ThrowShape("gate_up and down", "two tensors each, codes and scales",
               std::to_string(gate_up.size()) + " and " + std::to_string(down.size()));
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

// budget: the operator's arguments
template <MoeGrads (*kBackward)(const MoeCall&, const MoeSaved&, const at::Tensor&,
                                const MoeNeeds&)>
std::vector<at::Tensor> MoeBackward(const at::Tensor& dout, at::TensorList saved,
                                    const at::Tensor& x, const at::Tensor& router,
                                    at::TensorList gate_up, at::TensorList down,
                                    bool norm_topk_prob, std::array<bool, 4> needs) {
  if (saved.size() != MoeSaved::kTensors) {
    ThrowShape("saved", std::to_string(MoeSaved::kTensors) + " tensors",
               std::to_string(saved.size()));
  }
  const MoeSaved forward = MoeSaved::FromList(saved);
  const MoeGrads grads = kBackward(
      CallOf(x, router, gate_up, down, SizeOf(forward.ids_TK, 1), norm_topk_prob, std::nullopt),
      forward, dout, {needs[0], needs[1], needs[2], needs[3]});
  std::vector<at::Tensor> list = {grads.dx, grads.drouter, grads.dgate_up, grads.ddown};
  for (at::Tensor& grad : list) {
    if (!grad.defined()) grad = at::empty({0}, x.options());  // a list has tensors only
  }
  return list;
}

TORCH_LIBRARY(quatrain, library) {
  // Their Meta kernels are tested with torch.library.opcheck.
  const auto define = [&](const char* schema) {
    library.def(schema, {at::Tag::pt2_compliant_tag});
  };
  define("fake_quant_int4(Tensor weight, int group_size) -> Tensor");
  define("pack_int4(Tensor weight, int group_size) -> (Tensor, Tensor)");
  define("unpack_int4(Tensor packed, Tensor scale) -> Tensor");
  define("kernel_layout_int4(Tensor packed, Tensor scale) -> Tensor");
  define("unpack_layout_int4(Tensor layout, Tensor scale, int in_features) -> Tensor");
  define("w4a16_linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias=None) -> Tensor");
  define(
      "w4a16_moe(Tensor x, Tensor router, Tensor[] gate_up, Tensor[] down, int experts_per_token, "
      "bool norm_topk_prob=True, Tensor? ids=None) -> Tensor");
  define(
      "w4a16_linear_train(Tensor x, Tensor weight, int group_size, Tensor? bias=None) -> Tensor");
  define(
      "w4a16_moe_train(Tensor x, Tensor router, Tensor gate_up, Tensor down, int group_size, "
      "int experts_per_token, bool norm_topk_prob=True, Tensor? ids=None) -> Tensor");
  // Parts of the training forms.
  define("_linear_input_grad(Tensor dy, Tensor packed, Tensor scale, int in_features) -> Tensor");
  define("_linear_weight_grad(Tensor dy, Tensor x) -> Tensor");
  define(
      "_moe_forward(Tensor x, Tensor router, Tensor[] gate_up, Tensor[] down, "
      "int experts_per_token, bool norm_topk_prob, Tensor? ids) -> Tensor[]");
  define(
      "_moe_backward(Tensor dout, Tensor[] saved, Tensor x, Tensor router, Tensor[] gate_up, "
      "Tensor[] down, bool norm_topk_prob, bool[4] needs) -> Tensor[]");
}

// Shapes and types alone: what torch.compile traces with.
TORCH_LIBRARY_IMPL(quatrain, Meta, library) {
  library.impl("fake_quant_int4", FakeQuantMeta);
  library.impl("pack_int4", PackMeta);
  library.impl("unpack_int4", UnpackMeta);
  library.impl("kernel_layout_int4", KernelLayoutMeta);
  library.impl("unpack_layout_int4", UnpackLayoutMeta);
  library.impl("w4a16_linear", LinearMeta);
  library.impl("w4a16_moe", Moe<MoeMeta>);
  library.impl("_linear_input_grad", InputGradMeta);
  library.impl("_linear_weight_grad", WeightGradMeta);
  library.impl("_moe_forward", MoeForward<MoeForwardMeta>);
  library.impl("_moe_backward", MoeBackward<MoeBackwardMeta>);
}

// Made of the others, on any device.
TORCH_LIBRARY_IMPL(quatrain, CompositeExplicitAutograd, library) {
  library.impl("w4a16_linear_train", LinearTrain);
  library.impl("w4a16_moe_train", MoeTrain);
}

TORCH_LIBRARY_IMPL(quatrain, CPU, library) {
  library.impl("fake_quant_int4", FakeQuantCpu);
  library.impl("pack_int4", PackCpu);
  library.impl("unpack_int4", UnpackCpu);
  library.impl("w4a16_linear", LinearCpu);
  library.impl("w4a16_moe", Moe<MoeCpu>);
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
  library.impl("_linear_input_grad", InputGradCuda);
  library.impl("_linear_weight_grad", WeightGradCuda);
  library.impl("_moe_forward", MoeForward<MoeForwardCuda>);
  library.impl("_moe_backward", MoeBackward<MoeBackwardCuda>);
}
#endif

TORCH_LIBRARY_IMPL(quatrain, Autograd, library) {
  library.impl("fake_quant_int4", FakeQuantWithGradient);
  library.impl("w4a16_linear", LinearWithGradient);
  library.impl("_linear_input_grad", InputGradWithGradient);
  library.impl("w4a16_linear_train", LinearTrainWithGradient);
  library.impl("w4a16_moe_train", MoeTrainWithGradient);
  // Codes and what is made of them have no gradient: training goes through fake_quant_int4 or the
  // training forms.
  for (const char* name :
       {"pack_int4", "unpack_int4", "kernel_layout_int4", "unpack_layout_int4"}) {
    library.impl(name, torch::CppFunction::makeFallthrough());
  }
  // A gradient through these is an error, not a missing one: the rollout's layer has none, the
  // others no second derivative (but w4a16_linear_train's of dx: gradients.cc).
  library.impl("w4a16_moe", torch::autograd::autogradNotImplementedFallback());
  library.impl("_moe_forward", torch::autograd::autogradNotImplementedFallback());
  library.impl("_linear_weight_grad", torch::autograd::autogradNotImplementedFallback());
  library.impl("_moe_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace
}  // namespace quatrain::torch_library
