// y = x W^T (+ bias) (+ residual) over BF16 weights by wgmma with few rows of the matrix a CTA: the
// contract and the bits of LinearDecode (linear_decode.h). docs/numerics.md, "GPU order", rules 1
// to 3.
#pragma once

#include "kernels/cuda/linear_decode.h"

namespace quatrain::cuda {

// Rows of the matrix that a tile may have.
inline constexpr int kPlainRows[] = {16, 24, 32, 40, 48, 64, 80, 96, 128};

// Fewest rows of a tile that two CTAs share.
inline constexpr int kFewestRowsShared = 32;

// How a launch cuts the work; any plan gives the same bits.
struct PlainPlan {
  int rows = 64;           // of a tile, of kPlainRows
  int num_warpgroups = 1;  // of a CTA, 64 tokens each: 1 or 2
  int boxes = 0;           // of 64 columns in a copy: 1, 2 or, up to 64 rows, 4; 0: by the room
  int ctas = 0;            // 0: as many as multiprocessors
  int sharing = 1;         // CTAs that share weights, each its own tokens: 1 or 2 (see above)
};
PlainPlan PlanLinearPlain(const LinearDecodeArgs& args, int num_multiprocessors);

// Whether LinearPlain takes such a weight: BF16 whose K is one chain.
bool IsPlain(const LinearDecodeArgs& args);
// Whether it also serves that many tokens faster than the kernel for few.
bool IsFasterPlain(const LinearDecodeArgs& args, int num_multiprocessors);

// Any number of tokens. The arguments have passed LinearDecode's checks.
void LinearPlain(const LinearDecodeArgs& args, const PlainPlan& plan, cudaStream_t stream,
                 LaunchOrder order);

}  // namespace quatrain::cuda
