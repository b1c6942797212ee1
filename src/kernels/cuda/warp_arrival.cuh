// Arrivals of a warp at a barrier in shared memory: one lane, after a __syncwarp, for what all 32
// have read. compute-sanitizer's racecheck follows no lane but those that arrive themselves, and
// reports the others' reads as hazards. In a build for it (-DQT_RACECHECK=ON, docs/testing.md) all
// lanes arrive, and the barriers count them.
#pragma once

#include "kernels/cuda/chain.cuh"

namespace quatrain::cuda {

#ifdef QT_RACECHECK
inline constexpr int kArrivingLanes = 32;
#else
inline constexpr int kArrivingLanes = 1;
#endif

// What a barrier counts at which `warps` warps arrive.
__device__ __forceinline__ int ArrivalsOf(int warps) { return kArrivingLanes * warps; }

__device__ __forceinline__ void ArriveAsWarp(uint32_t barrier, int lane) {
  if (lane < kArrivingLanes) BarrierArrive(barrier);
}

// The same at a barrier that also counts bytes of copies.
__device__ __forceinline__ void ExpectAsWarp(uint32_t barrier, uint32_t bytes, int lane) {
  if constexpr (kArrivingLanes > 1) {
    if (lane > 0) BarrierArrive(barrier);
  }
  if (lane == 0) BarrierExpect(barrier, bytes);
}

}  // namespace quatrain::cuda
