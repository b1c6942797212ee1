// What the decode kernels of attention share: 16 rows (query, head) of one kv head against a
// segment of 512 keys, the merge of segments, and where their scratch lies.
#pragma once

#include "kernels/cuda/attention_tile.cuh"

namespace quatrain::cuda {

inline constexpr int kDecodeRows = 16;
inline constexpr int kFewRows = 8;  // for which there are kernels of their own
inline int RowTiles(const DeviceAttentionArgs& a) {
  return (a.max_queries * (a.num_heads / a.num_kv_heads) + kDecodeRows - 1) / kDecodeRows;
}
inline bool HasFewRows(const DeviceAttentionArgs& a) {
  return a.max_queries * (a.num_heads / a.num_kv_heads) <= kFewRows;
}
inline int Segments(const DeviceAttentionArgs& a) {
  return (a.max_keys + kAttentionSegment - 1) / kAttentionSegment;
}
inline int64_t RowTilesOfAll(const DeviceAttentionArgs& a) {
  return int64_t{a.num_sequences} * a.num_kv_heads * RowTiles(a);
}

// Scratch: messages, tickets, then partial sums. The first two are zero between calls, and where
// they lie depends on nothing that changes from call to call, so that one scratch serves calls of
// any kernel: as long as these have at most kLeastTickets row tiles, or as many as the largest.
struct DecodeScratch {
  uint4* messages;    // attention_decode_messages.cu
  unsigned* tickets;  // how many CTAs have begun (there), or have left their sums
  float* partials;
};
inline constexpr int64_t kLeastTickets = 16384;
int64_t MessageBytes();  // whatever the call; a multiple of 256

// The kernel for few sequences of few segments (attention_decode_cluster.cu).
bool IsDecodedInClusters(const DeviceAttentionArgs& args);
void AttentionDecodeInClusters(const DeviceAttentionArgs& args, cudaStream_t stream,
                               LaunchOrder order);

// The kernel for more segments of few sequences (attention_decode_messages.cu).
bool IsDecodedByMessages(const DeviceAttentionArgs& args);
void AttentionDecodeByMessages(const DeviceAttentionArgs& args, const DecodeScratch& scratch,
                               cudaStream_t stream, LaunchOrder order);

// By eight threads in a row, a tile each, with the maximum of it: what it multiplies and subtracts,
// and the maximum so far.
struct RunningShift {
  SoftmaxShift of_tile;
  float max;
};
__device__ __forceinline__ RunningShift RunningShiftOf(float largest, float c) {
  const int tile = threadIdx.x % kTilesPerSegment;
#pragma unroll
  for (int offset = 1; offset < kTilesPerSegment; offset *= 2) {
    const float before = __shfl_up_sync(0xFFFFFFFFu, largest, offset, kTilesPerSegment);
    if (tile >= offset) largest = fmaxf(largest, before);
  }
  float before = __shfl_up_sync(0xFFFFFFFFu, largest, 1, kTilesPerSegment);
  if (tile == 0) before = -INFINITY;
  return {ShiftOf(before, largest, c), largest};
}

template <int kHeadDim>
__device__ __forceinline__ void StoreRow(const DeviceAttentionArgs& a, int64_t place, int column,
                                         float low, float high) {
  *reinterpret_cast<uint32_t*>(a.out + place * kHeadDim + column) = RoundPair(low, high);
}

__device__ __forceinline__ void SetFour(float* to, const float4& from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = from.w;
}

// The running maximum and sum of a row, and the thread's share of its outputs.
template <int kColumns>
struct MergedRow {
  float max = -INFINITY;
  float sum = 0.0f;
  float outputs[kColumns];

  __device__ __forceinline__ void Add(float segment_max, float segment_sum,
                                      const float (&o)[kColumns], float c) {
    if (segment_max == -INFINITY) return;
    const bool is_first = max == -INFINITY;
    SegmentFactors f = {0.0f, 1.0f};
    if (is_first) {
      max = segment_max;
      sum = segment_sum;
    } else {
      f = MergeSegment(segment_max, segment_sum, c, &max, &sum);
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      outputs[i] = is_first ? o[i] : MergeOutput(outputs[i], o[i], f);
    }
  }
};

// A thread's share of a merged row, from `column` on; the row's log-sum-exp from column 0.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void StoreMerged(const DeviceAttentionArgs& a, int64_t place, int column,
                                            const MergedRow<kColumns>& merged) {
  const float share = ReciprocalRn(merged.sum);
#pragma unroll
  for (int i = 0; i < kColumns; i += 2) {
    StoreRow<kHeadDim>(a, place, column + i, MulRn(merged.outputs[i], share),
                       MulRn(merged.outputs[i + 1], share));
  }
  if (a.lse != nullptr && column == 0) a.lse[place] = LogSumExp(merged.max, merged.sum, a.scale);
}

}  // namespace quatrain::cuda
