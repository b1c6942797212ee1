// What log-probabilities and sampling know of a row of logits, x = z * inv_temperature.
#pragma once

#include <cmath>

namespace quatrain {

// A NaN among the logits makes `sum` a NaN.
struct SoftmaxRow {
  float largest;  // M = max x
  float sum;      // L = sum exp(x - M): 16 partial sums (lane v % 16) and the tree
};

// The logarithm once a row: in double precision, rounded.
inline float LogSum(const SoftmaxRow& row) {
  return static_cast<float>(std::log(static_cast<double>(row.sum)));
}

// (x - M) - log L.
inline float LogprobOf(float logit, float inv_temperature, const SoftmaxRow& row) {
  return (logit * inv_temperature - row.largest) - LogSum(row);
}

}  // namespace quatrain
