// What both routers (moe_router.cu, moe_router_token.cu) do with logits: choose a token's experts,
// weigh them, write tiles.
#pragma once

#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/moe.h"

namespace quatrain::cuda {

inline constexpr int kMaxRouterExperts = 1024;
inline constexpr int kMaxRouterSlots = 32;

struct RouterParameters {
  int num_experts;
  int num_slots;
  int norm_topk_prob;
  int num_tokens;
  const int32_t* replayed_ids;
  float* logits;
  MoeRouting routing;
  int32_t* counters;   // [0] tiles that are done, [1 + t] CTAs of tile t
  uint64_t* messages;  // [E] of a single token, in place of counters; otherwise null
};

// A float as an integer of the same order.
__device__ __forceinline__ uint32_t OrderedBits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ void WriteTile(MoeTile* place, const MoeTile& tile) {
  const uint64_t low = static_cast<uint32_t>(tile.expert) | static_cast<uint64_t>(tile.row_begin)
                                                                << 32;
  const uint64_t high = static_cast<uint32_t>(tile.num_rows) | static_cast<uint64_t>(tile.is_there)
                                                                   << 32;
  asm volatile(
      "{\n"
      ".reg .b128 whole;\n"
      "mov.b128 whole, {%1, %2};\n"
      "st.relaxed.gpu.global.b128 [%0], whole;\n"
      "}\n" ::"l"(place),
      "l"(low), "l"(high)
      : "memory");
}

__device__ __forceinline__ void WriteNumTiles(const RouterParameters& p, int count) {
  asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(p.routing.num_tiles), "r"(count)
               : "memory");
}

// One warp: where the rows of experts lane, lane + 32, ... begin.
template <int kPerLane>
__device__ __forceinline__ void WriteExpertBegins(const RouterParameters& p,
                                                  const int (&begin)[kPerLane], int lane) {
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (32 * j + lane < p.num_experts) p.routing.expert_begin[32 * j + lane] = begin[j];
  }
}

// What lane l of a warp has of a row of logits: experts l * P .. l * P + P - 1.
template <int kPerLane>
struct LaneLogits {
  float value[kPerLane];  // -Inf where there is none
};

// One warp: lane k returns slot k, the k-th largest logit or the replayed one; ties go to the lower
// index.
template <int kPerLane>
__device__ __forceinline__ int ChooseExperts(const RouterParameters& p, int64_t token,
                                             const LaneLogits<kPerLane>& logits, int lane) {
  int my_id = 0;
  if (p.replayed_ids != nullptr) {
    if (lane < p.num_slots) my_id = p.replayed_ids[token * p.num_slots + lane];
    return my_id;
  }
  uint32_t key[kPerLane];  // 0: absent or taken
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const bool is_there = lane * kPerLane + i < p.num_experts;
    key[i] = is_there ? OrderedBits(AddRn(logits.value[i], 0.0f)) : 0u;  // -0 is 0
  }
  for (int slot = 0; slot < p.num_slots; ++slot) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) largest = max(largest, key[i]);
    const uint32_t best = __reduce_max_sync(0xFFFFFFFFu, largest);
    const int owner = __ffs(__ballot_sync(0xFFFFFFFFu, largest == best)) - 1;
    int at = kPerLane;
#pragma unroll
    for (int i = kPerLane - 1; i >= 0; --i) at = key[i] == best ? i : at;
    at = __shfl_sync(0xFFFFFFFFu, at, owner);
    if (lane == slot) my_id = owner * kPerLane + at;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane == owner && i == at) key[i] = 0;
    }
  }
  return my_id;
}

// The same warp: writes ids and weights. `z` is the logit of this lane's choice.
template <int kPerLane>
__device__ __forceinline__ void WeighExperts(const RouterParameters& p, int64_t token,
                                             const LaneLogits<kPerLane>& logits, int my_id, float z,
                                             int lane) {
  if (lane >= p.num_slots) z = -INFINITY;
  float largest = z;
  if (p.norm_topk_prob == 0) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) largest = fmaxf(largest, logits.value[i]);
  }
#pragma unroll
  for (int width = 16; width >= 1; width /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, width));
  }
  const float e = lane < p.num_slots ? RouterExp(z, largest) : 0.0f;
  float sum = 0.0f;
  if (p.norm_topk_prob != 0) {
    for (int slot = 0; slot < p.num_slots; ++slot) {
      sum = AddRn(sum, __shfl_sync(0xFFFFFFFFu, e, slot));
    }
  } else {
    // Neighbour pairs over all experts, absent ones are zero.
    float part[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      part[i] = lane * kPerLane + i < p.num_experts ? RouterExp(logits.value[i], largest) : 0.0f;
    }
    sum = NeighbourTree(part);
#pragma unroll
    for (int width = 1; width <= 16; width *= 2) {
      sum = AddRn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, width));
    }
  }
  if (lane < p.num_slots) {
    p.routing.ids[token * p.num_slots + lane] = my_id;
    p.routing.weights[token * p.num_slots + lane] = DivRn(e, sum);
  }
}

}  // namespace quatrain::cuda
