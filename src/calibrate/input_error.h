// Errors that a weight inherits: its inputs x in the quantised model are not those, x*, of the
// unquantised one. Of all FP32 weights t that read x, the one whose outputs come nearest to w x* is
//   t = argmin sum over tokens of |t x - w x*|^2 + l |t - w|^2 = w + w C^T (H + l I)^-1,
//   C = 2 * sum over tokens of x (x* - x)^T,
// and quantising t instead of w undoes part of the errors of the layers before (arXiv:2504.09629,
// arXiv:2504.02692). l is the dampening of H.
//
// Where one weight with few outputs reads the inputs, C w^T = 2 * sum of x e^T with e = w (x* - x)
// is cheaper to sum than C, and is all that its t needs.
//
// Letters: T tokens, O out_features, I in_features, M columns of the moment.
#pragma once

#include <cstdint>
#include <vector>

#include "base/threads.h"
#include "calibrate/float_buffer.h"
#include "calibrate/gptq.h"
#include "calibrate/strip_packing.h"

namespace quatrain {

// Empty while nothing was added: no error.
struct InputError {
  int64_t in_features = 0;
  int64_t num_outputs = 0;  // 0: the moment is C, M = I; else it is C w^T of one weight, M = O
  AlignedBuffer moment_IM;  // row-major

  bool empty() const { return moment_IM.empty(); }
  int64_t columns() const { return num_outputs > 0 ? num_outputs : in_features; }
};

// error += 2 * X^T (X* - X) over the rows of inputs_TI and reference_TI (BFloat16 or float,
// finite). FP32 in the order of AccumulateHessian; differences are rounded to FP32. Same
// bits for any thread count.
template <class T>
void AccumulateInputError(ThreadPool& pool, const T* inputs_TI, MatrixRows<T> reference_TI,
                          int64_t num_tokens, InputError& error);

// The same, and AccumulateHessian of the inputs with it: they are packed once.
template <class T>
void AccumulateHessianAndError(ThreadPool& pool, const T* inputs_TI, MatrixRows<T> reference_TI,
                               int64_t num_tokens, Hessian& hessian, InputError& error);

// error += 2 * X^T E, E = output_error_TO (row-major, finite) being w (x* - x) of every token, for
// num_outputs > 0.
template <class T>
void AccumulateOutputError(ThreadPool& pool, const T* inputs_TI, const float* output_error_TO,
                           int64_t num_tokens, InputError& error);

// error += share * other, of one kind.
void MergeInputError(const InputError& other, double share, InputError& error);

// t of a weight, float [O, I]; `factor` is of H with its dampening, and usable. FP32 chains of a
// fixed order: same bits for any thread count.
class InputCorrection {
 public:
  InputCorrection(ThreadPool& pool, const HessianFactor& factor, const InputError& error);
  std::vector<float> Apply(ThreadPool& pool, const WeightMatrix& weight) const;

 private:
  std::vector<float> ApplyToRows(ThreadPool& pool, const WeightMatrix& weight) const;

  InputError solved_;  // (H + l I)^-1 times the moment
};

}  // namespace quatrain
