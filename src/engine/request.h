// What the engine is asked and what it answers.
#pragma once

#include <cstdint>
#include <vector>

#include "models/routing_record.h"

namespace quatrain {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  int64_t top_k = 0;  // 0: off
  uint64_t seed = 0;  // with the token's position it decides the draw; the batch does not
  int64_t max_new_tokens = 16;
  std::vector<int32_t> stop_token_ids;  // generation ends after one of them, which is kept
};

struct Request {
  int64_t id = 0;
  std::vector<int32_t> prompt_ids;  // at least one token
  // A generation that was stopped goes on behind these; they count as generated. Their keys,
  // values and routing are computed anew by the weights at hand.
  std::vector<int32_t> resumed_ids;
  std::vector<float> resumed_logprobs;  // of resumed_ids
  int64_t resumed_policy_version = 0;   // of the weights that drew the first of them
  SamplingParams sampling;
  bool return_routed_experts = false;
};

enum class FinishReason {
  kStop,
  kLength,
  kAbort,  // by Engine::TakeUnfinished: may be resumed
};
inline const char* FinishReasonName(FinishReason reason) {
  if (reason == FinishReason::kAbort) return "abort";
  return reason == FinishReason::kStop ? "stop" : "length";
}

struct RequestOutput {
  int64_t id = 0;
  std::vector<int32_t> token_ids;  // generated, the stop token included
  std::vector<float> logprobs;  // of token_ids at the request's temperature (1 when greedy), nats
  FinishReason finish_reason = FinishReason::kStop;
  RoutingRecord routed_experts;    // of prompt + generated - 1 tokens, when asked for
  int64_t policy_version_min = 0;  // of the weights that drew the tokens
  int64_t policy_version_max = 0;
};

}  // namespace quatrain
