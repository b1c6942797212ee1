// Mixture of experts on the device: router with top-k, the work list, the experts of a decode step
// and the combine. docs/numerics.md, "GPU order", rules 1, 3 and 7.
//
// Nothing here needs a count on the host: a CUDA graph captured once serves any routing of the same
// number of tokens. No sum is made with atomics. Letters: T tokens, E experts, S slots (experts per
// token), R = T * S routed rows, sorted by expert, then token, then slot; D hidden, I inner size.
// All pointers are device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/moe.h"

namespace quatrain::cuda {

// At most this many rows of one expert, which one pass over its weights serves.
inline constexpr int kMoeTileRows = 16;

// Written as a whole and read as a whole, so a kernel that runs beside the router may read it as
// soon as it is there.
struct alignas(16) MoeTile {
  int32_t expert;
  int32_t row_begin;  // of R
  int32_t num_rows;   // 1 .. kMoeTileRows
  int32_t is_there;   // 0 from the router's start until the tile is known
};

// Tiles that R rows can make at most.
QT_HOST_DEVICE int64_t MaxMoeTiles(int64_t num_rows, int64_t num_experts) {
  const int64_t with_one = num_rows < num_experts ? num_rows : num_experts;
  return with_one + num_rows / kMoeTileRows;
}

// What the router leaves: the choice, and where its rows go.
struct MoeRouting {
  int32_t* ids = nullptr;           // [T, S], largest logit first, or the replayed order
  float* weights = nullptr;         // [T, S]
  int32_t* expert_begin = nullptr;  // [E + 1]
  int32_t* row_token = nullptr;     // [R]
  int32_t* slot_row = nullptr;      // [T, S]
  MoeTile* tiles = nullptr;      // [MaxMoeTiles(R, E)], by expert, then row; one a row with T = 1
  int32_t* num_tiles = nullptr;  // [1], 0 until it is known
};

struct MoeRouterArgs {
  RouterConfig config = {};             // at most 1024 experts, 32 slots
  const BFloat16* x = nullptr;          // [T, D], D a multiple of 8
  const BFloat16* weight_ED = nullptr;  // row-major
  int64_t num_tokens = 0;
  int64_t hidden = 0;
  const int32_t* replayed_ids = nullptr;  // [T, S] or null: take these and compute weights only;
                                          // one that repeats is served once a slot
  float* logits_TE = nullptr;             // FP32, finite
  MoeRouting routing = {};
  int32_t* counters = nullptr;  // [RouterCounters(T)], 8-byte aligned; zero before the first call
                                // and after each
};
int64_t RouterCounters(int64_t num_tokens);

// Logits by the chain, top-k by (logit descending, index ascending), weights, rows by expert and
// tiles, in one launch. weights: norm_topk_prob: softmax over the chosen; otherwise over all.
void MoeRouter(const MoeRouterArgs& args, cudaStream_t stream, LaunchOrder order);

// How a launch cuts the work; any plan gives the same bits.
struct MoePlan {
  int num_groups = 0;  // pairs of units a CTA holds at once, 1 to 8; 0: chosen by the shape
  int ctas_per_multiprocessor = 1;  // 1 or 2
};

// One projection of all experts, codes in kernel layout: shape.out_features rows for each expert,
// one expert after the other.
struct MoeExpertsArgs {
  PackedShape shape = {};  // of one expert
  const void* weight = nullptr;
  int64_t num_experts = 0;
  int64_t num_tokens = 0;
  int64_t num_slots = 0;
  MoeRouting routing = {};
  const BFloat16* x = nullptr;
  BFloat16* y = nullptr;
  MoePlan plan = {};
};
// h_RI = round(silu(gate) * up), gate and up = rounded sums over x_TD[row_token]. Rows of a weight:
// I of gate, then I of up; I a multiple of 8. With kOverlap weights are on their way as soon as the
// router, which may still be running, has written the list; activations after griddepcontrol.wait,
// but a single token's at once: with kOverlap they must have been written before the router's
// launch, and no kernel from the router on may write them (a router lets the next kernel start when
// those before it have ended).
void MoeGateUp(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order);
// y_RD = rounded sums over x_RI; D a multiple of 16. Likewise, but x always after the wait.
void MoeDown(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order);

// The same for many rows an expert (prefill, training), by wgmma: x is [R, K], rows in their sorted
// order already (for gate_up gathered by row_token); of the routing only expert_begin is read, and
// nothing with one expert and null. Same bits as above.
void MoeGateUpOfRows(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order);
void MoeDownOfRows(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order);

// out_TD = round(chain over slots ascending of weight * y); with residual round(residual + that).
struct MoeCombineArgs {
  const BFloat16* y = nullptr;  // [R, D], D a multiple of 8
  MoeRouting routing = {};
  int64_t num_tokens = 0, num_slots = 0, hidden = 0;
  const BFloat16* residual = nullptr;  // [T, D] or null
  BFloat16* out = nullptr;             // [T, D]
};
void MoeCombine(const MoeCombineArgs& args, cudaStream_t stream, LaunchOrder order);

// MoeDown, then MoeCombine of its y (combine.y is args.y, of the same sizes); a single token's in
// one kernel where it fits.
void MoeDownAndCombine(const MoeExpertsArgs& args, const MoeCombineArgs& combine,
                       cudaStream_t stream, LaunchOrder order);

}  // namespace quatrain::cuda
