#include "kernels/int4_quantize.h"
#include "torch_library/cpu_tensors.h"
#include "torch_library/operators.h"

namespace quatrain::torch_library {
namespace {

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
  const MatrixShape shape = ShapeOfCodes(packed, scale);
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
  const MatrixShape shape = CheckLinear(x, packed, scale, bias);
  CheckCodes("packed", packed, scale, shape);
  if (shape.rows == 0) return EmptyTensor(WithLast(x, 0), x.scalar_type());
  const at::Tensor codes = packed.contiguous(), scales = scale.contiguous();
  at::Tensor bias_O;
  if (bias) bias_O = bias->to(x.scalar_type()).contiguous();
  CallThreads threads;
  return Linear(threads.context(), AsRows(x).contiguous(),
                ViewOf(codes, scales, shape, 0, shape.rows), bias_O)
      .view(WithLast(x, shape.rows));
}

}  // namespace quatrain::torch_library
