// The Hessian of a linear's output error: H = 2 * sum over tokens of x x^T.
//
// Letters: T tokens, O out_features, I in_features.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/threads.h"
#include "calibrate/float_buffer.h"
#include "kernels/bfloat16.h"

namespace quatrain {

struct Hessian {
  int64_t in_features = 0;
  int64_t num_tokens = 0;
  AlignedBuffer upper_II;  // row-major; entries below the diagonal mean nothing

  Hessian() = default;
  explicit Hessian(int64_t in_features);

  float& At(int64_t row, int64_t column) {  // row <= column
    return upper_II[static_cast<size_t>(row * in_features + column)];
  }
  float At(int64_t row, int64_t column) const {
    return upper_II[static_cast<size_t>(row * in_features + column)];
  }
};

// hessian += 2 * X^T X over the rows of inputs_TI (BFloat16 or float, row-major, finite), counting
// the tokens. FP32: fma chains of at most kChainDepth tokens, in order, then added to H; the cut
// starts anew with each call. Same bits for any thread count. Only the upper triangle is computed.
template <class T>
void AccumulateHessian(ThreadPool& pool, const T* inputs_TI, int64_t num_tokens, Hessian& hessian);

// First NaN or Inf of an input: it would spread over a row and a column of H.
struct BadInput {
  int64_t token = 0, feature = 0;
  float value = 0.0f;
};
template <class T>
std::optional<BadInput> FindBadInput(const T* inputs_TI, int64_t num_tokens, int64_t in_features);

// Adds `other`, tokens too: Hessians of two sets of tokens become that of both.
void MergeHessian(ThreadPool& pool, const Hessian& other, Hessian& hessian);

// An expert's Hessian, shrunk towards the layer's: H_e + prior_tokens * H_l / n_l, as if the expert
// had also seen prior_tokens average tokens of its layer. With many tokens of its own it is its
// own; with none it is the layer's. A layer without tokens adds nothing. The result counts the
// expert's tokens only.
Hessian BlendHessian(ThreadPool& pool, const Hessian& expert, const Hessian& layer,
                     double prior_tokens);

// tr(E H E^T) row by row: e H e^T of each of the O rows, which load_row(row, e_I) writes.
std::vector<double> OutputError(ThreadPool& pool, const Hessian& hessian, int64_t out_features,
                                FunctionRef<void(int64_t row, float* error_I)> load_row);

}  // namespace quatrain
