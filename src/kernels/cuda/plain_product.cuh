// wgmma over two operands in shared memory: D (64 x n) = A (64 x 16) B (16 x n) + D for the numbers
// of columns that the BF16 linear takes. Both operands are rows of K as wide_product.cuh has B.
#pragma once

#include "kernels/cuda/wide_product.cuh"  // QT_ROW

namespace quatrain::cuda {

template <int kColumns>
__device__ __forceinline__ void WideProductOfShared(float (&d)[kColumns / 8][4], uint64_t a,
                                                    uint64_t b);

template <>
__device__ __forceinline__ void WideProductOfShared<16>(float (&d)[2][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;\n"
      : QT_ROW(d, 0), QT_ROW(d, 1)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<24>(float (&d)[3][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11}, %12, %13, 1, 1, 1, 0, 0;\n"
      : QT_ROW(d, 0), QT_ROW(d, 1), QT_ROW(d, 2)
      : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<32>(float (&d)[4][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" QT_NAMES_16
               "}, %16, %17, 1, 1, 1, 0, 0;\n"
               : QT_ROWS_4(d, 0)
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<40>(float (&d)[5][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {" QT_NAMES_16
               ",%16,%17,%18,%19}, %20, %21, 1, 1, 1, 0, 0;\n"
               : QT_ROWS_4(d, 0), QT_ROW(d, 4)
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<48>(float (&d)[6][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {" QT_NAMES_16
               ",%16,%17,%18,%19,%20,%21,%22,%23}, %24, %25, 1, 1, 1, 0, 0;\n"
               : QT_ROWS_4(d, 0), QT_ROW(d, 4), QT_ROW(d, 5)
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<64>(float (&d)[8][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" QT_NAMES_32
               "}, %32, %33, 1, 1, 1, 0, 0;\n"
               : QT_ROWS_8(d, 0)
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<80>(float (&d)[10][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {" QT_NAMES_32
               ",%32,%33,%34,%35,%36,%37,%38,%39}, %40, %41, 1, 1, 1, 0, 0;\n"
               : QT_ROWS_8(d, 0), QT_ROW(d, 8), QT_ROW(d, 9)
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<96>(float (&d)[12][4], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" QT_NAMES_32
               ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47}, "
               "%48, %49, 1, 1, 1, 0, 0;\n"
               : QT_ROWS_8(d, 0), QT_ROWS_4(d, 8)
               : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void WideProductOfShared<128>(float (&d)[16][4], uint64_t a,
                                                         uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" QT_NAMES_64
               "}, %64, %65, 1, 1, 1, 0, 0;\n"
               : QT_ROWS_8(d, 0), QT_ROWS_8(d, 8)
               : "l"(a), "l"(b));
}

}  // namespace quatrain::cuda
