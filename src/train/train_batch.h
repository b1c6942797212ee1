// TrainBatch: one micro-batch as tensors. train/ never sees text, rewards or engines.
//
// S sequences (prompt + response) lie packed without padding, T tokens in all. One alignment for
// every per-token array: entry t belongs to the token that is PREDICTED. rollout_logprobs_T[t] is
// log p(token t | tokens before t of its sequence); for prompt tokens, which nobody sampled,
// loss_mask_T is 0 and the other arrays are 0.
//
//   token               What  is  2+2  ?   4   <end>     prompt of 4, response of 2
//   loss_mask_T         0     0   0    0   1   1
//   rollout_logprobs_T  0     0   0    0   p4  p5        p4 = log p("4" | "What is 2+2 ?")
//   predicted by row    -     0   1    2   3   4         of the hidden states
#pragma once

#include <cstdint>
#include <vector>

#include "models/routing_record.h"

namespace quatrain {

struct TrainBatch {
  std::vector<int32_t> token_ids_T;
  std::vector<int32_t> positions_T;  // index of each token in its sequence
  std::vector<int64_t> cu_seqlens;   // S + 1; sequence s is [cu_seqlens[s], cu_seqlens[s + 1])
  std::vector<uint8_t> loss_mask_T;  // 1: sampled and trained on; never a sequence's first token
  std::vector<float> advantages_T;
  std::vector<float> rollout_logprobs_T;  // nats, at the rollout temperature, by the engine
  std::vector<float> old_logprobs_T;  // by the trainer before the rollout's steps; empty: not yet
  std::vector<float> ref_logprobs_T;  // by the reference model; empty: no reference

  // Records of the sequences' first length - 1 tokens, packed: T - S rows (the last token of a
  // sequence predicts nothing, so neither the engine nor the trainer runs it). Empty: nothing is
  // replayed.
  RoutingRecord routed_experts;

  // Weight in the loss of each trained token of a sequence, fixed by the whole optimizer step
  // before it is cut into micro-batches: 1 / (trained tokens of the sequence * samples of the
  // step), or 1 / (trained tokens of the step).
  std::vector<double> loss_weights_S;
  std::vector<int64_t> sample_ids_S;  // for messages

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids_T.size()); }
  int64_t num_sequences() const { return static_cast<int64_t>(loss_weights_S.size()); }
};

}  // namespace quatrain
