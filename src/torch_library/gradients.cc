#include "torch_library/gradients.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include "torch_library/shapes.h"

namespace quatrain::torch_library {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The operator of this name below the gradients, on whichever device.
template <class Signature>
auto Below(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

class FakeQuantFunction : public torch::autograd::Function<FakeQuantFunction> {
 public:
  static at::Tensor forward(AutogradContext*, const at::Tensor& weight, int64_t group_size) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return Below<at::Tensor(const at::Tensor&, int64_t)>("quatrain::fake_quant_int4")
        .call(weight, group_size);
  }
  static variable_list backward(AutogradContext*, variable_list dy) {
    return {dy[0], at::Tensor()};
  }
};

class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& packed,
                            const at::Tensor& scale, const std::optional<at::Tensor>& bias) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({packed, scale});
    context->saved_data["has_bias"] = bias.has_value();
    return Below<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const std::optional<at::Tensor>&)>("quatrain::w4a16_linear")
        .call(x, packed, scale, bias);
  }
  static variable_list backward(AutogradContext* context, variable_list dy) {
    const variable_list saved = context->get_saved_variables();
    if (saved[0].scalar_type() != at::kInt) {
      ThrowShape("gradient of w4a16_linear", "int32 codes", ShapeOf(saved[0]));
    }
    const at::Tensor weight =
        Below<at::Tensor(const at::Tensor&, const at::Tensor&)>("quatrain::unpack_int4")
            .call(saved[0], saved[1]);
    const at::Tensor dx = at::matmul(dy[0], weight.to(dy[0].scalar_type()));
    at::Tensor dbias;
    if (context->saved_data["has_bias"].toBool()) {
      dbias = dy[0].reshape({-1, dy[0].size(-1)}).sum(0);
    }
    return {dx, at::Tensor(), at::Tensor(), dbias};
  }
};

}  // namespace

at::Tensor FakeQuantWithGradient(const at::Tensor& weight_OI, int64_t group_size) {
  return FakeQuantFunction::apply(weight_OI, group_size);
}

at::Tensor LinearWithGradient(const at::Tensor& x, const at::Tensor& packed,
                              const at::Tensor& scale, const std::optional<at::Tensor>& bias) {
  return LinearFunction::apply(x, packed, scale, bias);
}

}  // namespace quatrain::torch_library
