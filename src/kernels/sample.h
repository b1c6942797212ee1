// Sampling from logits, keyed by (seed, position): a token does not depend on the batch it was
// drawn in.
#pragma once

#include <cstdint>
#include <span>

#include "base/threads.h"

namespace quatrain {

struct SamplingRow {
  float temperature = 1.0f;  // 0 is greedy (lowest index on ties)
  float top_p = 1.0f;        // smallest set of most likely tokens whose probability reaches top_p
  int64_t top_k = 0;         // 0 or negative: off; ties at the k-th logit keep the lower index
  uint64_t seed = 0;
  int64_t position = 0;  // index of the new token in its sequence
};

// tokens_R, and logprobs_R of them by the code of LogprobForward at 1 / temperature (1 when
// greedy), before top-k and top-p. Inverse CDF over token ids ascending of the kept set, with
// UniformDouble(seed, /*stream=*/position, 0). Error kData if a row has a NaN or no finite logit
// (names the row).
void SampleRows(ThreadPool& pool, const float* logits_RV, std::span<const SamplingRow> rows,
                int64_t vocab_size, int32_t* tokens_R, float* logprobs_R);

}  // namespace quatrain
