#include "torch_library/moe.h"

#if defined(QT_WITH_CUDA)
#include "kernels/cuda/moe.h"
#include "kernels/cuda/moe_backward.h"
#include "kernels/cuda/weight_grad.h"
#include "torch_library/cuda_tensors.h"

namespace quatrain::torch_library {
namespace {

using cuda::LaunchOrder;

// From so many routed rows an expert (on average) on, the kernels for many rows are faster than
// those for few, the gathering of rows included. Measured on an H100 (docs/results.md, "Experts of
// many rows"): few take a step of 100 us for every 16 rows of an expert, which uneven routing
// reaches before the average does. The bits are the same.
constexpr int64_t kFewestRowsOfMany = 12;

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

// Sizes and weights of a layer, checked.
struct Layer {
  const MoeCall& call;
  int64_t inner, hidden, num_experts, slots, tokens;
  MatrixShape up_shape, down_shape;

  explicit Layer(const MoeCall& c)
      : call(c),
        inner(CheckMoe(c)),
        hidden(c.x_TD.size(1)),
        num_experts(c.router_ED.size(0)),
        slots(c.experts_per_token),
        tokens(c.x_TD.size(0)),
        up_shape(ShapeOfScale(c.gate_up_scale, hidden)),
        down_shape(ShapeOfScale(c.down_scale, inner)) {}
  int64_t Rows() const { return tokens * slots; }
};

void RunExperts(const Layer& layer, const at::Tensor& x_TD, const RoutingBuffers& buffers,
                const at::Tensor& h_RF, const at::Tensor& y_RD) {
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
                            .y = DeviceData<BFloat16>(h_RF, x_TD)};
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
  args.x = DeviceData<BFloat16>(h_RF, x_TD);
  args.y = DeviceData<BFloat16>(y_RD, x_TD);
  if (is_many) {
    cuda::MoeDownOfRows(args, stream, LaunchOrder::kOverlap);
  } else {
    cuda::MoeDown(args, stream, LaunchOrder::kOverlap);
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

}  // namespace

MoeSaved MoeForwardCuda(const MoeCall& call) {
  CheckBFloat16(call.x_TD);
  const Layer layer(call);
  const c10::DeviceGuard guard(call.x_TD.device());
  const cudaStream_t stream = StreamOf(call.x_TD);
  const at::Tensor x_TD = call.x_TD.contiguous(), router_ED = call.router_ED.contiguous();
  const at::Tensor ids = call.ids_TK.defined() ? call.ids_TK.contiguous() : call.ids_TK;
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
  const at::Tensor h_RF = Empty(x_TD, {layer.Rows(), layer.inner}, at::kBFloat16);
  const at::Tensor y_RD = Empty(x_TD, {layer.Rows(), layer.hidden}, at::kBFloat16);
  const at::Tensor out_TD = Empty(x_TD, {layer.tokens, layer.hidden}, at::kBFloat16);
  RunExperts(layer, x_TD, buffers, h_RF, y_RD);
  cuda::MoeCombine({.y = DeviceData<BFloat16>(y_RD, x_TD),
                    .routing = buffers.Get(),
                    .num_tokens = layer.tokens,
                    .num_slots = layer.slots,
                    .hidden = layer.hidden,
                    .out = DeviceData<BFloat16>(out_TD, x_TD)},
                   stream, LaunchOrder::kOverlap);
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

MoeGrads MoeBackwardCuda(const MoeCall& call, const MoeSaved& saved, const at::Tensor& dout) {
  const Layer layer(call);
  const c10::DeviceGuard guard(call.x_TD.device());
  const cudaStream_t stream = StreamOf(call.x_TD);
  const at::Tensor x_TD = call.x_TD.contiguous();
  const at::Tensor dout_TD = dout.to(at::kBFloat16).contiguous();
  // Where each expert's rows end: the offsets of the library's grouped product.
  const at::Tensor ends = saved.expert_begin.narrow(0, 1, layer.num_experts).contiguous();
  const at::Tensor dy_RD = Empty(x_TD, {layer.Rows(), layer.hidden}, at::kBFloat16);
  const at::Tensor dweights_TK = at::empty_like(saved.weights_TK);
  cuda::MoeCombineGrad({.dout = DeviceData<BFloat16>(dout_TD, x_TD),
                        .y = DeviceData<BFloat16>(saved.y_RD, x_TD),
                        .weights = DeviceData<float>(saved.weights_TK, x_TD),
                        .slot_row = DeviceData<int32_t>(saved.slot_row, x_TD),
                        .num_tokens = layer.tokens,
                        .num_slots = layer.slots,
                        .hidden = layer.hidden,
                        .dy = DeviceData<BFloat16>(dy_RD, x_TD),
                        .dweights = DeviceData<float>(dweights_TK, x_TD)},
                       stream, LaunchOrder::kAfterPrevious);
  MoeGrads grads;
  grads.ddown = GradOfWeights(dy_RD, saved.h_RF, saved.expert_begin);
  const at::Tensor dh_RF =
      at::_grouped_mm(dy_RD, UnpackCuda(call.down, call.down_scale), ends).contiguous();
  // Gate and up again, which the forward did not keep: the same chain (docs/numerics.md).
  const at::Tensor rows_RD = x_TD.index_select(0, saved.row_token);
  const at::Tensor up_weight = UnpackCuda(call.gate_up, call.gate_up_scale);
  const at::Tensor gate_up_RF =
      at::_grouped_mm(rows_RD, up_weight.transpose(-2, -1), ends).contiguous();
  const at::Tensor dgate_up_RF = at::empty_like(gate_up_RF);
  cuda::SwiGluGrad({.gate_up = DeviceData<BFloat16>(gate_up_RF, x_TD),
                    .dh = DeviceData<BFloat16>(dh_RF, x_TD),
                    .rows = layer.Rows(),
                    .inner = layer.inner,
                    .dgate_up = DeviceData<BFloat16>(dgate_up_RF, x_TD)},
                   stream, LaunchOrder::kAfterPrevious);
  grads.dgate_up = GradOfWeights(dgate_up_RF, rows_RD, saved.expert_begin);
  const at::Tensor drows_RD = at::_grouped_mm(dgate_up_RF, up_weight, ends).contiguous();
  const at::Tensor dlogits_TE = GradOfLogits(call, saved, dweights_TK);
  grads.drouter = dlogits_TE.t().matmul(x_TD.to(at::kFloat));
  const at::Tensor by_router = dlogits_TE.matmul(call.router_ED.to(at::kFloat)).contiguous();
  grads.dx = Empty(x_TD, x_TD.sizes(), at::kBFloat16);
  cuda::MoeGatherGrad({.drows = DeviceData<BFloat16>(drows_RD, x_TD),
                       .slot_row = DeviceData<int32_t>(saved.slot_row, x_TD),
                       .other = DeviceData<float>(by_router, x_TD),
                       .num_tokens = layer.tokens,
                       .num_slots = layer.slots,
                       .hidden = layer.hidden,
                       .dx = DeviceData<BFloat16>(grads.dx, x_TD)},
                      stream, LaunchOrder::kAfterPrevious);
  return grads;
}

at::Tensor WeightGradCuda(const at::Tensor& dy, const at::Tensor& x) {
  CheckBFloat16(x);
  const c10::DeviceGuard guard(x.device());
  return GradOfWeights(dy.to(at::kBFloat16).reshape({-1, dy.size(-1)}).contiguous(),
                       x.reshape({-1, x.size(-1)}).contiguous(), {});
}

}  // namespace quatrain::torch_library
#endif
