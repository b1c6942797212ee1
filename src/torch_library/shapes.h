// What the operators check before they touch memory: on CPU and CUDA tensors, and on tensors of
// shapes alone (torch.compile, the meta device), whose sizes may be symbols.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/packed_layout.h"
#include "torch_library/operators.h"

namespace quatrain::torch_library {

[[noreturn]] inline void ThrowShape(const std::string& where, const std::string& expected,
                                    const std::string& found) {
  throw Error(ErrorCode::kShape, ErrorParts{.where = where, .expected = expected, .found = found});
}

// "Float [5, 64]".
inline std::string ShapeOf(const at::Tensor& tensor) {
  std::ostringstream text;
  text << c10::toString(tensor.scalar_type()) << " " << tensor.sym_sizes();
  return text.str();
}

// A size that decides something. While torch.compile traces, a symbol becomes this number.
inline int64_t SizeOf(const at::Tensor& tensor, int64_t dim) {
  return tensor.sym_size(dim).guard_int(__FILE__, __LINE__);
}

// Sizes with the last one replaced.
inline std::vector<int64_t> WithLast(const at::Tensor& tensor, int64_t last) {
  std::vector<int64_t> sizes = tensor.sizes().vec();
  sizes.back() = last;
  return sizes;
}

// Leading dimensions as rows. Unlike reshape({-1, last}) it knows their number where last is 0.
inline at::Tensor AsRows(const at::Tensor& tensor) {
  return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor.flatten(0, -2);
}

inline void CheckDevice(const std::string& name, const at::Tensor& tensor,
                        const at::Tensor& beside) {
  if (tensor.device() != beside.device()) {
    ThrowShape(name, "on " + beside.device().str(), "on " + tensor.device().str());
  }
}

inline void CheckActivation(const at::Tensor& x) {
  if (x.dim() < 1 || (x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kFloat)) {
    ThrowShape("x", "BF16 or FP32 [..., I]", ShapeOf(x));
  }
}

inline void CheckBFloat16(const at::Tensor& x) {
  if (x.scalar_type() != at::kBFloat16) ThrowShape("x", "BF16 on CUDA", ShapeOf(x));
}

// Rows, columns and group of a weight.
struct MatrixShape {
  int64_t rows = 0;  // leading dimensions included; 0: an empty weight
  int64_t columns = 0;
  int64_t group_size = 0;
};

// Product of all sizes but the last.
inline int64_t RowsOfWeight(const at::Tensor& tensor) {
  int64_t rows = 1;
  for (int64_t dim = 0; dim < tensor.dim() - 1; ++dim) rows *= SizeOf(tensor, dim);
  return rows;
}

// Of a plain weight.
inline MatrixShape ShapeOfWeight(const at::Tensor& weight, int64_t group_size) {
  const bool is_known = weight.scalar_type() == at::kBFloat16 || weight.scalar_type() == at::kFloat;
  const int64_t columns = weight.dim() < 2 ? 0 : SizeOf(weight, -1);
  if (!is_known || columns == 0 || group_size <= 0 || group_size % 8 != 0 ||
      columns % group_size != 0) {
    ThrowShape("weight", "BF16 or FP32 [..., O, I], I a multiple of the group size, that of 8",
               ShapeOf(weight) + ", group size " + std::to_string(group_size));
  }
  return {RowsOfWeight(weight), columns, group_size};
}

// Of codes or kernel layout beside their scales, for `columns` inputs.
inline MatrixShape ShapeOfScale(const std::string& name, const at::Tensor& scale, int64_t columns) {
  const int64_t groups = scale.dim() < 2 ? 0 : SizeOf(scale, -1);
  const bool fits = scale.scalar_type() == at::kBFloat16 && groups > 0 && columns > 0 &&
                    columns % groups == 0 && columns / groups % 8 == 0;
  if (!fits) {
    ThrowShape(name, "BF16 [..., O, G], G groups of a multiple of 8 inputs",
               ShapeOf(scale) + " for " + std::to_string(columns) + " inputs");
  }
  return {RowsOfWeight(scale), columns, columns / groups};
}

// Inputs that int32 codes are for.
inline int64_t ColumnsOfCodes(const at::Tensor& packed) {
  if (packed.scalar_type() != at::kInt || packed.dim() < 2) {
    ThrowShape("packed", "int32 codes [..., O, I / 8]", ShapeOf(packed));
  }
  return 8 * SizeOf(packed, -1);
}

// Throws unless `packed` holds the codes of the matrix that has these scales.
inline void CheckCodes(const std::string& name, const at::Tensor& packed, const at::Tensor& scale,
                       const MatrixShape& shape) {
  bool fits = packed.scalar_type() == at::kInt && packed.dim() == scale.dim() &&
              SizeOf(packed, -1) * 8 == shape.columns;
  std::string sizes;
  for (int64_t dim = 0; dim < scale.dim() - 1; ++dim) {
    fits = fits && SizeOf(packed, dim) == SizeOf(scale, dim);
    sizes += std::to_string(SizeOf(scale, dim)) + ", ";
  }
  if (!fits) {
    ThrowShape(name, "int32 codes [" + sizes + std::to_string(shape.columns / 8) + "]",
               ShapeOf(packed));
  }
}

// Of codes and their scales.
inline MatrixShape ShapeOfCodes(const at::Tensor& packed, const at::Tensor& scale) {
  CheckDevice("scale", scale, packed);
  const MatrixShape shape = ShapeOfScale("scale", scale, ColumnsOfCodes(packed));
  CheckCodes("packed", packed, scale, shape);
  return shape;
}

// Matrices that the weights of this scale lie in memory as, one after the other: one where the
// kernels' units of 8 rows do not cross from a leading index to the next.
inline int64_t MatricesOf(const at::Tensor& scale) {
  int64_t matrices = 1;
  if (SizeOf(scale, -2) % cuda::kUnitRows == 0) return matrices;
  for (int64_t dim = 0; dim < scale.dim() - 2; ++dim) matrices *= SizeOf(scale, dim);
  return matrices;
}

// Bytes of the kernel layout of a weight, which is not empty where `matrices` divides its rows.
inline int64_t LayoutBytes(const MatrixShape& shape, int64_t matrices) {
  if (shape.rows == 0) return 0;
  return matrices * cuda::PackedBytes({.out_features = shape.rows / matrices,
                                       .in_features = shape.columns,
                                       .group_size = shape.group_size,
                                       .num_bits = 4});
}

// Throws unless `packed` is the codes or the kernel layout (uint8) of the matrix that has these
// scales.
inline void CheckPacked(const std::string& name, const at::Tensor& packed, const at::Tensor& scale,
                        const MatrixShape& shape) {
  if (packed.scalar_type() != at::kByte) return CheckCodes(name, packed, scale, shape);
  const int64_t bytes = LayoutBytes(shape, MatricesOf(scale));
  if (packed.sym_numel() != bytes) {
    ThrowShape(name, "a kernel layout of " + std::to_string(bytes) + " bytes", ShapeOf(packed));
  }
}

// Of a kernel layout and its scales.
inline MatrixShape CheckLayout(const at::Tensor& layout, const at::Tensor& scale,
                               int64_t in_features) {
  if (layout.scalar_type() != at::kByte) ThrowShape("layout", "uint8", ShapeOf(layout));
  CheckDevice("scale", scale, layout);
  const MatrixShape shape = ShapeOfScale("scale", scale, in_features);
  CheckPacked("layout", layout, scale, shape);
  return shape;
}

// Throws unless x, codes or kernel layout, scale and bias are those of a linear.
inline MatrixShape CheckLinear(const at::Tensor& x, const at::Tensor& packed,
                               const at::Tensor& scale, const std::optional<at::Tensor>& bias) {
  CheckActivation(x);
  CheckDevice("packed", packed, x);
  const int64_t columns =
      packed.scalar_type() == at::kByte ? SizeOf(x, -1) : ColumnsOfCodes(packed);
  if (SizeOf(x, -1) != columns) {
    ThrowShape("x", "[..., " + std::to_string(columns) + "]", ShapeOf(x));
  }
  CheckDevice("scale", scale, x);
  const MatrixShape shape = ShapeOfScale("scale", scale, columns);
  CheckPacked("packed", packed, scale, shape);
  if (!bias) return shape;
  CheckDevice("bias", *bias, x);
  if (!bias->is_floating_point() || bias->dim() != 1 || SizeOf(*bias, 0) != shape.rows) {
    ThrowShape("bias", "floating-point [" + std::to_string(shape.rows) + "]", ShapeOf(*bias));
  }
  return shape;
}

// Throws unless dy is a gradient of the outputs of codes or kernel layout for `in_features` inputs.
inline MatrixShape CheckInputGrad(const at::Tensor& dy, const at::Tensor& packed,
                                  const at::Tensor& scale, int64_t in_features) {
  const MatrixShape shape = ShapeOfScale("scale", scale, in_features);
  CheckDevice("packed", packed, dy);
  CheckDevice("scale", scale, dy);
  CheckPacked("packed", packed, scale, shape);
  if (!dy.is_floating_point() || dy.dim() < 1 || SizeOf(dy, -1) != shape.rows) {
    ThrowShape("dy", "floating-point [..., " + std::to_string(shape.rows) + "]", ShapeOf(dy));
  }
  return shape;
}

// Throws unless dy and x have the same rows.
inline void CheckWeightGrad(const at::Tensor& dy, const at::Tensor& x) {
  CheckActivation(x);
  CheckDevice("dy", dy, x);
  bool fits = dy.is_floating_point() && dy.dim() == x.dim();
  for (int64_t dim = 0; fits && dim < x.dim() - 1; ++dim) {
    fits = dy.sym_size(dim) == x.sym_size(dim);
  }
  if (!fits) ThrowShape("dy", "floating-point rows of x, " + ShapeOf(x), ShapeOf(dy));
}

// Sizes of a MoE layer.
struct MoeShape {
  int64_t inner = 0, hidden = 0, num_experts = 0;
  MatrixShape up, down;  // all experts' rows
};

// Hidden size and experts of x and router.
inline MoeShape CheckRouter(const MoeCall& call) {
  const at::Tensor& x = call.x_TD;
  const at::Tensor& router = call.router_ED;
  CheckActivation(x);
  if (x.dim() != 2) ThrowShape("x", "[T, D]", ShapeOf(x));
  const int64_t hidden = SizeOf(x, 1);
  CheckDevice("router", router, x);
  if (router.dim() != 2 || SizeOf(router, 1) != hidden || router.scalar_type() != x.scalar_type()) {
    ThrowShape("router", fmt::format("{} [E, {}]", c10::toString(x.scalar_type()), hidden),
               ShapeOf(router));
  }
  return {.hidden = hidden, .num_experts = SizeOf(router, 0)};
}

// Experts to replay, where there are any.
inline void CheckIds(const MoeCall& call) {
  const at::Tensor& ids = call.ids_TK;
  if (!ids.defined()) return;
  CheckDevice("ids", ids, call.x_TD);
  if (ids.scalar_type() != at::kInt || ids.dim() != 2 || ids.sym_size(0) != call.x_TD.sym_size(0) ||
      SizeOf(ids, 1) != call.experts_per_token) {
    ThrowShape("ids",
               fmt::format("int32 [T, {}] for x {}", call.experts_per_token, ShapeOf(call.x_TD)),
               ShapeOf(ids));
  }
}

// Throws unless the arguments of a MoE layer fit each other.
inline MoeShape CheckMoe(const MoeCall& call) {
  MoeShape shape = CheckRouter(call);
  if (call.experts_per_token < 1 || call.experts_per_token > shape.num_experts) {
    ThrowShape("experts_per_token", fmt::format("1 to {}, the router's experts", shape.num_experts),
               std::to_string(call.experts_per_token));
  }
  const at::Tensor& up = call.gate_up_scale;
  if (up.dim() != 3 || SizeOf(up, 0) != shape.num_experts || SizeOf(up, 1) % 2 != 0) {
    ThrowShape("gate_up's scale", fmt::format("[{}, 2F, {} / g]", shape.num_experts, shape.hidden),
               ShapeOf(up));
  }
  shape.inner = SizeOf(up, 1) / 2;
  const at::Tensor& down = call.down_scale;
  if (down.dim() != 3 || SizeOf(down, 0) != shape.num_experts || SizeOf(down, 1) != shape.hidden) {
    ThrowShape("down's scale",
               fmt::format("[{}, {}, {} / g]", shape.num_experts, shape.hidden, shape.inner),
               ShapeOf(down));
  }
  shape.up = ShapeOfScale("gate_up's scale", up, shape.hidden);
  shape.down = ShapeOfScale("down's scale", down, shape.inner);
  CheckDevice("gate_up", call.gate_up, call.x_TD);
  CheckDevice("gate_up's scale", up, call.x_TD);
  CheckPacked("gate_up", call.gate_up, up, shape.up);
  CheckDevice("down", call.down, call.x_TD);
  CheckDevice("down's scale", down, call.x_TD);
  CheckPacked("down", call.down, down, shape.down);
  CheckIds(call);
  return shape;
}

// Throws unless dout is a gradient of the layer's output.
inline void CheckMoeGrad(const MoeCall& call, const at::Tensor& dout) {
  CheckDevice("dout", dout, call.x_TD);
  if (!dout.is_floating_point() || dout.dim() != 2 || dout.sym_size(0) != call.x_TD.sym_size(0) ||
      dout.sym_size(1) != call.x_TD.sym_size(1)) {
    ThrowShape("dout", "floating-point, sizes of x, " + ShapeOf(call.x_TD), ShapeOf(dout));
  }
}

}  // namespace quatrain::torch_library
