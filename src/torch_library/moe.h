// A mixture of experts forward, with what its backward needs, and the backward: the pieces of
// w4a16_moe and w4a16_moe_train (operators.h). Letters as there; K slots a token, R = T * K rows.
#pragma once

#include <vector>

#include "torch_library/operators.h"

namespace quatrain::torch_library {

// In the order in which ToList has them.
struct MoeSaved {
  at::Tensor out_TD;
  at::Tensor logits_TE;     // FP32
  at::Tensor ids_TK;        // int32
  at::Tensor weights_TK;    // FP32
  at::Tensor h_RF, y_RD;    // rows sorted by expert, then token, then slot
  at::Tensor expert_begin;  // int32 [E + 1]
  at::Tensor row_token;     // int32 [R]
  at::Tensor slot_row;      // int32 [T, K]

  static constexpr size_t kTensors = 9;
  std::vector<at::Tensor> ToList() const {
    return {out_TD, logits_TE, ids_TK, weights_TK, h_RF, y_RD, expert_begin, row_token, slot_row};
  }
  static MoeSaved FromList(at::TensorList list) {
    return {list[0], list[1], list[2], list[3], list[4], list[5], list[6], list[7], list[8]};
  }
};

MoeSaved MoeForwardCpu(const MoeCall& call);
MoeSaved MoeForwardCuda(const MoeCall& call);

// FP32 but for dx, which has the type of x; undefined where nobody asks for it.
struct MoeGrads {
  at::Tensor dx, drouter, dgate_up, ddown;
};
// Which of them are asked for.
struct MoeNeeds {
  bool dx = true, drouter = true, dgate_up = true, ddown = true;
};
// The weights are codes, the gradients of w' those of the weights (straight-through).
MoeGrads MoeBackwardCpu(const MoeCall& call, const MoeSaved& saved, const at::Tensor& dout,
                        const MoeNeeds& needs);
MoeGrads MoeBackwardCuda(const MoeCall& call, const MoeSaved& saved, const at::Tensor& dout,
                         const MoeNeeds& needs);

// FP32 [T, E] from the gradient of the weights of the chosen, on any device.
inline at::Tensor GradOfLogits(const MoeCall& call, const MoeSaved& saved,
                               const at::Tensor& dweights_TK) {
  const at::Tensor ids = saved.ids_TK.to(at::kLong);
  const at::Tensor& p = saved.weights_TK;
  const at::Tensor dot = (p * dweights_TK).sum(-1, true);
  at::Tensor dlogits = at::zeros_like(saved.logits_TE);
  if (call.norm_topk_prob) return dlogits.scatter_(-1, ids, p * (dweights_TK - dot));
  dlogits.scatter_(-1, ids, p * dweights_TK);
  return dlogits.sub_(at::softmax(saved.logits_TE, -1) * dot);
}

// dX = dy w' in the type of dy, [..., I]; packed: codes or, on CUDA, kernel layout. On CUDA one
// chain over O (docs/numerics.md, "GPU order", rule 9) from codes on the way, which was measured
// faster than dequantising first for every number of rows (docs/results.md, "Gradients of inputs");
// the library's product over the weights where O is no multiple of 8.
at::Tensor InputGradCpu(const at::Tensor& dy, const at::Tensor& packed, const at::Tensor& scale,
                        int64_t in_features);
at::Tensor InputGradCuda(const at::Tensor& dy, const at::Tensor& packed, const at::Tensor& scale,
                         int64_t in_features);

// dW = dy^T x, FP32 [O, I], of leading dimensions as rows.
at::Tensor WeightGradCpu(const at::Tensor& dy, const at::Tensor& x);
at::Tensor WeightGradCuda(const at::Tensor& dy, const at::Tensor& x);

}  // namespace quatrain::torch_library
