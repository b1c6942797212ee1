#include "torch_library/operators.h"

#if defined(QT_WITH_CUDA)
#include <ATen/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "kernels/cuda/int4_quantize.h"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/pack.h"
#include "torch_library/shapes.h"

namespace quatrain::torch_library {
namespace {

using cuda::LaunchOrder;
using cuda::PackedShape;

constexpr int64_t kMostRowsFromCodes = 64;

// The stream that torch works in on the tensor's device. Asked of torch's own guard, so that
// nothing here links torch's CUDA part.
cudaStream_t StreamOf(const at::Tensor& tensor) {
  const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  return static_cast<cudaStream_t>(guard.getStream(tensor.device()).native_handle());
}

template <class T>
T* DeviceData(const at::Tensor& tensor, const at::Tensor& beside) {
  QT_CHECK(tensor.is_contiguous(), "tensor layout");
  if (tensor.device() != beside.device()) {
    ThrowShape("tensor", "on " + beside.device().str(), tensor.device().str());
  }
  return static_cast<T*>(tensor.data_ptr());
}

at::Tensor Empty(const at::Tensor& beside, at::IntArrayRef sizes, at::ScalarType type) {
  return at::empty(sizes, beside.options().dtype(type));
}

// Of `experts` weights that lie one after the other.
PackedShape PackedShapeOf(const MatrixShape& shape, int64_t experts) {
  const PackedShape packed{.out_features = shape.rows / experts,
                           .in_features = shape.columns,
                           .group_size = shape.group_size,
                           .num_bits = 4};
  cuda::CheckPackedShape(packed);
  return packed;
}

cuda::CodeTensors TensorsOf(const at::Tensor& packed, const at::Tensor& scale) {
  return {DeviceData<int32_t>(packed, packed), DeviceData<BFloat16>(scale, packed)};
}

// Leading dimensions of a weight.
int64_t ExpertsOf(const at::Tensor& scale) {
  return scale.numel() / (scale.size(-1) * scale.size(-2));
}

// The kernel layout of `packed`, which may be it already.
at::Tensor LayoutOf(const at::Tensor& packed, const at::Tensor& scale, const MatrixShape& shape,
                    cudaStream_t stream) {
  const int64_t experts = ExpertsOf(scale);
  const PackedShape each = PackedShapeOf(shape, experts);
  if (packed.scalar_type() == at::kByte) {
    if (packed.numel() != experts * cuda::PackedBytes(each) || !packed.is_contiguous()) {
      ThrowShape("packed",
                 fmt::format("a kernel layout of {} bytes", experts * cuda::PackedBytes(each)),
                 ShapeOf(packed));
    }
    return packed;
  }
  CheckCodes(packed, shape);
  const at::Tensor codes = packed.contiguous(), scales = scale.contiguous();
  at::Tensor layout = Empty(packed, {experts * cuda::PackedBytes(each)}, at::kByte);
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t row = e * each.out_features;
    cuda::CodeTensors tensors = TensorsOf(codes, scales);
    tensors.codes += row * (shape.columns / 8);
    tensors.scale += row * (shape.columns / shape.group_size);
    cuda::PackWeights(each, tensors,
                      DeviceData<uint8_t>(layout, packed) + e * cuda::PackedBytes(each), nullptr,
                      stream);
  }
  return layout;
}

void CheckActivation(const at::Tensor& x) {
  if (x.scalar_type() != at::kBFloat16) ThrowShape("x", "BF16", ShapeOf(x));
}

// The buffers a routing lives in.
struct RoutingBuffers {
  at::Tensor logits, ids, weights, expert_begin, row_token, slot_row, tiles, num_tiles, counters;

  RoutingBuffers(const at::Tensor& x_TD, int64_t num_experts, int64_t num_slots)
      : logits(Empty(x_TD, {x_TD.size(0), num_experts}, at::kFloat)),
        ids(Empty(x_TD, {x_TD.size(0), num_slots}, at::kInt)),
        weights(Empty(x_TD, {x_TD.size(0), num_slots}, at::kFloat)),
        expert_begin(Empty(x_TD, {num_experts + 1}, at::kInt)),
        row_token(Empty(x_TD, {x_TD.size(0) * num_slots}, at::kInt)),
        slot_row(Empty(x_TD, {x_TD.size(0) * num_slots}, at::kInt)),
        tiles(Empty(x_TD, {cuda::MaxMoeTiles(x_TD.size(0) * num_slots, num_experts), 4}, at::kInt)),
        num_tiles(Empty(x_TD, {1}, at::kInt)),
        counters(at::zeros({cuda::RouterCounters(x_TD.size(0))}, x_TD.options().dtype(at::kInt))) {}
  cuda::MoeRouting Get() const {
    return {.ids = ids.data_ptr<int32_t>(),
            .weights = weights.data_ptr<float>(),
            .expert_begin = expert_begin.data_ptr<int32_t>(),
            .row_token = row_token.data_ptr<int32_t>(),
            .slot_row = slot_row.data_ptr<int32_t>(),
            .tiles = reinterpret_cast<cuda::MoeTile*>(tiles.data_ptr<int32_t>()),
            .num_tiles = num_tiles.data_ptr<int32_t>()};
  }
};

}  // namespace

at::Tensor FakeQuantCuda(const at::Tensor& weight_OI, int64_t group_size) {
  const MatrixShape shape = ShapeOfWeight(weight_OI, group_size);
  const c10::DeviceGuard guard(weight_OI.device());
  const at::Tensor weight = weight_OI.contiguous();
  const bool is_master = weight.scalar_type() == at::kFloat;
  at::Tensor fake = Empty(weight, weight.sizes(), at::kBFloat16);
  if (fake.numel() == 0) return fake.to(weight.scalar_type());
  cuda::Quantize({.weight = is_master ? nullptr : DeviceData<BFloat16>(weight, weight),
                  .master = is_master ? DeviceData<float>(weight, weight) : nullptr,
                  .out_features = shape.rows,
                  .in_features = shape.columns,
                  .spec = {.group_size = group_size},
                  .fake = DeviceData<BFloat16>(fake, weight)},
                 StreamOf(weight));
  return fake.to(weight.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> PackCuda(const at::Tensor& weight_OI, int64_t group_size) {
  const MatrixShape shape = ShapeOfWeight(weight_OI, group_size);
  const c10::DeviceGuard guard(weight_OI.device());
  const at::Tensor weight = weight_OI.contiguous();
  const bool is_master = weight.scalar_type() == at::kFloat;
  at::Tensor packed = Empty(weight, WithLast(weight, shape.columns / 8), at::kInt);
  at::Tensor scale = Empty(weight, WithLast(weight, shape.columns / group_size), at::kBFloat16);
  if (packed.numel() == 0) return {packed, scale};
  cuda::Quantize({.weight = is_master ? nullptr : DeviceData<BFloat16>(weight, weight),
                  .master = is_master ? DeviceData<float>(weight, weight) : nullptr,
                  .out_features = shape.rows,
                  .in_features = shape.columns,
                  .spec = {.group_size = group_size},
                  .packed = DeviceData<int32_t>(packed, weight),
                  .scale = DeviceData<BFloat16>(scale, weight)},
                 StreamOf(weight));
  return {packed, scale};
}

at::Tensor UnpackCuda(const at::Tensor& packed, const at::Tensor& scale) {
  const MatrixShape shape = ShapeOfScale(scale, packed.dim() < 2 ? 0 : packed.size(-1) * 8);
  CheckCodes(packed, shape);
  const c10::DeviceGuard guard(packed.device());
  const at::Tensor codes = packed.contiguous(), scales = scale.contiguous();
  at::Tensor weight = Empty(packed, WithLast(scale, shape.columns), at::kBFloat16);
  if (weight.numel() == 0) return weight;
  cuda::DequantizeWeights(PackedShapeOf(shape, 1), TensorsOf(codes, scales),
                          DeviceData<BFloat16>(weight, packed), StreamOf(packed));
  return weight;
}

at::Tensor KernelLayoutCuda(const at::Tensor& packed, const at::Tensor& scale) {
  const MatrixShape shape = ShapeOfScale(scale, packed.dim() < 2 ? 0 : packed.size(-1) * 8);
  CheckCodes(packed, shape);
  const c10::DeviceGuard guard(packed.device());
  return LayoutOf(packed, scale, shape, StreamOf(packed));
}

at::Tensor LinearCuda(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scale,
                      const std::optional<at::Tensor>& bias) {
  CheckActivation(x);
  const MatrixShape shape = ShapeOfScale(scale, x.dim() < 1 ? 0 : x.size(-1));
  const c10::DeviceGuard guard(x.device());
  const at::Tensor rows = x.reshape({-1, shape.columns}).contiguous();
  at::Tensor bias_O;
  if (bias) {
    if (bias->dim() != 1 || bias->size(0) != shape.rows) {
      ThrowShape("bias", fmt::format("[{}]", shape.rows), ShapeOf(*bias));
    }
    bias_O = bias->to(at::kBFloat16).contiguous();
  }
  if (packed.scalar_type() == at::kInt && rows.size(0) > kMostRowsFromCodes) {
    const at::Tensor y = at::linear(rows, UnpackCuda(packed, scale), bias_O);
    return y.view(WithLast(x, shape.rows));
  }
  const cudaStream_t stream = StreamOf(x);
  const at::Tensor layout = LayoutOf(packed, scale, shape, stream);
  at::Tensor y = Empty(x, {rows.size(0), shape.rows}, at::kBFloat16);
  cuda::LinearDecode({.type = WeightType::kInt4,
                      .shape = {shape.rows, shape.columns, shape.group_size, 4},
                      .weight = DeviceData<uint8_t>(layout, x),
                      .x = DeviceData<BFloat16>(rows, x),
                      .num_tokens = rows.size(0),
                      .bias = bias_O.defined() ? DeviceData<BFloat16>(bias_O, x) : nullptr,
                      .y = DeviceData<BFloat16>(y, x)},
                     stream, LaunchOrder::kAfterPrevious);
  return y.view(WithLast(x, shape.rows));
}

at::Tensor MoeCuda(const MoeCall& call) {
  CheckActivation(call.x_TD);
  const int64_t inner = CheckMoe(call);
  const int64_t hidden = call.x_TD.size(1);
  const int64_t num_experts = call.router_ED.size(0);
  const int64_t slots = call.experts_per_token;
  const MatrixShape up_shape = ShapeOfScale(call.gate_up_scale, hidden);
  const MatrixShape down_shape = ShapeOfScale(call.down_scale, inner);
  const c10::DeviceGuard guard(call.x_TD.device());
  const cudaStream_t stream = StreamOf(call.x_TD);
  const at::Tensor x_TD = call.x_TD.contiguous(), router_ED = call.router_ED.contiguous();
  const at::Tensor gate_up = LayoutOf(call.gate_up, call.gate_up_scale, up_shape, stream);
  const at::Tensor down = LayoutOf(call.down, call.down_scale, down_shape, stream);
  const at::Tensor ids = call.ids_TK.defined() ? call.ids_TK.contiguous() : call.ids_TK;
  const RoutingBuffers buffers(x_TD, num_experts, slots);
  const int64_t tokens = x_TD.size(0);
  cuda::MoeRouter({.config = {num_experts, slots, call.norm_topk_prob},
                   .x = DeviceData<BFloat16>(x_TD, x_TD),
                   .weight_ED = DeviceData<BFloat16>(router_ED, x_TD),
                   .num_tokens = tokens,
                   .hidden = hidden,
                   .replayed_ids = ids.defined() ? DeviceData<int32_t>(ids, x_TD) : nullptr,
                   .logits_TE = buffers.logits.data_ptr<float>(),
                   .routing = buffers.Get(),
                   .counters = buffers.counters.data_ptr<int32_t>()},
                  stream, LaunchOrder::kAfterPrevious);
  at::Tensor h_RF = Empty(x_TD, {tokens * slots, inner}, at::kBFloat16);
  at::Tensor y_RD = Empty(x_TD, {tokens * slots, hidden}, at::kBFloat16);
  at::Tensor out_TD = Empty(x_TD, {tokens, hidden}, at::kBFloat16);
  cuda::MoeExpertsArgs args{.shape = PackedShapeOf(up_shape, num_experts),
                            .weight = DeviceData<uint8_t>(gate_up, x_TD),
                            .num_experts = num_experts,
                            .num_tokens = tokens,
                            .num_slots = slots,
                            .routing = buffers.Get(),
                            .x = DeviceData<BFloat16>(x_TD, x_TD),
                            .y = DeviceData<BFloat16>(h_RF, x_TD)};
  cuda::MoeGateUp(args, stream, LaunchOrder::kOverlap);
  args.shape = PackedShapeOf(down_shape, num_experts);
  args.weight = DeviceData<uint8_t>(down, x_TD);
  args.x = DeviceData<BFloat16>(h_RF, x_TD);
  args.y = DeviceData<BFloat16>(y_RD, x_TD);
  cuda::MoeDown(args, stream, LaunchOrder::kOverlap);
  cuda::MoeCombine({.y = DeviceData<BFloat16>(y_RD, x_TD),
                    .routing = buffers.Get(),
                    .num_tokens = tokens,
                    .num_slots = slots,
                    .hidden = hidden,
                    .out = DeviceData<BFloat16>(out_TD, x_TD)},
                   stream, LaunchOrder::kOverlap);
  return out_TD;
}

}  // namespace quatrain::torch_library
#endif
