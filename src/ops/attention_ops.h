// Causal attention over tensors. Letters: T packed query tokens, N query heads, M kv heads, H
// head_dim, R cache rows.
#pragma once

#include "kernels/attention.h"
#include "ops/tensor.h"

namespace quatrain {

struct AttentionCall {
  at::Tensor q_TNH;
  at::Tensor k_RMH;  // keys by row: the batch's own (varlen) or the cache's (paged)
  at::Tensor v_RMH;
  std::span<const AttentionSequence> sequences;
  int64_t block_size = 0;  // paged only
};
// out_TNH.
at::Tensor Attention(const OpContext& ctx, const AttentionCall& call);

struct AttentionGradTensors {
  at::Tensor dq_TNH, dk_TMH, dv_TMH;  // FP32
};
// Varlen only.
AttentionGradTensors AttentionGrad(const OpContext& ctx, const AttentionCall& call,
                                   const at::Tensor& dout_TNH);

}  // namespace quatrain
