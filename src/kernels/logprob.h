// Log-probabilities and entropy of FP32 logits, one code for rollout and training, and the
// gradient.
//
// x = z * inv_temperature; M = max x; L = sum exp(x - M) in 16 partial sums (lane v % 16) and a
// fixed tree; logprob = (x_t - M) - log(L). Natural logs. Letters: R rows, V vocabulary.
#pragma once

#include <cstdint>
#include <span>

#include "base/threads.h"

namespace quatrain {

// logprobs_R of targets_R; entropy_R (nats) if not null. inv_temperature_R has one value a row, or
// one for all rows.
void LogprobForward(ThreadPool& pool, const float* logits_RV, std::span<const int32_t> targets,
                    std::span<const float> inv_temperature, int64_t vocab_size, float* logprobs_R,
                    float* entropy_R);

// Overwrites logits_RV with d loss / d logits, given dlogprobs_R and (if not null) dentropy_R; one
// inv_temperature.
void LogprobBackward(ThreadPool& pool, float* logits_RV, std::span<const int32_t> targets,
                     float inv_temperature, int64_t vocab_size, const float* dlogprobs_R,
                     const float* dentropy_R);

// Index of the largest logit, lowest index on ties.
void ArgmaxRows(ThreadPool& pool, const float* logits_RV, int64_t rows, int64_t vocab_size,
                int32_t* tokens_R);

}  // namespace quatrain
