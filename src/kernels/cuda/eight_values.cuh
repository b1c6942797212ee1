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

__device__ __forceinline__ void LoadEight(const BFloat16* from, float (&v)[8]) {
  UnpackEight(*reinterpret_cast<const uint4*>(from), v);
}

__device__ __forceinline__ void StoreEight(BFloat16* to, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(to) = PackEight(v);
}

// a + b, rounded.
__device__ __forceinline__ uint4 AddEight(const uint4& a, const uint4& b) {
  float x[8], y[8];
  UnpackEight(a, x);
  UnpackEight(b, y);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = ResidualSum(x[i], y[i]);
  return PackEight(x);
}

}  // namespace quatrain::cuda
