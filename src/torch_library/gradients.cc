#include "torch_library/gradients.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "torch_library/moe.h"
#include "torch_library/shapes.h"

namespace quatrain::torch_library {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The operator of this name, on whichever device; inside a forward the one below the gradients.
template <class Signature>
auto Operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

class FakeQuantFunction : public torch::autograd::Function<FakeQuantFunction> {
 public:
  static at::Tensor forward(AutogradContext*, const at::Tensor& weight, int64_t group_size) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return Operator<at::Tensor(const at::Tensor&, int64_t)>("quatrain::fake_quant_int4")
        .call(weight, group_size);
  }
  static variable_list backward(AutogradContext*, variable_list dy) {
    return {dy[0], at::Tensor()};
  }
};

using Pair = std::tuple<at::Tensor, at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

Pair Pack(const at::Tensor& weight, int64_t group_size) {
  return Operator<Pair(const at::Tensor&, int64_t)>("quatrain::pack_int4").call(weight, group_size);
}

at::Tensor Multiply(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scale,
                    const OptionalTensor& bias) {
  return Operator<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                             const OptionalTensor&)>("quatrain::w4a16_linear")
      .call(x, packed, scale, bias);
}

// The same as the device's kernels multiply by it: made once for the forward and the backward.
Pair PackForKernels(const at::Tensor& weight, int64_t group_size) {
  auto [packed, scale] = Pack(weight, group_size);
  if (packed.is_cuda()) {
    packed =
        Operator<at::Tensor(const at::Tensor&, const at::Tensor&)>("quatrain::kernel_layout_int4")
            .call(packed, scale);
  }
  return {packed, scale};
}

using InputGradSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                      int64_t);

// dy w', whose gradient is w4a16_linear of that of dx.
class InputGradFunction : public torch::autograd::Function<InputGradFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& dy,
                            const at::Tensor& packed, const at::Tensor& scale,
                            int64_t in_features) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({packed, scale});
    return Operator<InputGradSignature>("quatrain::_linear_input_grad")
        .call(dy, packed, scale, in_features);
  }
  static variable_list backward(AutogradContext* context, variable_list ddx) {
    const variable_list saved = context->get_saved_variables();
    return {Multiply(ddx[0], saved[0], saved[1], {}), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// d weight = dy^T x, summed in FP32, in the shape and type of the weight.
at::Tensor WeightGrad(const at::Tensor& dy, const at::Tensor& x, at::IntArrayRef sizes,
                      at::ScalarType type) {
  return Operator<at::Tensor(const at::Tensor&, const at::Tensor&)>("quatrain::_linear_weight_grad")
      .call(dy, x)
      .view(sizes)
      .to(type);
}

std::vector<int64_t> SizesOf(const at::Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) sizes.push_back(SizeOf(tensor, dim));
  return sizes;
}

// dy w' of codes that were made of a weight, which has a gradient too: dy^T of that of dx.
class TrainInputGradFunction : public torch::autograd::Function<TrainInputGradFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& dy,
                            const at::Tensor& packed, const at::Tensor& scale, int64_t in_features,
                            const at::Tensor& weight) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({dy, packed, scale, weight});
    return Operator<InputGradSignature>("quatrain::_linear_input_grad")
        .call(dy, packed, scale, in_features);
  }
  static variable_list backward(AutogradContext* context, variable_list ddx) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &packed = saved[1], &scale = saved[2], &weight = saved[3];
    at::Tensor ddy, dweight;
    if (context->needs_input_grad(0)) {
      // Where somebody differentiates further, by the weight again.
      const bool is_differentiated = at::GradMode::is_enabled();
      ddy = is_differentiated
                ? Operator<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t,
                                      const OptionalTensor&)>("quatrain::w4a16_linear_train")
                      .call(ddx[0], weight, SizeOf(weight, -1) / SizeOf(scale, -1), {})
                : Multiply(ddx[0], packed, scale, {});
    }
    if (context->needs_input_grad(3)) {
      dweight = WeightGrad(saved[0], ddx[0], SizesOf(weight), weight.scalar_type());
    }
    return {ddy, at::Tensor(), at::Tensor(), at::Tensor(), dweight};
  }
};

// What the backward of a linear asks of its forward's arguments.
void SaveLinear(AutogradContext* context, const at::Tensor& x, const OptionalTensor& bias) {
  context->saved_data["has_bias"] = bias.has_value();
  if (bias) context->saved_data["bias_type"] = static_cast<int64_t>(bias->scalar_type());
  context->saved_data["in_features"] = x.dim() < 1 ? 0 : SizeOf(x, -1);
}

// dx of a linear, where x, its first tensor, asks for it.
at::Tensor InputGrad(AutogradContext* context, const at::Tensor& dy, const at::Tensor& packed,
                     const at::Tensor& scale) {
  if (!context->needs_input_grad(0)) return {};
  return Operator<InputGradSignature>("quatrain::_linear_input_grad")
      .call(dy, packed, scale, context->saved_data["in_features"].toInt());
}

// The same of the bias, tensor number `bias_index` of the operator's, summed in the wider of its
// type and dy's.
at::Tensor BiasGrad(AutogradContext* context, const at::Tensor& dy, size_t bias_index) {
  if (!context->saved_data["has_bias"].toBool() || !context->needs_input_grad(bias_index)) {
    return {};
  }
  const auto type = static_cast<at::ScalarType>(context->saved_data["bias_type"].toInt());
  return AsRows(dy).sum(0, false, at::promote_types(type, dy.scalar_type()));
}

class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& packed,
                            const at::Tensor& scale, const OptionalTensor& bias) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({packed, scale});
    SaveLinear(context, x, bias);
    return Multiply(x, packed, scale, bias);
  }
  static variable_list backward(AutogradContext* context, variable_list dy) {
    const variable_list saved = context->get_saved_variables();
    return {InputGrad(context, dy[0], saved[0], saved[1]), at::Tensor(), at::Tensor(),
            BiasGrad(context, dy[0], 3)};
  }
};

class LinearTrainFunction : public torch::autograd::Function<LinearTrainFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            int64_t group_size, const OptionalTensor& bias) {
    const at::AutoDispatchBelowADInplaceOrView below;
    // One matrix: the kernels' units of 8 rows go across leading dimensions.
    const at::Tensor weight_OI = weight.dim() > 2 ? weight.flatten(0, -2) : weight;
    const auto [packed, scale] = PackForKernels(weight_OI, group_size);
    // x is for dW alone, the weight itself for the gradient of dx by it.
    const bool has_dweight = weight.requires_grad();
    context->save_for_backward(
        {has_dweight ? x : at::Tensor(), packed, scale, has_dweight ? weight : at::Tensor()});
    SaveLinear(context, x, bias);
    return Multiply(x, packed, scale, bias);
  }
  static variable_list backward(AutogradContext* context, variable_list dy) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& weight = saved[3];
    at::Tensor dx, dweight;
    if (weight.defined() && context->needs_input_grad(0) && at::GradMode::is_enabled()) {
      dx = TrainInputGradFunction::apply(dy[0], saved[1], saved[2],
                                         context->saved_data["in_features"].toInt(), weight);
    } else {
      dx = InputGrad(context, dy[0], saved[1], saved[2]);
    }
    if (context->needs_input_grad(1)) {
      dweight = WeightGrad(dy[0], saved[0], SizesOf(weight), weight.scalar_type());
    }
    return {dx, dweight, at::Tensor(), BiasGrad(context, dy[0], 2)};
  }
};

using MoeForwardSignature = std::vector<at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                    at::TensorList, at::TensorList, int64_t, bool,
                                                    const OptionalTensor&);
using MoeBackwardSignature = std::vector<at::Tensor>(const at::Tensor&, at::TensorList,
                                                     const at::Tensor&, const at::Tensor&,
                                                     at::TensorList, at::TensorList, bool,
                                                     std::array<bool, 4>);

constexpr size_t kMoeInputs = 6;  // that are saved before what the forward left

class MoeTrainFunction : public torch::autograd::Function<MoeTrainFunction> {
 public:
  // budget: the operator's arguments
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& router,
                            const at::Tensor& gate_up, const at::Tensor& down, int64_t group_size,
                            int64_t experts_per_token, bool norm_topk_prob,
                            const OptionalTensor& ids) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [up_codes, up_scale] = PackForKernels(gate_up, group_size);
    const auto [down_codes, down_scale] = PackForKernels(down, group_size);
    variable_list saved = {x, router, up_codes, up_scale, down_codes, down_scale};
    const variable_list left = Operator<MoeForwardSignature>("quatrain::_moe_forward")
                                   .call(x, router, {up_codes, up_scale}, {down_codes, down_scale},
                                         experts_per_token, norm_topk_prob, ids);
    // The output itself is not needed again; an empty tensor keeps its place.
    saved.push_back(at::empty({0}, x.options()));
    saved.insert(saved.end(), left.begin() + 1, left.end());
    context->save_for_backward(saved);
    context->saved_data["norm_topk_prob"] = norm_topk_prob;
    context->saved_data["gate_up_type"] = static_cast<int64_t>(gate_up.scalar_type());
    context->saved_data["down_type"] = static_cast<int64_t>(down.scalar_type());
    return left[0];
  }
  static variable_list backward(AutogradContext* context, variable_list dout) {
    const variable_list saved = context->get_saved_variables();
    const auto type_of = [&](const char* name) {
      return static_cast<at::ScalarType>(context->saved_data[name].toInt());
    };
    std::array<bool, 4> needs;
    for (size_t i = 0; i < needs.size(); ++i) needs[i] = context->needs_input_grad(i);
    // Gradients of a weight depend on the other weight, of which _moe_backward sees codes only.
    // That their derivatives are refused, not left out, needs an argument that asks for a gradient.
    const bool is_differentiated = at::GradMode::is_enabled() && (needs[2] || needs[3]);
    if (is_differentiated) dout[0] = dout[0].detach().requires_grad_();
    const at::TensorList all(saved);
    variable_list grads =
        Operator<MoeBackwardSignature>("quatrain::_moe_backward")
            .call(dout[0], all.slice(kMoeInputs), saved[0], saved[1], all.slice(2, 2),
                  all.slice(4, 2), context->saved_data["norm_topk_prob"].toBool(), needs);
    // FP32 gradients of experts are large: each is let go once it has been rounded.
    const auto take = [&](size_t i, at::ScalarType type) {
      const at::Tensor grad = std::exchange(grads[i], {});
      return needs[i] ? grad.to(type) : at::Tensor();
    };
    return {take(0, saved[0].scalar_type()),
            take(1, saved[1].scalar_type()),
            take(2, type_of("gate_up_type")),
            take(3, type_of("down_type")),
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
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

at::Tensor InputGradWithGradient(const at::Tensor& dy, const at::Tensor& packed,
                                 const at::Tensor& scale, int64_t in_features) {
  return InputGradFunction::apply(dy, packed, scale, in_features);
}

at::Tensor LinearTrain(const at::Tensor& x, const at::Tensor& weight_OI, int64_t group_size,
                       const std::optional<at::Tensor>& bias) {
  const auto [packed, scale] = Pack(weight_OI, group_size);
  return Multiply(x, packed, scale, bias);
}

at::Tensor LinearTrainWithGradient(const at::Tensor& x, const at::Tensor& weight_OI,
                                   int64_t group_size, const std::optional<at::Tensor>& bias) {
  return LinearTrainFunction::apply(x, weight_OI, group_size, bias);
}

// budget: the operator's arguments
at::Tensor MoeTrain(const at::Tensor& x_TD, const at::Tensor& router_ED, const at::Tensor& gate_up,
                    const at::Tensor& down, int64_t group_size, int64_t experts_per_token,
                    bool norm_topk_prob, const std::optional<at::Tensor>& ids) {
  const auto [up_codes, up_scale] = Pack(gate_up, group_size);
  const auto [down_codes, down_scale] = Pack(down, group_size);
  return Operator<MoeForwardSignature>("quatrain::_moe_forward")
      .call(x_TD, router_ED, {up_codes, up_scale}, {down_codes, down_scale}, experts_per_token,
            norm_topk_prob, ids)[0];
}

// budget: the operator's arguments
at::Tensor MoeTrainWithGradient(const at::Tensor& x_TD, const at::Tensor& router_ED,
                                const at::Tensor& gate_up, const at::Tensor& down,
                                int64_t group_size, int64_t experts_per_token, bool norm_topk_prob,
                                const std::optional<at::Tensor>& ids) {
  return MoeTrainFunction::apply(x_TD, router_ED, gate_up, down, group_size, experts_per_token,
                                 norm_topk_prob, ids);
}

}  // namespace quatrain::torch_library
