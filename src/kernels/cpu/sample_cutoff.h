// Which tokens of a row top-k and top-p keep, without sorting the vocabulary.
#pragma once

#include <cstdint>
#include <vector>

namespace quatrain {

// Kept is every token with a larger logit, and of those with this logit the indices up to `index`.
struct SampleCutoff {
  float logit;
  int32_t index;
};

// Tokens fall into buckets of (M - x), 1/64 nat wide; the last takes the rest. Larger logits never
// stand in a later bucket, so only the bucket that a limit falls into has to be put in order.
inline constexpr float kBucketsPerNat = 64.0f;
inline constexpr int32_t kNumBuckets = 4096;

// A row of logits as seen by the cut: exps_V = exp(x - M), and each token's bucket.
struct CutoffRow {
  const float* logits;
  const float* exps;
  const int32_t* buckets;
  int64_t vocab_size;
};

// Scratch memory of one thread.
struct CutoffScratch {
  std::vector<int64_t> counts;
  std::vector<double> masses;
  std::vector<int32_t> members;
};

// top_k in [1, vocab_size) or 0 for off, then top_p in [0, 1) of what is left, or 1 for off.
SampleCutoff FindCutoff(const CutoffRow& row, int64_t top_k, float top_p, CutoffScratch& scratch);

}  // namespace quatrain
