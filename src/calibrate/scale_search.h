// Scales of a weight matrix before calibration: the absmax rules, or a search for the least
// weighted error.
//
// Letters: O out_features, I in_features, g group size, G = I / g groups.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/threads.h"
#include "kernels/bfloat16.h"
#include "kernels/int4_quantize.h"

namespace quatrain {

// A BF16 weight in borrowed memory, row-major, finite.
struct WeightMatrix {
  const BFloat16* data = nullptr;  // [O, I]
  int64_t out_features = 0;
  int64_t in_features = 0;
  const float* target = nullptr;  // [O, I] or null: what codes approximate instead, finite

  float At(int64_t row, int64_t column) const {
    const int64_t at = row * in_features + column;
    return target != nullptr ? target[at] : ToFloat(data[at]);
  }
};

// scale_OG by spec.rule (kAbsmax7, kAbsmax7_5 or kSearched). kSearched minimises, group by group,
// the sum over its columns of importance_I[i] * (w - w')^2, w being the target if there is one,
// over the BF16 scales from 1.1 down to 0.4 of absmax / (largest code + 0.5), w' to nearest; an
// importance of 0 everywhere in a group counts as 1 everywhere. Of equal errors the larger scale
// wins. Of 8-bit scales it is the best of all (but for ties of codes), of 4-bit scales the best
// around the best of every fourth.
std::vector<BFloat16> ChooseScales(ThreadPool& pool, const WeightMatrix& weight,
                                   const QuantizeSpec& spec, std::span<const float> importance_I);

}  // namespace quatrain
