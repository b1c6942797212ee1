#include "torch_library/moe.h"

#if defined(QT_WITH_CUDA)
#include "kernels/cuda/input_grad.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/moe_backward.h"
#include "kernels/cuda/weight_grad.h"
#include "torch_library/cuda_tensors.h"

namespace quatrain::torch_library {
namespace {

using cuda::LaunchOrder;

// From so many routed rows an expert (on average) on, the kernels for many rows are taken, the
// gathering of rows included. Measured on an H100 (docs/results.md, "Experts of many rows"): where
// routing is even they are faster from 17 on, at random from 12, very uneven from 4; with 8 neither
// choice costs more than 9 % in any of the three. The bits are the same.
constexpr int64_t kFewestRowsOfMany = 8;

// The buffers a routing lives in.
struct RoutingBuffers {
  at::Tensor logits, ids, weights, expert_begin, row_token, slot_row, tiles, num_tiles, counters;

  RoutingBuffers(const at::Tensor& x_TD, int64_t num_experts, int64_t num_slots)
      : logits(Empty(x_TD, {x_TD.size(0), num_experts}, at::kFloat)),
        ids(Empty(x_TD, {x_TD.size(0), num_slots}, at::kInt)),
        weights(Empty(x_TD, {x_TD.size(0), num_slots}, at::kFloat)),
        expert_begin(Empty(x_TD, {num_experts + 1}, at::kInt)),
        row_token(Empty(x_TD, {x_TD.size(0) * num_slots}, at::kInt)),
        slot_row(Empty(x_TD, {x_TD.size(0), num_slots}, at::kInt)),
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

// Sizes and weights of a layer, checked.
struct Layer {
  const MoeCall& call;
  int64_t inner, hidden, num_experts, slots, tokens;
  MatrixShape up_shape, down_shape;

  explicit Layer(const MoeCall& c) : Layer(c, CheckMoe(c)) {}
  Layer(const MoeCall& c, const MoeShape& shape)
      : call(c),
        inner(shape.inner),
        hidden(shape.hidden),
        num_experts(shape.num_experts),
        slots(c.experts_per_token),
        tokens(c.x_TD.size(0)),
        up_shape(shape.up),
        down_shape(shape.down) {}
  int64_t Rows() const { return tokens * slots; }
};

// What RunExperts leaves.
struct Outputs {
  const at::Tensor &h_RF, &y_RD, &out_TD;
};

void RunExperts(const Layer& layer, const at::Tensor& x_TD, const RoutingBuffers& buffers,
                const Outputs& to) {
  const cudaStream_t stream = StreamOf(x_TD);
  const at::Tensor gate_up = LayoutOf(layer.call.gate_up, layer.call.gate_up_scale, layer.up_shape);
  const at::Tensor down = LayoutOf(layer.call.down, layer.call.down_scale, layer.down_shape);
  cuda::MoeExpertsArgs args{.shape = PackedShapeOf(layer.up_shape, layer.num_experts),
                            .weight = DeviceData<uint8_t>(gate_up, x_TD),
                            .num_experts = layer.num_experts,
                            .num_tokens = layer.tokens,
                            .num_slots = layer.slots,
                            .routing = buffers.Get(),
                            .x = DeviceData<BFloat16>(x_TD, x_TD),
                            .y = DeviceData<BFloat16>(to.h_RF, x_TD)};
  const bool is_many = layer.Rows() >= kFewestRowsOfMany * layer.num_experts;
  at::Tensor rows_RD;
  if (is_many) {
    rows_RD = x_TD.index_select(0, buffers.row_token);
    args.x = DeviceData<BFloat16>(rows_RD, x_TD);
    cuda::MoeGateUpOfRows(args, stream, LaunchOrder::kAfterPrevious);
  } else {
    // The layout may have been written by the kernel before.
    cuda::MoeGateUp(args, stream, LaunchOrder::kAfterPrevious);
  }
  args.shape = PackedShapeOf(layer.down_shape, layer.num_experts);
  args.weight = DeviceData<uint8_t>(down, x_TD);
  args.x = DeviceData<BFloat16>(to.h_RF, x_TD);
  args.y = DeviceData<BFloat16>(to.y_RD, x_TD);
  const cuda::MoeCombineArgs combine{.y = args.y,
                                     .routing = args.routing,
                                     .num_tokens = layer.tokens,
                                     .num_slots = layer.slots,
                                     .hidden = layer.hidden,
                                     .out = DeviceData<BFloat16>(to.out_TD, x_TD)};
  if (is_many) {
    cuda::MoeDownOfRows(args, stream, LaunchOrder::kOverlap);
    cuda::MoeCombine(combine, stream, LaunchOrder::kOverlap);
  } else {
    cuda::MoeDownAndCombine(args, combine, stream, LaunchOrder::kOverlap);
  }
}

// dy^T x in FP32: [E, N, K] of rows sorted by expert, or [N, K] of all rows without expert_begin.
at::Tensor GradOfWeights(const at::Tensor& dy_RN, const at::Tensor& x_RK,
                         const at::Tensor& expert_begin) {
  at::DimVector sizes = {dy_RN.size(1), x_RK.size(1)};
  cuda::WeightGradArgs args{.dy = DeviceData<BFloat16>(dy_RN, dy_RN),
                            .x = DeviceData<BFloat16>(x_RK, dy_RN),
                            .num_rows = dy_RN.size(0),
                            .out_features = sizes[0],
                            .in_features = sizes[1],
                            .old = cuda::OldGradient::kReplaced};
  if (expert_begin.defined()) {
    args.num_experts = expert_begin.size(0) - 1;
    args.expert_begin = DeviceData<int32_t>(expert_begin, dy_RN);
    sizes.insert(sizes.begin(), args.num_experts);
  }
  at::Tensor dweight = Empty(dy_RN, sizes, at::kFloat);
  args.dweight = DeviceData<float>(dweight, dy_RN);
  cuda::WeightGrad(args, StreamOf(dy_RN), LaunchOrder::kAfterPrevious);
  return dweight;
}

// dy w' [R, K] of rows sorted by expert, or of all rows of one matrix without expert_begin; `shape`
// is that of an expert.
at::Tensor GradOfInputs(const at::Tensor& dy_RN, const at::Tensor& layout,
                        const cuda::PackedShape& shape, const at::Tensor& expert_begin) {
  cuda::InputGradArgs args{.dy = DeviceData<BFloat16>(dy_RN, dy_RN),
                           .weight = DeviceData<uint8_t>(layout, dy_RN),
                           .shape = shape,
                           .num_rows = dy_RN.size(0)};
  if (expert_begin.defined()) {
    args.num_experts = expert_begin.size(0) - 1;
    args.expert_begin = DeviceData<int32_t>(expert_begin, dy_RN);
  }
  const at::Tensor dx = Empty(dy_RN, {dy_RN.size(0), shape.in_features}, at::kBFloat16);
  args.dx = DeviceData<BFloat16>(dx, dy_RN);
  // The layout may have been written by the kernel before.
  cuda::InputGrad(args, StreamOf(dy_RN), LaunchOrder::kAfterPrevious);
  return dx;
}

// Rows of gate and up, which the forward did not keep: the same chain again (docs/numerics.md).
at::Tensor GateUpOfRows(const Layer& layer, const at::Tensor& rows_RD, const at::Tensor& layout,
                        const at::Tensor& expert_begin) {
  const at::Tensor gate_up_RF = Empty(rows_RD, {layer.Rows(), 2 * layer.inner}, at::kBFloat16);
  cuda::MoeDownOfRows({.shape = PackedShapeOf(layer.up_shape, layer.num_experts),
                       .weight = DeviceData<uint8_t>(layout, rows_RD),
                       .num_experts = layer.num_experts,
                       .num_tokens = layer.tokens,
                       .num_slots = layer.slots,
                       .routing = {.expert_begin = DeviceData<int32_t>(expert_begin, rows_RD)},
                       .x = DeviceData<BFloat16>(rows_RD, rows_RD),
                       .y = DeviceData<BFloat16>(gate_up_RF, rows_RD)},
                      StreamOf(rows_RD), LaunchOrder::kAfterPrevious);
  return gate_up_RF;
}

// Of the combination, by rows of experts and by weights of slots.
struct CombineGrad {
  at::Tensor dy_RD;        // BF16
  at::Tensor dweights_TK;  // FP32
};
CombineGrad GradOfCombine(const Layer& layer, const MoeSaved& saved, const at::Tensor& dout_TD) {
  CombineGrad grad{Empty(dout_TD, {layer.Rows(), layer.hidden}, at::kBFloat16),
                   at::empty_like(saved.weights_TK)};
  cuda::MoeCombineGrad({.dout = DeviceData<BFloat16>(dout_TD, dout_TD),
                        .y = DeviceData<BFloat16>(saved.y_RD, dout_TD),
                        .weights = DeviceData<float>(saved.weights_TK, dout_TD),
                        .slot_row = DeviceData<int32_t>(saved.slot_row, dout_TD),
                        .num_tokens = layer.tokens,
                        .num_slots = layer.slots,
                        .hidden = layer.hidden,
                        .dy = DeviceData<BFloat16>(grad.dy_RD, dout_TD),
                        .dweights = DeviceData<float>(grad.dweights_TK, dout_TD)},
                       StreamOf(dout_TD), LaunchOrder::kAfterPrevious);
  return grad;
}

}  // namespace

MoeSaved MoeForwardCuda(const MoeCall& call) {
  CheckBFloat16(call.x_TD);
  const Layer layer(call);
  const c10::DeviceGuard guard(call.x_TD.device());
  const cudaStream_t stream = StreamOf(call.x_TD);
  const at::Tensor x_TD = Dense(call.x_TD), router_ED = Dense(call.router_ED);
  const at::Tensor ids = call.ids_TK.defined() ? Dense(call.ids_TK) : call.ids_TK;
  const RoutingBuffers buffers(x_TD, layer.num_experts, layer.slots);
  cuda::MoeRouter({.config = {layer.num_experts, layer.slots, call.norm_topk_prob},
                   .x = DeviceData<BFloat16>(x_TD, x_TD),
                   .weight_ED = DeviceData<BFloat16>(router_ED, x_TD),
                   .num_tokens = layer.tokens,
                   .hidden = layer.hidden,
                   .replayed_ids = ids.defined() ? DeviceData<int32_t>(ids, x_TD) : nullptr,
                   .logits_TE = buffers.logits.data_ptr<float>(),
                   .routing = buffers.Get(),
                   .counters = buffers.counters.data_ptr<int32_t>()},
                  stream, LaunchOrder::kAfterPrevious);
  if (layer.tokens == 0) buffers.expert_begin.zero_();  // the router has written nothing
  const at::Tensor h_RF = Empty(x_TD, {layer.Rows(), layer.inner}, at::kBFloat16);
  const at::Tensor y_RD = Empty(x_TD, {layer.Rows(), layer.hidden}, at::kBFloat16);
  const at::Tensor out_TD = Empty(x_TD, {layer.tokens, layer.hidden}, at::kBFloat16);
  RunExperts(layer, x_TD, buffers, {h_RF, y_RD, out_TD});
  return {.out_TD = out_TD,
          .logits_TE = buffers.logits,
          .ids_TK = buffers.ids,
          .weights_TK = buffers.weights,
          .h_RF = h_RF,
          .y_RD = y_RD,
          .expert_begin = buffers.expert_begin,
          .row_token = buffers.row_token,
          .slot_row = buffers.slot_row};
}

at::Tensor MoeCuda(const MoeCall& call) { return MoeForwardCuda(call).out_TD; }

namespace {

// drows_RD, undefined where dx is not asked for, and dgate_up where it is.
at::Tensor GradOfGateUp(const Layer& layer, const MoeSaved& saved, at::Tensor dh_RF,
                        const MoeNeeds& needs, MoeGrads* grads) {
  const at::Tensor x_TD = Dense(layer.call.x_TD);
  const at::Tensor layout = LayoutOf(layer.call.gate_up, layer.call.gate_up_scale, layer.up_shape);
  at::Tensor rows_RD = x_TD.index_select(0, saved.row_token);
  at::Tensor gate_up_RF = GateUpOfRows(layer, rows_RD, layout, saved.expert_begin);
  at::Tensor dgate_up_RF = at::empty_like(gate_up_RF);
  cuda::SwiGluGrad({.gate_up = DeviceData<BFloat16>(gate_up_RF, x_TD),
                    .dh = DeviceData<BFloat16>(dh_RF, x_TD),
                    .rows = layer.Rows(),
                    .inner = layer.inner,
                    .dgate_up = DeviceData<BFloat16>(dgate_up_RF, x_TD)},
                   StreamOf(x_TD), LaunchOrder::kAfterPrevious);
  gate_up_RF.reset();
  dh_RF.reset();
  if (needs.dgate_up) grads->dgate_up = GradOfWeights(dgate_up_RF, rows_RD, saved.expert_begin);
  rows_RD.reset();
  if (!needs.dx) return {};
  return GradOfInputs(dgate_up_RF, layout, PackedShapeOf(layer.up_shape, layer.num_experts),
                      saved.expert_begin);
}

}  // namespace

MoeGrads MoeBackwardCuda(const MoeCall& call, const MoeSaved& saved, const at::Tensor& dout,
                         const MoeNeeds& needs) {
  const Layer layer(call);
  CheckMoeGrad(call, dout);
  const c10::DeviceGuard guard(call.x_TD.device());
  MoeGrads grads;
  // Rows are many: each buffer is given back after its last use, in the order of the stream.
  auto [dy_RD, dweights_TK] = GradOfCombine(layer, saved, Dense(dout.to(at::kBFloat16)));
  if (needs.ddown) grads.ddown = GradOfWeights(dy_RD, saved.h_RF, saved.expert_begin);
  at::Tensor drows_RD;
  if (needs.dx || needs.dgate_up) {
    const at::Tensor layout = LayoutOf(call.down, call.down_scale, layer.down_shape);
    at::Tensor dh_RF = GradOfInputs(
        dy_RD, layout, PackedShapeOf(layer.down_shape, layer.num_experts), saved.expert_begin);
    dy_RD.reset();
    drows_RD = GradOfGateUp(layer, saved, std::move(dh_RF), needs, &grads);
  }
  if (!needs.dx && !needs.drouter) return grads;
  const at::Tensor x_TD = Dense(call.x_TD);
  const at::Tensor dlogits_TE = GradOfLogits(call, saved, dweights_TK);
  if (needs.drouter) grads.drouter = dlogits_TE.t().matmul(x_TD.to(at::kFloat));
  if (!needs.dx) return grads;
  const at::Tensor by_router = dlogits_TE.matmul(call.router_ED.to(at::kFloat));
  grads.dx = Empty(x_TD, x_TD.sizes(), at::kBFloat16);
  cuda::MoeGatherGrad({.drows = DeviceData<BFloat16>(drows_RD, x_TD),
                       .slot_row = DeviceData<int32_t>(saved.slot_row, x_TD),
                       .other = DeviceData<float>(by_router, x_TD),
                       .num_tokens = layer.tokens,
                       .num_slots = layer.slots,
                       .hidden = layer.hidden,
                       .dx = DeviceData<BFloat16>(grads.dx, x_TD)},
                      StreamOf(x_TD), LaunchOrder::kAfterPrevious);
  return grads;
}

at::Tensor InputGradCuda(const at::Tensor& dy, const at::Tensor& packed, const at::Tensor& scale,
                         int64_t in_features) {
  const MatrixShape shape = CheckInputGrad(dy, packed, scale, in_features);
  const c10::DeviceGuard guard(dy.device());
  if (shape.rows == 0) return at::zeros(WithLast(dy, in_features), dy.options());
  const at::Tensor dy_RN = Dense(AsRows(dy.to(at::kBFloat16)));
  // Leading dimensions of the weight follow each other in units of 8 rows then.
  const bool has_whole_units = scale.size(-2) % cuda::kUnitRows == 0;
  at::Tensor dx;
  if (has_whole_units) {
    dx = GradOfInputs(dy_RN, LayoutOf(packed, scale, shape), PackedShapeOf(shape, 1), {});
  } else {
    dx = dy_RN.matmul((packed.scalar_type() == at::kByte
                           ? UnpackLayoutCuda(packed, scale, in_features)
                           : UnpackCuda(packed, scale))
                          .view({shape.rows, in_features}));
  }
  return dx.view(WithLast(dy, in_features)).to(dy.scalar_type());
}

at::Tensor WeightGradCuda(const at::Tensor& dy, const at::Tensor& x) {
  CheckBFloat16(x);
  CheckWeightGrad(dy, x);
  const c10::DeviceGuard guard(x.device());
  at::Tensor dy_RN = Dense(AsRows(dy.to(at::kBFloat16)));
  if (dy_RN.size(1) == 0) return Empty(x, {0, x.size(-1)}, at::kFloat);
  // The kernel takes outputs by eights; columns of zeros change no other output's chain.
  const int64_t outputs = dy_RN.size(1);
  if (outputs % 8 != 0) dy_RN = at::constant_pad_nd(dy_RN, {0, 8 - outputs % 8});
  return GradOfWeights(dy_RN, Dense(AsRows(x)), {}).narrow(0, 0, outputs);
}

}  // namespace quatrain::torch_library
#endif
