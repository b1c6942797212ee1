// How kernels that may run beside the router take its work list: entry by entry, each as a whole.
#pragma once

#include "kernels/cuda/moe.h"

namespace quatrain::cuda {

// A tile, once it is there: {expert, row_begin, num_rows, 1}.
__device__ __forceinline__ int4 WaitForTile(const MoeTile* tile) {
  uint64_t low = 0;
  uint64_t high = 0;
  while (high >> 32 == 0) {
    asm volatile(
        "{\n"
        ".reg .b128 whole;\n"
        "ld.relaxed.gpu.global.b128 whole, [%2];\n"
        "mov.b128 {%0, %1}, whole;\n"
        "}\n"
        : "=l"(low), "=l"(high)
        : "l"(tile)
        : "memory");
  }
  return make_int4(static_cast<int>(low), static_cast<int>(low >> 32), static_cast<int>(high), 1);
}

}  // namespace quatrain::cuda
