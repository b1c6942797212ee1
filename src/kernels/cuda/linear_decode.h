// y = x W^T (+ bias) (+ residual) for few tokens: the rollout's linear. Weights are read once, at
// the speed of memory; docs/numerics.md, "GPU order", rules 1 to 3.
//
// Every output is the canonical sum: one chain of k16 tensor-core steps per segment, segments added
// in order. The bits depend on (N, K) alone, not on the number of tokens, the plan or the device's
// size.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/linear.h"

namespace quatrain::cuda {

// What becomes of the sums of a row of x.
enum class LinearEpilogue {
  kSums,    // y [tokens, N], with bias and residual where they are given
  kSwiGlu,  // N rows are gate and up; y [tokens, N / 2] = SwiGLU of the rounded sums: the bits of
            // kSums and the kernel SwiGlu (elementwise.h). Codes, N a multiple of 16, y alone.
};

// Device memory throughout. K is a multiple of 8; x, its stride in bytes, and BF16 weights are
// 16-byte aligned.
struct LinearDecodeArgs {
  WeightType type = WeightType::kBFloat16;  // kInt4 and kInt8: kernel layout; kBFloat16: [N, K]
  PackedShape shape = {};                   // num_bits and group_size: codes only
  const void* weight = nullptr;
  const BFloat16* x = nullptr;  // [tokens, K], rows x_stride elements apart (0: K)
  int64_t x_stride = 0;
  int64_t num_tokens = 0;
  const BFloat16* bias = nullptr;      // [N] or null: added in FP32 before the rounding
  const BFloat16* residual = nullptr;  // [tokens, N] or null: y = round(residual + round(sum))
  BFloat16* y = nullptr;               // [tokens, N]; exactly one of y and y_float
  float* y_float = nullptr;            // [tokens, N], not rounded (logits)
  LinearEpilogue epilogue = LinearEpilogue::kSums;

  // Columns of y.
  int64_t NumOutputs() const {
    return epilogue == LinearEpilogue::kSwiGlu ? shape.out_features / 2 : shape.out_features;
  }
};

// Segments of K that the canonical order demands for a fused, unsharded [N, K] matrix: 1, 2 or 4.
int NumSegments(int64_t out_features, int64_t in_features);
// Inputs of each segment but the last: a multiple of 128.
int64_t SegmentInputs(int64_t out_features, int64_t in_features);

// How a launch cuts the work; any plan gives the same bits. Groups are dealt to the CTAs evenly.
struct DecodePlan {
  int row_units = 1;   // units of 8 rows a warp holds at once: 1 or 2 (BF16: 1)
  int num_groups = 1;  // row groups a CTA holds at once; times segments: warps, at most 8
  int num_ctas = 1;
  int shared_budget = 0;  // bytes of shared memory a CTA may take
  int stage_chunks = 0;   // chunks of K128 a copy brings; 0: by the room there is
};
DecodePlan PlanLinearDecode(const LinearDecodeArgs& args, int num_multiprocessors);

// Goes to LinearPlain or LinearWide where that is faster (linear_plain.h, linear_wide.h).
// Error(kShape) for shapes outside the contract.
void LinearDecode(const LinearDecodeArgs& args, cudaStream_t stream, LaunchOrder order);
// By this plan; tokens beyond 64 go in several launches.
void LinearDecode(const LinearDecodeArgs& args, const DecodePlan& plan, cudaStream_t stream,
                  LaunchOrder order);

}  // namespace quatrain::cuda
