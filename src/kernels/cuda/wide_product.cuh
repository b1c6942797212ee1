// wgmma with weights in registers: D (64 x n) = A (64 x 16) B (16 x n) + D, one step of the chains
// of 64 rows and n tokens. The bits are those of ChainStep (docs/numerics.md, "GPU order", rule 1).
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

// Sums of 8 columns, from the t-th 8 on, as operands of an instruction.
#define QT_ROW(d, t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define QT_ROWS_4(d, t) QT_ROW(d, t), QT_ROW(d, t + 1), QT_ROW(d, t + 2), QT_ROW(d, t + 3)
#define QT_ROWS_8(d, t) QT_ROWS_4(d, t), QT_ROWS_4(d, t + 4)

template <>
__device__ __forceinline__ void WideProduct<32>(float (&d)[4][4], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" QT_NAMES_16
               "}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;\n"
               : QT_ROWS_4(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WideProduct<64>(float (&d)[8][4], const uint32_t (&a)[4],
                                                uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" QT_NAMES_32
               "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;\n"
               : QT_ROWS_8(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void WideProduct<128>(float (&d)[16][4], const uint32_t (&a)[4],
                                                 uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" QT_NAMES_64
               "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 0;\n"
               : QT_ROWS_8(d, 0), QT_ROWS_8(d, 8)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

}  // namespace quatrain::cuda
