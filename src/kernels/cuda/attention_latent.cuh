// What the kernel of attention over a latent (attention_latent.cu) adds to attention_rows.cuh: two
// more products of a warpgroup, barriers of some of a CTA's threads, and the merge of segments that
// other CTAs left.
#pragma once

#include "kernels/cuda/attention_latent.h"
#include "kernels/cuda/attention_rows.cuh"

namespace quatrain::cuda {

// ---- products; operands in shared memory are rows of 128 bytes, swizzled ----

// d (64 x 64) = a (64 x 16) b (16 x 64) + d, or without d if !accumulate.
__device__ __forceinline__ void Product64Shared(float* d, uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : QT_EIGHT(d, 0), QT_EIGHT(d, 8), QT_EIGHT(d, 16), QT_EIGHT(d, 24)
      : "l"(a), "l"(b), "r"(accumulate));
}

// d (64 x 256) = a (64 x 16) b (16 x 256) + d; b's rows are k, in four panels.
__device__ __forceinline__ void Product256(float* d, const uint32_t* a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,"
      "%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,"
      "%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,"
      "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,"
      "%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,"
      "%121,%122,%123,%124,%125,%126,%127}, {%128,%129,%130,%131}, %132, 1, 1, 1, 1;\n"
      : QT_EIGHT(d, 0), QT_EIGHT(d, 8), QT_EIGHT(d, 16), QT_EIGHT(d, 24), QT_EIGHT(d, 32),
        QT_EIGHT(d, 40), QT_EIGHT(d, 48), QT_EIGHT(d, 56), QT_EIGHT(d, 64), QT_EIGHT(d, 72),
        QT_EIGHT(d, 80), QT_EIGHT(d, 88), QT_EIGHT(d, 96), QT_EIGHT(d, 104), QT_EIGHT(d, 112),
        QT_EIGHT(d, 120)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Waits for `threads` threads of the CTA at barrier `index` (0 is __syncthreads').
template <int kIndex, int kCount>
__device__ __forceinline__ void WaitForThreads() {
  asm volatile("bar.sync %0, %1;" ::"n"(kIndex), "n"(kCount) : "memory");
}

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
  constexpr int kTilesPerSegment = kAttentionSegment / kAttentionBlock;
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
