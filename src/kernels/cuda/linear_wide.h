// y = x W^T (+ bias) (+ residual) over INT4 weights for more tokens than a decode step: the
// contract and the bits of LinearDecode (linear_decode.h), with wgmma. docs/numerics.md, "GPU
// order", rules 1 to 3.
#pragma once

#include "kernels/cuda/linear_decode.h"

namespace quatrain::cuda {

// How a launch cuts the work; any plan gives the same bits.
struct WidePlan {
  int tokens = 64;         // of a CTA: 32, 64 or 128
  int num_warpgroups = 1;  // of a CTA, 64 rows each: 1 to 3
  int cluster = 1;         // CTAs that share what they read of x: 1, 2 or 4
  bool is_expert = false;  // by the kernel for many rows of experts (moe.h)
};
WidePlan PlanLinearWide(const LinearDecodeArgs& args, int num_multiprocessors);

// Whether LinearWide takes such a weight: INT4 whose K is one chain.
bool IsWide(const LinearDecodeArgs& args);
// Whether it also serves that many tokens faster than the kernel for few.
bool IsFasterWide(const LinearDecodeArgs& args);

// Any number of tokens. The arguments have passed LinearDecode's checks.
void LinearWide(const LinearDecodeArgs& args, const WidePlan& plan, cudaStream_t stream,
                LaunchOrder order);

}  // namespace quatrain::cuda
