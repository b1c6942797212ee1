// What the operators check before they touch memory.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "torch_library/operators.h"

namespace quatrain::torch_library {

[[noreturn]] inline void ThrowShape(const std::string& where, const std::string& expected,
                                    const std::string& found) {
  throw Error(ErrorCode::kShape, ErrorParts{.where = where, .expected = expected, .found = found});
}

inline std::string ShapeOf(const at::Tensor& tensor) {
  std::string text = c10::toString(tensor.scalar_type());
  for (const int64_t size : tensor.sizes()) text += " " + std::to_string(size);
  return text;
}

// Rows, columns and group of a weight.
struct MatrixShape {
  int64_t rows = 0;  // leading dimensions included
  int64_t columns = 0;
  int64_t group_size = 0;
};

// Of a plain weight.
inline MatrixShape ShapeOfWeight(const at::Tensor& weight, int64_t group_size) {
  const bool is_known = weight.scalar_type() == at::kBFloat16 || weight.scalar_type() == at::kFloat;
  if (weight.dim() < 2 || !is_known || group_size <= 0 || group_size % 8 != 0 ||
      weight.size(-1) % group_size != 0) {
    ThrowShape("weight", "BF16 or FP32 [..., O, I], I a multiple of the group size, that of 8",
               ShapeOf(weight) + ", group size " + std::to_string(group_size));
  }
  const int64_t columns = weight.size(-1);
  return {columns == 0 ? 0 : weight.numel() / columns, columns, group_size};
}

// Of codes or kernel layout beside their scales, for `columns` inputs.
inline MatrixShape ShapeOfScale(const at::Tensor& scale, int64_t columns) {
  const bool fits = scale.dim() >= 2 && scale.scalar_type() == at::kBFloat16 &&
                    scale.size(-1) > 0 && columns > 0 && columns % scale.size(-1) == 0 &&
                    columns / scale.size(-1) % 8 == 0;
  if (!fits) {
    ThrowShape("scale", "BF16 [..., O, G], G groups of a multiple of 8 inputs",
               ShapeOf(scale) + " for " + std::to_string(columns) + " inputs");
  }
  return {scale.numel() / scale.size(-1), columns, columns / scale.size(-1)};
}

// Throws unless `packed` holds the codes of such a matrix.
inline void CheckCodes(const at::Tensor& packed, const MatrixShape& shape) {
  if (packed.scalar_type() != at::kInt || packed.dim() < 2 ||
      packed.size(-1) * 8 != shape.columns || packed.numel() * 8 != shape.rows * shape.columns) {
    ThrowShape(
        "packed",
        "int32 codes of " + std::to_string(shape.rows) + " x " + std::to_string(shape.columns),
        ShapeOf(packed));
  }
}

// Throws unless dy is a gradient of that matrix's outputs.
inline void CheckOutputGrad(const at::Tensor& dy, const MatrixShape& shape) {
  if (dy.dim() < 1 || dy.size(-1) != shape.rows) {
    ThrowShape("dy", "[..., " + std::to_string(shape.rows) + "]", ShapeOf(dy));
  }
}

// Shape of a weight's `last` dimension replaced.
inline std::vector<int64_t> WithLast(const at::Tensor& tensor, int64_t last) {
  std::vector<int64_t> sizes = tensor.sizes().vec();
  sizes.back() = last;
  return sizes;
}

// Throws unless the sizes of a MoE layer agree; returns F.
inline int64_t CheckMoe(const MoeCall& call) {
  const at::Tensor& up = call.gate_up_scale;
  const at::Tensor& down = call.down_scale;
  const bool has_ranks =
      call.x_TD.dim() == 2 && call.router_ED.dim() == 2 && up.dim() == 3 && down.dim() == 3;
  const bool fits = has_ranks && call.router_ED.size(1) == call.x_TD.size(1) &&
                    up.size(0) == call.router_ED.size(0) && down.size(0) == up.size(0) &&
                    up.size(1) % 2 == 0 && down.size(1) == call.x_TD.size(1) &&
                    call.router_ED.scalar_type() == call.x_TD.scalar_type();
  if (!fits) {
    ThrowShape("w4a16_moe",
               "x [T, D], router [E, D] of the same type, scales [E, 2F, D / g] and [E, D, F / g]",
               ShapeOf(call.x_TD) + "; " + ShapeOf(call.router_ED) + "; " + ShapeOf(up) + "; " +
                   ShapeOf(down));
  }
  const int64_t inner = up.size(1) / 2;
  if (call.ids_TK.defined() &&
      (call.ids_TK.scalar_type() != at::kInt || call.ids_TK.dim() != 2 ||
       call.ids_TK.size(0) != call.x_TD.size(0) || call.ids_TK.size(1) != call.experts_per_token)) {
    ThrowShape("ids", "int32 [T, experts_per_token]", ShapeOf(call.ids_TK));
  }
  return inner;
}

}  // namespace quatrain::torch_library
