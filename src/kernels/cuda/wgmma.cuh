// The order of wgmma products, which run beside the warpgroup that issues them, and the product
// that attention and gradients share.
#pragma once

#include <cstdint>

#include "kernels/cuda/chain.cuh"

namespace quatrain::cuda {

// Registers written before are seen by the products after it.
__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// What the thread wrote to shared memory is seen by products issued after it, by any thread once
// they have met: products read it as copies of the engine do.
__device__ __forceinline__ void FenceOperands() { FenceBeforeCopies(); }
// Closes a group of the products issued since the last one.
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending groups are unfinished.
template <int kPending>
__device__ __forceinline__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Descriptor of an operand in shared memory, of rows of 128 bytes in which 16-byte part c of row r
// lies at c ^ (r % 8), from its lower half: the place (address / 16) of its first byte, and from
// bit 16 on the places from 64 columns to the next 64, where rows are k.
__device__ __forceinline__ uint64_t OperandAt(uint32_t low) {
  constexpr uint32_t kSwizzle128 = 1u << 30;
  constexpr uint32_t kEightRows = 1024 / 16;
  return uint64_t{kSwizzle128 | kEightRows} << 32 | low;
}

// The first registers of an instruction by their names in it, for its sums.
#define QT_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define QT_NAMES_32 \
  QT_NAMES_16       \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define QT_NAMES_64                                                                   \
  QT_NAMES_32                                                                         \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
  "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define QT_NAMES_128                                                                     \
  QT_NAMES_64                                                                            \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,"    \
  "%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103," \
  "%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,"     \
  "%120,%121,%122,%123,%124,%125,%126,%127"
// FP32 sums of a product, from the i-th on, as operands of its instruction.
#define QT_SUMS_8(d, i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define QT_SUMS_32(d, i) \
  QT_SUMS_8(d, i), QT_SUMS_8(d, i + 8), QT_SUMS_8(d, i + 16), QT_SUMS_8(d, i + 24)
#define QT_SUMS_64(d, i) QT_SUMS_32(d, i), QT_SUMS_32(d, i + 32)
#define QT_SUMS_128(d, i) QT_SUMS_64(d, i), QT_SUMS_64(d, i + 64)

// d (64 x 256) = a (64 x 16) b (16 x 256) + d, by descriptors of operands in shared memory; b's
// rows are k, and a's with kTransposed.
template <int kTransposed>
__device__ __forceinline__ void Product256Shared(float* d, uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" QT_NAMES_128
               "}, %128, %129, 1, 1, 1, %130, 1;\n"
               : QT_SUMS_128(d, 0)
               : "l"(a), "l"(b), "n"(kTransposed));
}

}  // namespace quatrain::cuda
