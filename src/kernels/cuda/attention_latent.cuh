// What the kernel of attention over a latent (attention_latent.cu) adds to attention_rows.cuh: its
// rows and the merge of segments that other CTAs left.
#pragma once

#include "kernels/cuda/attention_latent.h"
#include "kernels/cuda/attention_rows.cuh"

namespace quatrain::cuda {

// ---- rows ----

inline constexpr int kLatentRows = 64;  // of a tile

// What a CTA works on: 64 rows (query * num_heads + head) of a sequence, some of its blocks.
struct LatentWork {
  AttentionSequence seq;
  int first_row, num_rows;  // rows of the sequence in all
  int first_block, num_blocks;
  int num_segments;  // of the row tile in all
};

// All blocks of a row tile; without rows num_segments is 0.
__device__ __forceinline__ LatentWork WorkOfTile(const DeviceLatentAttentionArgs& a, int sequence,
                                                 int tile) {
  LatentWork work = {};
  work.seq = a.sequences[sequence];
  const int num_queries = static_cast<int>(work.seq.num_queries);
  work.first_row = tile * kLatentRows;
  work.num_rows = num_queries * a.num_heads;
  if (work.first_row >= work.num_rows) return work;
  const int last_query = (min(work.first_row + kLatentRows, work.num_rows) - 1) / a.num_heads;
  const int num_keys = static_cast<int>(work.seq.num_keys) - num_queries + last_query + 1;
  work.num_blocks = (num_keys + kAttentionBlock - 1) / kAttentionBlock;
  work.num_segments = (work.num_blocks + kTilesPerSegment - 1) / kTilesPerSegment;
  return work;
}

// Outputs of two neighbouring columns of a row.
__device__ __forceinline__ void StoreLatent(const DeviceLatentAttentionArgs& a,
                                            const LatentWork& work, int row, int column, float low,
                                            float high) {
  const int64_t place = work.seq.q_begin * a.num_heads + row;
  *reinterpret_cast<uint32_t*>(a.out + place * kLatentDim + column) = RoundPair(low, high);
}

__device__ __forceinline__ float4 MergeWord(const float4& old, const float4& o,
                                            const SegmentFactors (&f)[2]) {
  return make_float4(MergeOutput(old.x, o.x, f[0]), MergeOutput(old.y, o.y, f[0]),
                     MergeOutput(old.z, o.z, f[1]), MergeOutput(old.w, o.w, f[1]));
}

// ---- scratch ----

// Slots first, then the sums: of CTAs that walk, a total each; of CTAs that share a row tile,
// for each (row tile, segment, 16 rows), [2 halves][32 words][32 lanes] float4 in the accumulators'
// layout, 16 maxima, 16 sums.
struct LatentScratch {
  unsigned* slots;  // one a multiprocessor: whether the total there is in use
  float* sums;
  int num_slots;
  int max_segments, row_warps;  // of a row tile
};
inline constexpr int kLatentWords = 32;  // float4 of outputs a thread
inline constexpr int kLatentHalf = kLatentWords * 32 * 4;
inline constexpr int kLatentPartial = 2 * kLatentHalf + 32;

__device__ __forceinline__ float* LatentPartial(const LatentScratch& scratch, int64_t tile,
                                                int segment, int warp) {
  return scratch.sums +
         ((tile * scratch.max_segments + segment) * scratch.row_warps + warp) * kLatentPartial;
}

// The second kernel where CTAs share a row tile (attention_latent_merge.cu); tiles: of a
// sequence.
void MergeLatentSegments(const DeviceLatentAttentionArgs& args, int64_t tiles,
                         const LatentScratch& scratch, cudaStream_t stream);

}  // namespace quatrain::cuda
