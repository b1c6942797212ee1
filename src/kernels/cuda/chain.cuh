// The device steps that every chain-exact kernel shares: one k16 tensor-core step, codes to BF16
// weights, and asynchronous copies. docs/numerics.md, "GPU order", rules 1 and 2.
//
// Codes become weights with one fused multiply-add a pair. Let u = q + 8 (INT4) or q + 128 (INT8)
// be the stored code. As the low byte of a BF16 pattern, bits u << p read as the number u * 2^(p -
// 133) exactly (the subnormals and the first binade are evenly spaced). So
//     fma(u * 2^(p-133), s * 2^(133-p-16), -8 * s * 2^-16) = rn_bf16(q * s) * 2^-16
// with a single rounding: the bits of DequantizeCode, 16 binades lower. A chain over such weights
// is the chain over w', 16 binades lower, because neither a BF16 rounding nor the alignment inside
// a tensor-core step depends on the exponent's value; kCodeUnscale at the end is exact. Scales must
// lie in [2^-100, 2^10] (the packer counts others), and no partial sum below 2^-110 keeps its last
// bits.
#pragma once

#include <cstdint>

#include "kernels/bfloat16.h"

namespace quatrain::cuda {

inline constexpr float kCodeUnscale = 65536.0f;

// D = A B + D: 16x16 A (row-major fragments), 16x8 B, FP32 D. One step of a chain.
__device__ __forceinline__ void ChainStep(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t MultiplyPair(uint32_t a, uint32_t b) {
  uint32_t d;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));  // + -0
#else
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
#endif
  return d;
}

__device__ __forceinline__ uint32_t FmaPair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// What the codes of one group are multiplied with: BF16 pairs, both halves alike.
struct GroupFactors {
  uint32_t low;   // for fields at bit 0 of a half: s * 2^117
  uint32_t high;  // for INT4 fields at bit 4: s * 2^113
  uint32_t zero;  // -(2^(bits-1)) * s * 2^-16
};

// `scale_pair` holds the scale in both halves.
template <int kBits>
__device__ __forceinline__ GroupFactors FactorsOf(uint32_t scale_pair) {
  GroupFactors f;
  f.low = MultiplyPair(scale_pair, 0x7A007A00u);                              // 2^117
  f.high = kBits == 4 ? MultiplyPair(scale_pair, 0x78007800u) : 0u;           // 2^113
  f.zero = MultiplyPair(scale_pair, kBits == 4 ? 0xB900B900u : 0xBB00BB00u);  // -2^-13, -2^-9
  return f;
}

// One word of INT4 codes -> the B fragments of two k16 steps: b[0..1] and b[2..3].
__device__ __forceinline__ void WeightsOfInt4Word(uint32_t word, const GroupFactors& f,
                                                  uint32_t* b) {
  const uint32_t upper = word >> 8;
  b[0] = FmaPair(word & 0x000F000Fu, f.low, f.zero);
  b[1] = FmaPair(word & 0x00F000F0u, f.high, f.zero);
  b[2] = FmaPair(upper & 0x000F000Fu, f.low, f.zero);
  b[3] = FmaPair(upper & 0x00F000F0u, f.high, f.zero);
}

// One word of INT8 codes -> the B fragment of one k16 step.
__device__ __forceinline__ void WeightsOfInt8Word(uint32_t word, const GroupFactors& f,
                                                  uint32_t* b) {
  b[0] = FmaPair(word & 0x00FF00FFu, f.low, f.zero);
  b[1] = FmaPair((word >> 8) & 0x00FF00FFu, f.low, f.zero);
}

// ---- shared memory, addressed in its own window ----

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void LoadMatrices(uint32_t address, uint32_t* r) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void LoadTransposed(uint32_t address, uint32_t* r) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Those of LoadMatrices, from registers (sm_90).
__device__ __forceinline__ void StoreMatrices(uint32_t address, const uint32_t* r) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void StoreTransposed(uint32_t address, const uint32_t* r) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

__device__ __forceinline__ uint32_t LoadShared4(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ __forceinline__ uint4 LoadShared16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void StoreShared16(uint32_t address, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void StoreShared16(uint32_t address, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(v[0]), "f"(v[1]),
               "f"(v[2]), "f"(v[3])
               : "memory");
}

// Zeros by one warp; address and size are multiples of 16.
__device__ __forceinline__ void ClearShared(uint32_t address, int bytes, int lane) {
  for (int i = 16 * lane; i < bytes; i += 512) StoreShared16(address + i, uint4{});
}

// Waits for `threads` threads of the CTA at its barrier `id`; 0 is that of __syncthreads.
__device__ __forceinline__ void SyncSome(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- barriers in shared memory and asynchronous copies ----
//
// From sm_90 on an engine copies in bulk and counts bytes at a barrier. Before, a thread copies 16
// bytes at a time, and each copy keeps the barrier's phase open until it has ended; so the arrival
// for a slot comes when all its copies have been asked for (AllAsked), not before (BarrierExpect).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define QT_COPIES_BY_THREADS 1
#define QT_TRY_WAIT "mbarrier.test_wait"
#else
#define QT_TRY_WAIT "mbarrier.try_wait"
#endif

__device__ __forceinline__ void BarrierInit(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Orders what threads did to shared memory before copies of the engine that follow.
__device__ __forceinline__ void FenceBeforeCopies() {
#ifndef QT_COPIES_BY_THREADS
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Makes BarrierInit (and plain stores) visible to the copy engine.
__device__ __forceinline__ void FenceForCopies() {
#ifndef QT_COPIES_BY_THREADS
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  FenceBeforeCopies();
#endif
}

__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void BarrierExpect(uint32_t barrier, uint32_t bytes) {
#ifndef QT_COPIES_BY_THREADS
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
#endif
}

// By all lanes of a warp, after their copies towards the barriers of those for which `expected`
// holds.
__device__ __forceinline__ void AllAsked(uint32_t barrier, bool expected) {
#ifdef QT_COPIES_BY_THREADS
  __syncwarp();
  if (expected) BarrierArrive(barrier);
#endif
}

// At two barriers, by the lanes of a warp for which `at_first` and `at_second` hold, after all its
// lanes.
__device__ __forceinline__ void BarrierArriveAtTwo(uint32_t first, bool at_first, uint32_t second,
                                                   bool at_second) {
  asm volatile(
      "{\n"
      ".reg .pred one, other;\n"
      "setp.ne.u32 one, %1, 0;\n"
      "setp.ne.u32 other, %3, 0;\n"
      "bar.warp.sync 0xFFFFFFFF;\n"
      "@one mbarrier.arrive.shared::cta.b64 _, [%0];\n"
      "@other mbarrier.arrive.shared::cta.b64 _, [%2];\n"
      "}\n" ::"r"(first),
      "r"(static_cast<uint32_t>(at_first)), "r"(second), "r"(static_cast<uint32_t>(at_second))
      : "memory");
}

__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT:\n" QT_TRY_WAIT
      ".parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\n"
      "bra WAIT;\n"
      "DONE:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Whether both phases have ended; does not wait.
__device__ __forceinline__ bool BarrierTestBoth(uint32_t first, uint32_t first_parity,
                                                uint32_t second, uint32_t second_parity) {
  uint32_t is_done;
  asm volatile(
      "{\n"
      ".reg .pred done, other;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 other, [%3], %4;\n"
      "and.pred done, done, other;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(is_done)
      : "r"(first), "r"(first_parity), "r"(second), "r"(second_parity)
      : "memory");
  return is_done != 0;
}

// Waits for two barriers at once.
__device__ __forceinline__ void BarrierWaitBoth(uint32_t first, uint32_t first_parity,
                                                uint32_t second, uint32_t second_parity) {
  asm volatile(
      "{\n"
      ".reg .pred done, other;\n"
      "WAIT:\n" QT_TRY_WAIT ".parity.shared::cta.b64 done, [%0], %1;\n" QT_TRY_WAIT
      ".parity.shared::cta.b64 other, [%2], %3;\n"
      "and.pred done, done, other;\n"
      "@done bra DONE;\n"
      "bra WAIT;\n"
      "DONE:\n"
      "}\n" ::"r"(first),
      "r"(first_parity), "r"(second), "r"(second_parity)
      : "memory");
}

// A thread's copy of 16 bytes, global to shared; zeros if not `is_there` (nothing is read then).
__device__ __forceinline__ void CopyAsync16(uint32_t destination, const void* source,
                                            bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(is_there ? 16 : 0)
               : "memory");
}
// Closes a group of the thread's copies since the last one.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kPending groups of the thread are unfinished.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
// The thread arrives at a barrier, which counts it, when its copies so far have ended.
__device__ __forceinline__ void ArriveWithCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// The same for a barrier that does not count it: keeps its phase open until then.
__device__ __forceinline__ void CountCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// Global to shared; address, size and destination are multiples of 16.
__device__ __forceinline__ void CopyBulk(uint32_t destination, const void* source, uint32_t bytes,
                                         uint32_t barrier) {
#ifdef QT_COPIES_BY_THREADS
  const auto* from = static_cast<const uint8_t*>(source);
  for (uint32_t i = 0; i < bytes; i += 16) CopyAsync16(destination + i, from + i, true);
  CountCopies(barrier);
#else
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
#endif
}

// A box of a matrix by its tensor map (a __grid_constant__ parameter), from `column` and `row` on.
__device__ __forceinline__ void CopyBox(uint32_t destination, const void* map, int column, int row,
                                        uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(destination),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void CopyBoxOnce(uint32_t destination, const void* map, int column,
                                            int row, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(destination),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}

// CopyBox of a map of three dimensions (tensor_map.h, BoxesInRow).
struct BoxPlace {
  int column, row, box;
};
__device__ __forceinline__ void CopyBoxes(uint32_t destination, const void* map,
                                          const BoxPlace& from, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(destination),
      "l"(map), "r"(from.column), "r"(from.row), "r"(from.box), "r"(barrier)
      : "memory");
}

// Brings a tensor map near the copy engine, which otherwise fetches it for its first box.
__device__ __forceinline__ void PrefetchMap(const void* map) {
#ifndef QT_COPIES_BY_THREADS
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// Weights, in bulk; they are read once: first out of the L2.
__device__ __forceinline__ void CopyBulkOnce(uint32_t destination, const void* source,
                                             uint32_t bytes, uint32_t barrier, uint64_t policy) {
#ifdef QT_COPIES_BY_THREADS
  CopyBulk(destination, source, bytes, barrier);
#else
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], "
      "%2, [%3], %4;" ::"r"(destination),
      "l"(source), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
#endif
}

__device__ __forceinline__ uint64_t EvictFirstPolicy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// ---- programmatic dependent launch (sm_90); before that kernels follow each other anyway ----

// Everything the kernels before this one wrote is visible after it.
__device__ __forceinline__ void WaitForPreviousKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace quatrain::cuda
