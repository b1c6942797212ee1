#include <ATen/Parallel.h>

#include "kernels/int4_quantize.h"
#include "ops/elementwise_ops.h"
#include "ops/linear_ops.h"
#include "ops/moe_ops.h"
#include "torch_library/operators.h"
#include "torch_library/shapes.h"

namespace quatrain::torch_library {
namespace {

// Threads live for one call: an operator has no owner that could keep them, and a process that
// forks (a data loader) must find none.
class CallThreads {
 public:
  CallThreads() : pool_(at::get_num_threads()), context_{pool_} {}
  const OpContext& context() const { return context_; }
  ThreadPool& pool() { return pool_; }

 private:
  ThreadPool pool_;
  OpContext context_;
};

// The weight as contiguous BF16, every value of which has codes.
at::Tensor RoundedWeight(const at::Tensor& weight, const MatrixShape& shape) {
  at::Tensor rounded = weight.to(at::kBFloat16).contiguous();
  const std::optional<BadWeight> bad =
      FindBadWeight(DataOf<BFloat16>(rounded), shape.rows, shape.columns);
  if (bad) {
    throw Error(ErrorCode::kData,
                ErrorParts{.where = "weight",
                           .expected = "finite BF16 values",
                           .found = fmt::format("{} in row {}, column {}", bad->value, bad->row,
                                                bad->column)});
  }
  return rounded;
}

PackedMatrix MatrixOf(const at::Tensor& packed, const at::Tensor& scale, const MatrixShape& shape) {
  return {.packed_OP = DataOf<int32_t>(packed),
          .scale_OG = DataOf<BFloat16>(scale),
          .out_features = shape.rows,
          .in_features = shape.columns,
          .num_bits = 4,
          .group_size = shape.group_size};
}

// Rows [begin, begin + rows) of codes as a linear's weight.
WeightView ViewOf(const at::Tensor& packed, const at::Tensor& scale, const MatrixShape& shape,
                  int64_t begin, int64_t rows) {
  return {.type = WeightType::kInt4,
          .out_features = rows,
          .in_features = shape.columns,
          .group_size = shape.group_size,
          .data = DataOf<int32_t>(packed) + begin * (shape.columns / 8),
          .scale = DataOf<BFloat16>(scale) + begin * (shape.columns / shape.group_size)};
}

void CheckActivation(const at::Tensor& x) {
  if (x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kFloat) {
    ThrowShape("x", "BF16 or FP32", ShapeOf(x));
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> PackCpu(const at::Tensor& weight_OI, int64_t group_size) {
  const MatrixShape shape = ShapeOfWeight(weight_OI, group_size);
  const at::Tensor rounded = RoundedWeight(weight_OI, shape);
  at::Tensor packed = EmptyTensor(WithLast(weight_OI, shape.columns / 8), at::kInt);
  at::Tensor scale = EmptyTensor(WithLast(weight_OI, shape.columns / group_size), at::kBFloat16);
  CallThreads threads;
  QuantizeMatrix(threads.pool(), DataOf<BFloat16>(rounded), shape.rows, shape.columns,
                 {.group_size = group_size}, DataOf<int32_t>(packed), DataOf<BFloat16>(scale));
  return {packed, scale};
}

at::Tensor UnpackCpu(const at::Tensor& packed, const at::Tensor& scale) {
  const MatrixShape shape = ShapeOfScale(scale, packed.dim() < 2 ? 0 : packed.size(-1) * 8);
  CheckCodes(packed, shape);
  at::Tensor weight = EmptyTensor(WithLast(scale, shape.columns), at::kBFloat16);
  CallThreads threads;
  DequantizeMatrix(threads.pool(), MatrixOf(packed.contiguous(), scale.contiguous(), shape),
                   DataOf<BFloat16>(weight));
  return weight;
}

at::Tensor FakeQuantCpu(const at::Tensor& weight_OI, int64_t group_size) {
  const auto [packed, scale] = PackCpu(weight_OI, group_size);
  return UnpackCpu(packed, scale).to(weight_OI.scalar_type());
}

at::Tensor LinearCpu(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scale,
                     const std::optional<at::Tensor>& bias) {
  CheckActivation(x);
  const MatrixShape shape = ShapeOfScale(scale, x.dim() < 1 ? 0 : x.size(-1));
  CheckCodes(packed, shape);
  const at::Tensor codes = packed.contiguous(), scales = scale.contiguous();
  at::Tensor bias_O;
  if (bias) {
    if (bias->dim() != 1 || bias->size(0) != shape.rows) {
      ThrowShape("bias", fmt::format("[{}]", shape.rows), ShapeOf(*bias));
    }
    bias_O = bias->to(x.scalar_type()).contiguous();
  }
  CallThreads threads;
  return Linear(threads.context(), x.reshape({-1, shape.columns}).contiguous(),
                ViewOf(codes, scales, shape, 0, shape.rows), bias_O)
      .view(WithLast(x, shape.rows));
}

at::Tensor MoeCpu(const MoeCall& call) {
  CheckActivation(call.x_TD);
  const int64_t inner = CheckMoe(call);
  const int64_t hidden = call.x_TD.size(1);
  const int64_t num_experts = call.router_ED.size(0);
  const MatrixShape up_shape = ShapeOfScale(call.gate_up_scale, hidden);
  const MatrixShape down_shape = ShapeOfScale(call.down_scale, inner);
  CheckCodes(call.gate_up, up_shape);
  CheckCodes(call.down, down_shape);
  const at::Tensor gate_up = call.gate_up.contiguous(), down = call.down.contiguous();
  const at::Tensor gate_up_scale = call.gate_up_scale.contiguous();
  const at::Tensor down_scale = call.down_scale.contiguous();
  const at::Tensor x_TD = call.x_TD.contiguous(), router_ED = call.router_ED.contiguous();
  const bool is_float = x_TD.scalar_type() == at::kFloat;
  CallThreads threads;
  const OpContext& ctx = threads.context();
  const WeightView router{.type = is_float ? WeightType::kFloat32 : WeightType::kBFloat16,
                          .out_features = num_experts,
                          .in_features = hidden,
                          .data = router_ED.data_ptr()};
  const Routing routing = Route(ctx, {num_experts, call.experts_per_token, call.norm_topk_prob},
                                LinearLogits(ctx, x_TD, router),
                                call.ids_TK.defined() ? call.ids_TK.contiguous() : call.ids_TK);
  const int64_t num_slots = routing.ids_TK.numel();
  const MoePermutation permutation =
      PermuteByExpert({DataOf<int32_t>(routing.ids_TK), static_cast<size_t>(num_slots)},
                      num_experts, call.experts_per_token);
  const at::Tensor rows_RD = GatherTokens(ctx, x_TD, permutation);
  at::Tensor gate_RF = EmptyTensor({num_slots, inner}, x_TD.scalar_type());
  at::Tensor up_RF = EmptyTensor({num_slots, inner}, x_TD.scalar_type());
  at::Tensor y_RD = EmptyTensor({num_slots, hidden}, x_TD.scalar_type());
  const auto rows_of = [&](const at::Tensor& tensor, int64_t e) {
    return tensor.narrow(0, permutation.expert_begin[e],
                         permutation.expert_begin[e + 1] - permutation.expert_begin[e]);
  };
  std::vector<LinearCall> calls;
  for (int64_t e = 0; e < num_experts; ++e) {
    const at::Tensor x = rows_of(rows_RD, e);
    calls.push_back({x,
                     ViewOf(gate_up, gate_up_scale, up_shape, 2 * e * inner, inner),
                     {},
                     rows_of(gate_RF, e)});
    calls.push_back({x,
                     ViewOf(gate_up, gate_up_scale, up_shape, (2 * e + 1) * inner, inner),
                     {},
                     rows_of(up_RF, e)});
  }
  RunLinear(ctx, calls);
  const at::Tensor h_RF = SiluMul(ctx, gate_RF, up_RF);
  calls.clear();
  for (int64_t e = 0; e < num_experts; ++e) {
    calls.push_back({rows_of(h_RF, e),
                     ViewOf(down, down_scale, down_shape, e * hidden, hidden),
                     {},
                     rows_of(y_RD, e)});
  }
  RunLinear(ctx, calls);
  return Combine(ctx, y_RD, routing.weights_TK, permutation);
}

}  // namespace quatrain::torch_library
