// ForwardBatch: what one forward pass computes; the same for prefill, decode and training.
#pragma once

#include <cstdint>
#include <vector>

#include "models/routing_replay.h"
#include "ops/attention_ops.h"

namespace quatrain {

// How queries meet keys: over the batch's own keys (training) or a paged cache (engine). One call
// per layer and pass.
class AttentionCore {
 public:
  virtual ~AttentionCore() = default;
  // q_TNH, k_TMH, v_TMH after norm and RoPE, rows in batch order; returns out_TNH.
  virtual at::Tensor Attend(const OpContext& ctx, int64_t layer, const at::Tensor& q_TNH,
                            const at::Tensor& k_TMH, const at::Tensor& v_TMH) = 0;
};

struct ForwardBatch {
  std::vector<int32_t> token_ids;  // T, sequences packed without padding
  std::vector<int32_t> positions;  // T, index of each token in its sequence
  std::vector<AttentionSequence> sequences;
  AttentionCore* attention = nullptr;  // null: varlen over the batch itself
  // Filled when set (sized by the decoder): the experts that the router chose; beside a replay
  // those that it would have chosen.
  RoutedExperts* record = nullptr;
  const RoutedExperts* replay = nullptr;  // used when set

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

// A batch of whole sequences, positions from 0.
ForwardBatch MakeVarlenBatch(const std::vector<std::vector<int32_t>>& sequences);

}  // namespace quatrain
