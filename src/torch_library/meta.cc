#include "torch_library/meta.h"

#include <vector>

#include "torch_library/shapes.h"

namespace quatrain::torch_library {
namespace {

using Sizes = std::vector<c10::SymInt>;

at::Tensor Empty(const at::Tensor& beside, const Sizes& sizes, at::ScalarType type) {
  return at::empty_symint(sizes, beside.options().dtype(type));
}

// Leading dimensions may be symbols: they stay as they are.
Sizes SizesWithLast(const at::Tensor& tensor, int64_t last) {
  Sizes sizes = tensor.sym_sizes().vec();
  sizes.back() = last;
  return sizes;
}

// As the kernels of CUDA do, for x that stands for a tensor there: inside a kernel its device is
// meta, its dispatch key that of CUDA still.
void CheckTypeOfDevice(const at::Tensor& x) {
  if (x.key_set().has_backend(c10::BackendComponent::CUDABit)) CheckBFloat16(x);
}

}  // namespace

at::Tensor FakeQuantMeta(const at::Tensor& weight_OI, int64_t group_size) {
  ShapeOfWeight(weight_OI, group_size);
  return Empty(weight_OI, weight_OI.sym_sizes().vec(), weight_OI.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> PackMeta(const at::Tensor& weight_OI, int64_t group_size) {
  const int64_t columns = ShapeOfWeight(weight_OI, group_size).columns;
  return {Empty(weight_OI, SizesWithLast(weight_OI, columns / 8), at::kInt),
          Empty(weight_OI, SizesWithLast(weight_OI, columns / group_size), at::kBFloat16)};
}

at::Tensor UnpackMeta(const at::Tensor& packed, const at::Tensor& scale) {
  const MatrixShape shape = ShapeOfCodes(packed, scale);
  return Empty(packed, SizesWithLast(scale, shape.columns), at::kBFloat16);
}

at::Tensor KernelLayoutMeta(const at::Tensor& packed, const at::Tensor& scale) {
  const MatrixShape shape = ShapeOfCodes(packed, scale);
  return Empty(packed, {LayoutBytes(shape, MatricesOf(scale))}, at::kByte);
}

at::Tensor UnpackLayoutMeta(const at::Tensor& layout, const at::Tensor& scale,
                            int64_t in_features) {
  CheckLayout(layout, scale, in_features);
  return Empty(layout, SizesWithLast(scale, in_features), at::kBFloat16);
}

at::Tensor LinearMeta(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scale,
                      const std::optional<at::Tensor>& bias) {
  CheckTypeOfDevice(x);
  const MatrixShape shape = CheckLinear(x, packed, scale, bias);
  return Empty(x, SizesWithLast(x, shape.rows), x.scalar_type());
}

at::Tensor InputGradMeta(const at::Tensor& dy, const at::Tensor& packed, const at::Tensor& scale,
                         int64_t in_features) {
  CheckInputGrad(dy, packed, scale, in_features);
  return Empty(dy, SizesWithLast(dy, in_features), dy.scalar_type());
}

at::Tensor WeightGradMeta(const at::Tensor& dy, const at::Tensor& x) {
  CheckTypeOfDevice(x);
  CheckWeightGrad(dy, x);
  return Empty(x, {dy.sym_size(-1), x.sym_size(-1)}, at::kFloat);
}

at::Tensor MoeMeta(const MoeCall& call) {
  CheckTypeOfDevice(call.x_TD);
  CheckMoe(call);
  return Empty(call.x_TD, call.x_TD.sym_sizes().vec(), call.x_TD.scalar_type());
}

MoeSaved MoeForwardMeta(const MoeCall& call) {
  CheckTypeOfDevice(call.x_TD);
  const MoeShape shape = CheckMoe(call);
  const at::Tensor& x = call.x_TD;
  const c10::SymInt tokens = x.sym_size(0), slots = call.experts_per_token;
  const c10::SymInt rows = tokens * slots;
  return {.out_TD = Empty(x, x.sym_sizes().vec(), x.scalar_type()),
          .logits_TE = Empty(x, {tokens, shape.num_experts}, at::kFloat),
          .ids_TK = Empty(x, {tokens, slots}, at::kInt),
          .weights_TK = Empty(x, {tokens, slots}, at::kFloat),
          .h_RF = Empty(x, {rows, shape.inner}, x.scalar_type()),
          .y_RD = Empty(x, {rows, shape.hidden}, x.scalar_type()),
          .expert_begin = Empty(x, {shape.num_experts + 1}, at::kInt),
          .row_token = Empty(x, {rows}, at::kInt),
          .slot_row = Empty(x, {tokens, slots}, at::kInt)};
}

MoeGrads MoeBackwardMeta(const MoeCall& call, const MoeSaved&, const at::Tensor& dout,
                         const MoeNeeds& needs) {
  const MoeShape shape = CheckMoe(call);
  CheckMoeGrad(call, dout);
  const at::Tensor& x = call.x_TD;
  const int64_t experts = shape.num_experts;
  MoeGrads grads;
  if (needs.dx) grads.dx = Empty(x, x.sym_sizes().vec(), x.scalar_type());
  if (needs.drouter) grads.drouter = Empty(x, {experts, shape.hidden}, at::kFloat);
  if (needs.dgate_up) {
    grads.dgate_up = Empty(x, {experts, 2 * shape.inner, shape.hidden}, at::kFloat);
  }
  if (needs.ddown) grads.ddown = Empty(x, {experts, shape.hidden, shape.inner}, at::kFloat);
  return grads;
}

}  // namespace quatrain::torch_library
