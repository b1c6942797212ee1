// One line of samples.jsonl: what a reader of a run wants to know about one sample.
//
//   rollout, prompt, response, label, reward, verdict, advantage, response_length, truncated
//   tokens                  text of each response token; joined they are the response. A character
//                           that spans tokens stands whole at the last of them
//   rollout_logprobs        one a token, nats, at six decimals
//   logprob_differences     trainer - rollout, exact; only where the trainer scored the sample
//   advantages              one a token, only where they differ from token to token
//   num_masked_tokens       only where some are
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "rl/sample.h"
#include "text/tokenizer.h"
#include "train/train_batch.h"

namespace quatrain {

// Response tokens of one sample, in order, as the trainer holds them; empty: it does not.
struct TrainedTokens {
  std::vector<float> old_logprobs;
  std::vector<float> advantages;
};

// Looks through the micro-batches of all steps of the rollout. `num_prompt_tokens`: of the sample.
TrainedTokens TrainedTokensOf(const std::vector<std::vector<TrainBatch>>& steps, int64_t sample_id,
                              int64_t num_prompt_tokens);

// The text of each token. A character's bytes may be spread over tokens: it is given to the last of
// them. What is no UTF-8 becomes U+FFFD.
std::vector<std::string> TokenTexts(const Tokenizer& tokenizer, const std::vector<int32_t>& ids);

Json SampleRow(int64_t rollout, const Sample& sample, const Tokenizer& tokenizer,
               const TrainedTokens& trained);

}  // namespace quatrain
