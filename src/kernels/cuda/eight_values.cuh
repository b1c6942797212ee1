// Eight neighbouring BF16 values, 16 bytes of a thread, as floats and back.
#pragma once

#include "kernels/cuda/canonical.cuh"

namespace quatrain::cuda {

__device__ __forceinline__ void UnpackEight(const uint4& v, float (&x)[8]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = LowOfPair(words[i]);
    x[2 * i + 1] = HighOfPair(words[i]);
  }
}

__device__ __forceinline__ uint4 PackEight(const float (&x)[8]) {
  return make_uint4(RoundPair(x[0], x[1]), RoundPair(x[2], x[3]), RoundPair(x[4], x[5]),
                    RoundPair(x[6], x[7]));
}

}  // namespace quatrain::cuda
