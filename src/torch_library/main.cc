// Registers the operators when the library is loaded:
// torch.ops.load_library(".../quatrain_torch.so").
#include <torch/library.h>

#include "torch_library/gradients.h"
#include "torch_library/operators.h"
#include "torch_library/shapes.h"

namespace quatrain::torch_library {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// gate_up and down: codes or kernel layout, and scales.
template <at::Tensor (*kMoe)(const MoeCall&)>
at::Tensor Moe(const at::Tensor& x, const at::Tensor& router, at::TensorList gate_up,
               at::TensorList down, int64_t experts_per_token, bool norm_topk_prob,
               const OptionalTensor& ids) {
  if (gate_up.size() != 2 || down.size() != 2) {
    ThrowShape("w4a16_moe", "codes and scales of gate_up and of down",
               std::to_string(gate_up.size()) + " and " + std::to_string(down.size()) + " tensors");
  }
  return kMoe({x, router, gate_up[0], gate_up[1], down[0], down[1], experts_per_token,
               norm_topk_prob, ids.value_or(at::Tensor())});
}

TORCH_LIBRARY(quatrain, library) {
  library.def("fake_quant_int4(Tensor weight, int group_size) -> Tensor");
  library.def("pack_int4(Tensor weight, int group_size) -> (Tensor, Tensor)");
  library.def("unpack_int4(Tensor packed, Tensor scale) -> Tensor");
  library.def("kernel_layout_int4(Tensor packed, Tensor scale) -> Tensor");
  library.def("w4a16_linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias=None) -> Tensor");
  library.def(
      "w4a16_moe(Tensor x, Tensor router, Tensor[] gate_up, Tensor[] down, int experts_per_token, "
      "bool norm_topk_prob=True, Tensor? ids=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(quatrain, CPU, library) {
  library.impl("fake_quant_int4", FakeQuantCpu);
  library.impl("pack_int4", PackCpu);
  library.impl("unpack_int4", UnpackCpu);
  library.impl("w4a16_linear", LinearCpu);
  library.impl("w4a16_moe", Moe<MoeCpu>);
}

#if defined(QT_WITH_CUDA)
TORCH_LIBRARY_IMPL(quatrain, CUDA, library) {
  library.impl("fake_quant_int4", FakeQuantCuda);
  library.impl("pack_int4", PackCuda);
  library.impl("unpack_int4", UnpackCuda);
  library.impl("kernel_layout_int4", KernelLayoutCuda);
  library.impl("w4a16_linear", LinearCuda);
  library.impl("w4a16_moe", Moe<MoeCuda>);
}
#endif

TORCH_LIBRARY_IMPL(quatrain, Autograd, library) {
  library.impl("fake_quant_int4", FakeQuantWithGradient);
  library.impl("w4a16_linear", LinearWithGradient);
}

}  // namespace
}  // namespace quatrain::torch_library
