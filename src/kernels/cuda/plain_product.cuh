// wgmma over two operands in shared memory with few columns: D (64 x n) = A (64 x 16) B (16 x n) +
// D, for the numbers of columns that the BF16 linear takes and wide_product.cuh has not. Both
// operands are rows of K as described there.
#pragma once

#include "kernels/cuda/wide_product.cuh"

namespace quatrain::cuda {

#define QT_ROW(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])

template <>
__device__ __forceinline__ void WideProductOfShared<16>(float (&d)[2][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<24>(float (&d)[3][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11}, %12, %13, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<40>(float (&d)[5][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19}, "
      "%20, %21, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3), QT_ROW(4)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<48>(float (&d)[6][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23}, %24, %25, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3), QT_ROW(4), QT_ROW(5)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<80>(float (&d)[10][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"
      "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39}, "
      "%40, %41, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3), QT_ROW(4), QT_ROW(5), QT_ROW(6), QT_ROW(7),
        QT_ROW(8), QT_ROW(9)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<96>(float (&d)[12][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"
      "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,"
      "%45,%46,%47}, %48, %49, 1, 1, 1, 0, 0;\n"
      : QT_ROW(0), QT_ROW(1), QT_ROW(2), QT_ROW(3), QT_ROW(4), QT_ROW(5), QT_ROW(6), QT_ROW(7),
        QT_ROW(8), QT_ROW(9), QT_ROW(10), QT_ROW(11)
      : "l"(a), "l"(b));
}

#undef QT_ROW

}  // namespace quatrain::cuda
