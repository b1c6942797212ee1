// wgmma with weights in registers or in shared memory: D (64 x n) = A (64 x 16) B (16 x n) + D, one
// step of the chains of 64 rows and n tokens. The bits are those of ChainStep (docs/numerics.md,
// "GPU order", rule 1).
//
// A warp's 16 rows of A and of D lie in registers as those of mma.sync.m16n8k16; B is n rows of K
// in shared memory, 128 bytes each, in which 16-byte part c of row r lies at c ^ (r % 8).
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace quatrain::cuda {

// Keeps what the compiler does with the accumulators out of the pipeline of products.
template <int kTiles>
__device__ __forceinline__ void FenceSums(float (&d)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
}

// Place of shared memory in a descriptor of B; places add up as addresses do.
__device__ __forceinline__ uint32_t OperandPlace(uint32_t address) {
  return (address & 0x3FFFFu) >> 4;
}
// Descriptor of B; `place` is that of the first byte of the k16 step.
__device__ __forceinline__ uint64_t SwizzledOperand(uint32_t place) {
  constexpr uint32_t kEightRows = 1024 >> 4;
  return OperandAt(place | kEightRows << 16);
}

template <int kTokens>
__device__ __forceinline__ void WideProduct(float (&d)[kTokens / 8][4], const uint32_t (&a)[4],
                                            uint64_t b);
// The same with A in shared memory too, laid out as B is.
template <int kTokens>
__device__ __forceinline__ void WideProductOfShared(float (&d)[kTokens / 8][4], uint64_t a,
                                                    uint64_t b);

#define QT_ROW(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])

template <>
__device__ __forceinline__ void WideProduct<32>(float (&d)[4][4], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
      "{%16,%17,%18,%19}, %20, 1, 1, 1, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WideProduct<64>(float (&d)[8][4], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3), QT_ROW(4), QT_ROW(5), QT_ROW(6), QT_ROW(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WideProduct<128>(float (&d)[16][4], const uint32_t (&a)[4],
                                                 uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,"
      "%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "{%64,%65,%66,%67}, %68, 1, 1, 1, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3), QT_ROW(4), QT_ROW(5), QT_ROW(6), QT_ROW(7),
        QT_ROW(8), QT_ROW(9), QT_ROW(10), QT_ROW(11), QT_ROW(12), QT_ROW(13), QT_ROW(14), QT_ROW(15)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<32>(float (&d)[4][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
      "%16, %17, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<64>(float (&d)[8][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3), QT_ROW(4), QT_ROW(5), QT_ROW(6), QT_ROW(7)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<128>(float (&d)[16][4], uint64_t a,
                                                         uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,"
      "%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "%64, %65, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3), QT_ROW(4), QT_ROW(5), QT_ROW(6), QT_ROW(7),
        QT_ROW(8), QT_ROW(9), QT_ROW(10), QT_ROW(11), QT_ROW(12), QT_ROW(13), QT_ROW(14), QT_ROW(15)
      : "l"(a), "l"(b));
}

#undef QT_ROW

}  // namespace quatrain::cuda
