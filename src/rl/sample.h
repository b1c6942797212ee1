// What passes through the RL loop: Prompt -> Completion -> Sample. A Sample only gains fields, in
// this order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "rl/reward.h"

namespace quatrain {

// One row of the prompt file.
struct Prompt {
  int64_t id = 0;     // row index in the file
  Json messages;      // raw text, or an array of {"role", "content"} for the chat template
  std::string label;  // the right answer; empty without --label-key
  Json metadata;      // the row's metadata object, null if it has none
  Json tools;         // for the chat template: an array, null if the row has none
};

// What the engine generated for a prompt.
struct Completion {
  std::vector<int32_t> token_ids;       // the stop token included
  std::vector<float> rollout_logprobs;  // one a token, nats, at the rollout temperature
  RoutingRecord routed_experts;         // prompt + completion - 1 tokens; empty: not recorded
  FinishReason finish_reason = FinishReason::kStop;
  int64_t policy_version_min = 0;  // of the weights that drew the tokens
  int64_t policy_version_max = 0;
  int64_t num_offpolicy_tokens = 0;  // the first ones, drawn before the rollout that finished it
};

struct Sample {
  int64_t id = 0;        // within the rollout
  int64_t group_id = 0;  // samples of one prompt share it and stand together
  Prompt prompt;
  std::vector<int32_t> prompt_ids;
  uint64_t draw_key = 0;          // with a token's position it decides the draw
  Completion completion;          // by rl/rollout
  std::string response_text;      // the completion decoded
  RewardResult reward;            // by rl/reward
  float advantage = 0;            // by rl/advantage, the same for every response token
  int64_t num_masked_tokens = 0;  // the first of the response, which are not trained on

  int64_t num_tokens() const {
    return static_cast<int64_t>(prompt_ids.size() + completion.token_ids.size());
  }
  int64_t num_trained_tokens() const { return response_length() - num_masked_tokens; }
  int64_t response_length() const { return static_cast<int64_t>(completion.token_ids.size()); }
};

}  // namespace quatrain
