// RoutedExperts: which experts each token went to, recorded by one forward and replayed by another
// (R3, arXiv:2510.11370). Replay replaces only the indices; the weights are recomputed from the
// router, so the gradient still reaches it.
#pragma once

#include <cstdint>
#include <vector>

namespace quatrain {

struct RoutedExperts {
  int64_t num_tokens = 0;
  int64_t num_moe_layers = 0;
  int64_t num_experts_per_tok = 0;
  std::vector<int32_t> ids_TLK;  // largest weight first

  bool empty() const { return ids_TLK.empty(); }
  int64_t ids_per_token() const { return num_moe_layers * num_experts_per_tok; }
  // First id of a (token, MoE layer).
  const int32_t* At(int64_t token, int64_t moe_layer) const {
    return ids_TLK.data() + token * ids_per_token() + moe_layer * num_experts_per_tok;
  }
  int32_t* At(int64_t token, int64_t moe_layer) {
    return ids_TLK.data() + token * ids_per_token() + moe_layer * num_experts_per_tok;
  }
};

}  // namespace quatrain
