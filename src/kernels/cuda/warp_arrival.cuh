// Arrivals of a warp at a barrier in shared memory: one lane, after a __syncwarp, for what all 32
// have read. compute-sanitizer's racecheck does not add up a __syncwarp and a barrier, and takes
// the first lane for the one that issues a warp's bulk copies. In a build for it
// (-DQT_RACECHECK=ON, docs/testing.md) all lanes arrive, the barriers count them, and all lanes
// wait for what one of them has to wait for. There, too, a fence stands between the last read of a
// slot and the arrival that lets copies overwrite it: by the letter of PTX two proxies need one.
// But reads of a warp end in order with its arrivals, and the fence takes up to 3 % of a decode
// step.
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

// Before an arrival that gives a slot back to the copy engine.
__device__ __forceinline__ void EndReads() {
  if constexpr (kArrivingLanes > 1) FenceBeforeCopies();
}

__device__ __forceinline__ void ArriveAsWarp(uint32_t barrier, int lane) {
  EndReads();
  if (lane < kArrivingLanes) BarrierArrive(barrier);
}

// The same at a barrier that also counts bytes of copies.
__device__ __forceinline__ void ExpectAsWarp(uint32_t barrier, uint32_t bytes, int lane) {
  if constexpr (kArrivingLanes > 1) {
    if (lane > 0) BarrierArrive(barrier);
  }
  if (lane == 0) BarrierExpect(barrier, bytes);
}

// Each lane for a phase of its own, where it `has` one, before copies of the warp.
__device__ __forceinline__ void WaitInLanes(bool has, uint32_t barrier, uint32_t parity) {
  if constexpr (kArrivingLanes == 1) {
    if (has) BarrierWait(barrier, parity);
  } else {
    for (int from = 0; from < 32; ++from) {
      const uint32_t of_lane = __shfl_sync(0xFFFFFFFF, has ? barrier : 0, from);
      const uint32_t its_parity = __shfl_sync(0xFFFFFFFF, parity, from);
      if (of_lane != 0) BarrierWait(of_lane, its_parity);
    }
  }
}

}  // namespace quatrain::cuda
