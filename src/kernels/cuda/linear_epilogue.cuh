// What a linear does with a sum before it stores it (docs/numerics.md, "GPU order", rules 2 and 3),
// for one output at a time.
#pragma once

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/cuda/canonical.cuh"

namespace quatrain::cuda {

// Output n, whose place in y is `at`. Of a launch's parameters it takes bias and residual, which
// may be null, and y_float or, where that is null, y.
template <class Parameters>
__device__ __forceinline__ void StoreOne(const Parameters& p, int64_t at, int64_t n, float sum) {
  if (p.bias != nullptr) sum = AddRn(sum, ToFloat(p.bias[n]));
  if (p.y_float != nullptr) {
    p.y_float[at] = sum;
    return;
  }
  BFloat16 value = ToBFloat16(sum);
  if (p.residual != nullptr) {
    value = ToBFloat16(ResidualSum(ToFloat(p.residual[at]), ToFloat(value)));
  }
  p.y[at] = value;
}

}  // namespace quatrain::cuda
