// Blocked Cholesky factorisation in FP32, the same bits for any thread count and vector width.
#pragma once

#include <cstdint>

#include "base/threads.h"

namespace quatrain {

// Overwrites the upper triangle of a_NN [n, n], row-major, with U such that A = U^T U. The lower
// triangle is neither read nor meaningful afterwards. Returns false, leaving a_NN undefined, if A
// is not positive definite to working precision: a pivot that is not above 2^-21 of its diagonal
// entry is rounding noise.
//
// FP32 and not FP64: the error of each column is relative to its own diagonal entry (the
// factorisation commutes with diagonal scaling), the dampening keeps pivots far above it, and
// memory and time halve where they matter (I = 14336).
bool TryCholesky(ThreadPool& pool, float* a_NN, int64_t n);

// to[i] = from[count - 1 - i] / divisor: a row of the factor with its columns reversed. No overlap.
void DivideReversed(const float* from, int64_t count, float divisor, float* to);

}  // namespace quatrain
