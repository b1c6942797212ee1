#include "ops/elementwise_ops.h"
#include "ops/moe_ops.h"
#include "torch_library/cpu_tensors.h"
#include "torch_library/moe.h"

namespace quatrain::torch_library {
namespace {

// A layer's weights, checked and contiguous.
struct Layer {
  int64_t inner, hidden, num_experts;
  MatrixShape up_shape, down_shape;
  at::Tensor x_TD, router_ED, gate_up, gate_up_scale, down, down_scale;

  explicit Layer(const MoeCall& call) : Layer(call, CheckMoe(call)) {}
  Layer(const MoeCall& call, const MoeShape& shape)
      : inner(shape.inner),
        hidden(shape.hidden),
        num_experts(shape.num_experts),
        up_shape(shape.up),
        down_shape(shape.down),
        x_TD(call.x_TD.contiguous()),
        router_ED(call.router_ED.contiguous()),
        gate_up(call.gate_up.contiguous()),
        gate_up_scale(call.gate_up_scale.contiguous()),
        down(call.down.contiguous()),
        down_scale(call.down_scale.contiguous()) {
    CheckCodes("gate_up", gate_up, gate_up_scale, up_shape);
    CheckCodes("down", down, down_scale, down_shape);
  }
  WeightView Router() const {
    return {.type = x_TD.scalar_type() == at::kFloat ? WeightType::kFloat32 : WeightType::kBFloat16,
            .out_features = num_experts,
            .in_features = hidden,
            .data = router_ED.data_ptr()};
  }
  WeightView Gate(int64_t e) const {
    return ViewOf(gate_up, gate_up_scale, up_shape, 2 * e * inner, inner);
  }
  WeightView Up(int64_t e) const {
    return ViewOf(gate_up, gate_up_scale, up_shape, (2 * e + 1) * inner, inner);
  }
  WeightView Down(int64_t e) const {
    return ViewOf(down, down_scale, down_shape, e * hidden, hidden);
  }
};

at::Tensor RowsOf(const MoePermutation& permutation, const at::Tensor& tensor, int64_t e) {
  return tensor.narrow(0, permutation.expert_begin[e],
                       permutation.expert_begin[e + 1] - permutation.expert_begin[e]);
}

MoePermutation PermutationOf(const at::Tensor& ids_TK, int64_t num_experts) {
  return PermuteByExpert({DataOf<int32_t>(ids_TK), static_cast<size_t>(ids_TK.numel())},
                         num_experts, ids_TK.size(1));
}

struct GateAndUp {
  at::Tensor gate_RF, up_RF;
};
GateAndUp RunGateUp(const OpContext& ctx, const Layer& layer, const MoePermutation& permutation,
                    const at::Tensor& rows_RD) {
  const GateAndUp both{EmptyTensor({rows_RD.size(0), layer.inner}, rows_RD.scalar_type()),
                       EmptyTensor({rows_RD.size(0), layer.inner}, rows_RD.scalar_type())};
  std::vector<LinearCall> calls;
  for (int64_t e = 0; e < layer.num_experts; ++e) {
    const at::Tensor x = RowsOf(permutation, rows_RD, e);
    calls.push_back({x, layer.Gate(e), {}, RowsOf(permutation, both.gate_RF, e)});
    calls.push_back({x, layer.Up(e), {}, RowsOf(permutation, both.up_RF, e)});
  }
  RunLinear(ctx, calls);
  return both;
}

at::Tensor IntsOf(const std::vector<int64_t>& values) {
  return at::tensor(values, at::TensorOptions().dtype(at::kInt));
}

}  // namespace

MoeSaved MoeForwardCpu(const MoeCall& call) {
  const Layer layer(call);
  CallThreads threads;
  const OpContext& ctx = threads.context();
  MoeSaved saved;
  saved.logits_TE = LinearLogits(ctx, layer.x_TD, layer.Router());
  const Routing routing =
      Route(ctx, {layer.num_experts, call.experts_per_token, call.norm_topk_prob}, saved.logits_TE,
            call.ids_TK.defined() ? call.ids_TK.clone(at::MemoryFormat::Contiguous) : call.ids_TK);
  saved.ids_TK = routing.ids_TK;
  saved.weights_TK = routing.weights_TK;
  const MoePermutation permutation = PermutationOf(saved.ids_TK, layer.num_experts);
  saved.expert_begin = IntsOf(permutation.expert_begin);
  saved.row_token = at::tensor(permutation.row_token, at::kInt);
  saved.slot_row = at::tensor(permutation.slot_row, at::kInt).view_as(saved.ids_TK);
  const at::Tensor rows_RD = GatherTokens(ctx, layer.x_TD, permutation);
  const auto [gate_RF, up_RF] = RunGateUp(ctx, layer, permutation, rows_RD);
  saved.h_RF = SiluMul(ctx, gate_RF, up_RF);
  saved.y_RD = EmptyTensor(rows_RD.sizes(), rows_RD.scalar_type());
  std::vector<LinearCall> calls;
  for (int64_t e = 0; e < layer.num_experts; ++e) {
    calls.push_back({RowsOf(permutation, saved.h_RF, e),
                     layer.Down(e),
                     {},
                     RowsOf(permutation, saved.y_RD, e)});
  }
  RunLinear(ctx, calls);
  saved.out_TD = Combine(ctx, saved.y_RD, saved.weights_TK, permutation);
  return saved;
}

at::Tensor MoeCpu(const MoeCall& call) { return MoeForwardCpu(call).out_TD; }

namespace {

// dh_RF and ddown, each where it is needed.
at::Tensor GradOfDown(const OpContext& ctx, const Layer& layer, const MoePermutation& permutation,
                      const at::Tensor& h_RF, const at::Tensor& dy_RD, const MoeNeeds& needs,
                      MoeGrads* grads) {
  if (needs.ddown) {
    grads->ddown = ZeroTensor({layer.num_experts, layer.hidden, layer.inner}, at::kFloat);
  }
  at::Tensor dh_RF;
  const bool is_on = needs.dx || needs.dgate_up;
  if (is_on) dh_RF = ZeroTensor({dy_RD.size(0), layer.inner}, at::kFloat);
  std::vector<LinearGradCall> calls;
  for (int64_t e = 0; e < layer.num_experts; ++e) {
    calls.push_back({.x_TI = RowsOf(permutation, h_RF, e),
                     .weight = layer.Down(e),
                     .dy_TO = RowsOf(permutation, dy_RD, e),
                     .dx_TI = is_on ? RowsOf(permutation, dh_RF, e) : at::Tensor(),
                     .dweight_OI = needs.ddown ? grads->ddown[e] : at::Tensor()});
  }
  RunLinearGrad(ctx, calls);
  return dh_RF;
}

// drows_RD, undefined where dx is not asked for, and dgate_up where it is.
at::Tensor GradOfGateUp(const OpContext& ctx, const Layer& layer, const MoePermutation& permutation,
                        const at::Tensor& dh_RF, const MoeNeeds& needs, MoeGrads* grads) {
  const at::Tensor rows_RD = GatherTokens(ctx, layer.x_TD, permutation);
  const auto [gate_RF, up_RF] = RunGateUp(ctx, layer, permutation, rows_RD);
  const auto [dgate_RF, dup_RF] = SiluMulGrad(ctx, gate_RF, up_RF, dh_RF);
  if (needs.dgate_up) {
    grads->dgate_up = ZeroTensor({layer.num_experts, 2 * layer.inner, layer.hidden}, at::kFloat);
  }
  at::Tensor drows_RD, by_up_RD;
  if (needs.dx) {
    drows_RD = ZeroTensor(rows_RD.sizes(), at::kFloat);
    by_up_RD = ZeroTensor(rows_RD.sizes(), at::kFloat);
  }
  std::vector<LinearGradCall> calls;
  for (int64_t e = 0; e < layer.num_experts; ++e) {
    const at::Tensor x = RowsOf(permutation, rows_RD, e);
    const auto add = [&](const WeightView& weight, const at::Tensor& dy, const at::Tensor& dx,
                         int64_t begin) {
      LinearGradCall call{.x_TI = x, .weight = weight, .dy_TO = RowsOf(permutation, dy, e)};
      if (needs.dx) call.dx_TI = RowsOf(permutation, dx, e);
      if (needs.dgate_up) call.dweight_OI = grads->dgate_up[e].narrow(0, begin, layer.inner);
      calls.push_back(call);
    };
    add(layer.Gate(e), dgate_RF, drows_RD, 0);
    add(layer.Up(e), dup_RF, by_up_RD, layer.inner);
  }
  RunLinearGrad(ctx, calls);
  if (needs.dx) drows_RD.add_(by_up_RD);
  return drows_RD;
}

}  // namespace

MoeGrads MoeBackwardCpu(const MoeCall& call, const MoeSaved& saved, const at::Tensor& dout,
                        const MoeNeeds& needs) {
  const Layer layer(call);
  CheckMoeGrad(call, dout);
  CallThreads threads;
  const OpContext& ctx = threads.context();
  const MoePermutation permutation = PermutationOf(saved.ids_TK, layer.num_experts);
  const auto [dy_RD, dweights_TK] =
      CombineGrad(ctx, saved.y_RD, saved.weights_TK, permutation, dout.to(at::kFloat).contiguous());
  MoeGrads grads;
  at::Tensor drows_RD;
  const at::Tensor dh_RF = GradOfDown(ctx, layer, permutation, saved.h_RF, dy_RD, needs, &grads);
  if (dh_RF.defined()) drows_RD = GradOfGateUp(ctx, layer, permutation, dh_RF, needs, &grads);
  if (!needs.dx && !needs.drouter) return grads;
  const at::Tensor dlogits_TE = GradOfLogits(call, saved, dweights_TK);
  LinearGradCall router{.x_TI = layer.x_TD, .weight = layer.Router(), .dy_TO = dlogits_TE};
  if (needs.drouter) {
    grads.drouter = ZeroTensor({layer.num_experts, layer.hidden}, at::kFloat);
    router.dweight_OI = grads.drouter;
  }
  if (needs.dx) router.dx_TI = ZeroTensor(layer.x_TD.sizes(), at::kFloat);
  RunLinearGrad(ctx, {&router, 1});
  if (needs.dx) {
    GatherTokensGrad(ctx, drows_RD, permutation, router.dx_TI);
    grads.dx = router.dx_TI.to(layer.x_TD.scalar_type());
  }
  return grads;
}

at::Tensor InputGradCpu(const at::Tensor& dy, const at::Tensor& packed, const at::Tensor& scale,
                        int64_t in_features) {
  const MatrixShape shape = CheckInputGrad(dy, packed, scale, in_features);
  const at::Tensor weight = UnpackCpu(packed, scale).view({shape.rows, in_features});
  return at::matmul(dy, weight.to(dy.scalar_type()));
}

at::Tensor WeightGradCpu(const at::Tensor& dy, const at::Tensor& x) {
  CheckWeightGrad(dy, x);
  const at::Tensor dy_RN = AsRows(dy.to(at::kFloat)).contiguous();
  const at::Tensor x_RK = AsRows(x).contiguous();
  at::Tensor dweight = ZeroTensor({dy_RN.size(1), x_RK.size(1)}, at::kFloat);
  if (dweight.numel() == 0) return dweight;
  CallThreads threads;
  const LinearGradCall call{.x_TI = x_RK,
                            .weight = {.out_features = dy_RN.size(1), .in_features = x_RK.size(1)},
                            .dy_TO = dy_RN,
                            .dweight_OI = dweight};
  RunLinearGrad(threads.context(), {&call, 1});
  return dweight;
}

}  // namespace quatrain::torch_library
