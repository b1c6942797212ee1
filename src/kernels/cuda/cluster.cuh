// What CTAs of a cluster do to each other (sm_90): barriers of all their threads, and arrivals,
// stores and copies in each other's shared memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/chain.cuh"

namespace quatrain::cuda {

__device__ __forceinline__ uint32_t RankInCluster() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// ---- barriers of all threads of all CTAs ----

// Together: all have come here. Memory is ordered by the barriers in it, their BarrierInit by
// fence.mbarrier_init. Threads of a warp may come one by one.
__device__ __forceinline__ void ArriveInCluster() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void WaitForCluster() {
  asm volatile("barrier.cluster.wait;" ::: "memory");
}

// The same where all threads of a warp come at one instruction (.aligned).
__device__ __forceinline__ void ArriveInClusterAligned() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void WaitForClusterAligned() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// What any thread wrote before it is seen after WaitForClusterAligned.
__device__ __forceinline__ void ReleaseToClusterAligned() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// Both at once, by whole warps.
__device__ __forceinline__ void SyncCluster() {
  ReleaseToClusterAligned();
  WaitForClusterAligned();
}

// ---- barriers in shared memory ----

// What other CTAs of the cluster stored towards the barrier in a phase is seen after it.
__device__ __forceinline__ void BarrierWaitForCluster(uint32_t barrier, uint32_t parity = 0) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\n"
      "bra WAIT;\n"
      "DONE:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// At the barrier that lies at the same place in another CTA of the cluster. Orders what this warp
// read before copies that its target starts after; a release for the whole cluster would be a fence
// of the device, which costs more than a stage.
__device__ __forceinline__ void ArriveAt(uint32_t barrier, int cta) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(barrier),
      "r"(cta)
      : "memory");
}

// A warp at that barrier of all CTAs of the cluster, which counts ArrivalsOf(1) of it.
__device__ __forceinline__ void ArriveAtAll(uint32_t barrier, int ctas, int lane) {
#ifdef QT_RACECHECK
  for (int cta = 0; cta < ctas; ++cta) ArriveAt(barrier, cta);
#else
  if (lane < ctas) ArriveAt(barrier, lane);
#endif
}

// ---- loads, and stores, which count their bytes at a barrier of the CTA that they go to ----

// Where in the shared memory of CTA `rank` lies what lies at `address` in this one's.
__device__ __forceinline__ uint32_t SharedOf(uint32_t address, int rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}
__device__ __forceinline__ uint64_t LoadWordOf(uint32_t remote) {
  uint64_t word;
  asm volatile("ld.shared::cluster.b64 %0, [%1];" : "=l"(word) : "r"(remote) : "memory");
  return word;
}
__device__ __forceinline__ void GiveWord(uint32_t remote, uint64_t word, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(remote),
      "l"(word), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void Give(uint32_t remote, float value, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(remote),
      "r"(__float_as_uint(value)), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void GivePair(uint32_t remote, const float2& v, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(
          remote),
      "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void GiveFour(uint32_t remote, const float (&v)[4], uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::
          "r"(remote),
      "r"(__float_as_uint(v[0])), "r"(__float_as_uint(v[1])), "r"(__float_as_uint(v[2])),
      "r"(__float_as_uint(v[3])), "r"(barrier)
      : "memory");
}

// ---- copies ----

// CopyBox to the same place in every CTA of `ctas`, a bit each.
__device__ __forceinline__ void CopyBoxToAll(uint32_t destination, const void* map, int column,
                                             int row, uint32_t barrier, uint16_t ctas) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(destination),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(ctas)
      : "memory");
}

// The same with a map of three dimensions (tensor_map.h, BoxesInRow).
__device__ __forceinline__ void CopyBoxesToAll(uint32_t destination, const void* map,
                                               const BoxPlace& from, uint32_t barrier,
                                               uint16_t ctas) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(destination),
      "l"(map), "r"(from.column), "r"(from.row), "r"(from.box), "r"(barrier), "h"(ctas)
      : "memory");
}

}  // namespace quatrain::cuda
