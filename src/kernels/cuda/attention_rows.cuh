// What the prefill kernels share: products of a warpgroup's 64 rows, the softmax of a tile of 64
// keys in the accumulators' layout, and the merge of segments (docs/numerics.md, "GPU order", rules
// 5 and 6).
//
// A thread holds rows g and g + 8 of its warp's 16 (g = lane / 4); register i of scores or outputs
// is column i / 4 * 8 + lane % 4 * 2 + i % 2 of row g + i / 2 % 2 * 8.
#pragma once

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace quatrain::cuda {

inline constexpr int kQueryRows = 64;  // of a warpgroup

// Descriptors of operands (OperandAt): their lower half for an address of shared memory, to which
// distances are added in places of 16 bytes. Panels of 64 columns, if the product is wider and its
// rows are k, lie kPanelBytes apart.
inline constexpr uint32_t kStepPlaces = 2;  // a k16 step along rows
inline constexpr uint32_t kPanelPlaces = kPanelBytes / 16;
inline constexpr uint32_t kRowsStepPlaces = 16 * 8;  // a k16 step of rows
template <bool kIsWide = false>
__device__ __forceinline__ uint32_t OperandLow(uint32_t address) {
  constexpr uint32_t kPanel = (kIsWide ? kPanelBytes : 1024) / 16;
  return ((address & 0x3FFFFu) >> 4) | kPanel << 16;
}

// d (64 x 64) = a (64 x 16) b (16 x 64) + d, or without d if !accumulate. kTransposed: b's rows are
// k.
template <int kTransposed>
__device__ __forceinline__ void Product64(float* d, const uint32_t* a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" QT_NAMES_32
      "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}\n"
      : QT_SUMS_32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransposed));
}

// d (64 x 128) = a (64 x 16) b (16 x 128) + d; b's rows are k, in two panels.
__device__ __forceinline__ void Product128(float* d, const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" QT_NAMES_64
               "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;\n"
               : QT_SUMS_64(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The same, not transposed, with a in shared memory.
__device__ __forceinline__ void Product64Shared(float* d, uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" QT_NAMES_32
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : QT_SUMS_32(d, 0)
      : "l"(a), "l"(b), "r"(accumulate));
}

// d (64 x 256) = a (64 x 16) b (16 x 256) + d; b's rows are k, in four panels.
__device__ __forceinline__ void Product256(float* d, const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" QT_NAMES_128
               "}, {%128,%129,%130,%131}, %132, 1, 1, 1, 1;\n"
               : QT_SUMS_128(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Keeps what the compiler does with accumulators out of the pipeline of products.
template <int kCount>
__device__ __forceinline__ void FenceSums(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// What a thread keeps of the segment and of the whole, for its two rows.
struct SegmentState {
  float max[2] = {-INFINITY, -INFINITY};
  float partial[2][2] = {};  // residues 2t and 2t + 1
};
struct RowTotals {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
};

// Scores of a tile -> probabilities in place; alpha of both rows. visible: keys that each row may
// see.
__device__ __forceinline__ void SoftmaxTile(float (&s)[32], SegmentState& row,
                                            const int (&visible)[2], int first_key, float c,
                                            float (&alpha)[2]) {
  const int t = threadIdx.x % 4;
  if (first_key + kAttentionBlock > min(visible[0], visible[1])) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int key = first_key + i / 4 * 8 + 2 * t + i % 2;
      if (key >= visible[i / 2 % 2]) s[i] = -INFINITY;
    }
  }
  SoftmaxShift shift[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    // Of four neighbours each, then of all: short chains.
    float largest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      largest[i] = fmaxf(fmaxf(s[8 * i + 2 * r], s[8 * i + 2 * r + 1]),
                         fmaxf(s[8 * i + 4 + 2 * r], s[8 * i + 5 + 2 * r]));
    }
    float all = fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]));
    all = fmaxf(row.max[r], all);
    all = fmaxf(all, __shfl_xor_sync(0xFFFFFFFFu, all, 1));
    all = fmaxf(all, __shfl_xor_sync(0xFFFFFFFFu, all, 2));
    shift[r] = ShiftOf(row.max[r], all, c);
    row.max[r] = all;
    alpha[r] = shift[r].alpha;
    row.partial[r][0] = MulRn(row.partial[r][0], shift[r].alpha);
    row.partial[r][1] = MulRn(row.partial[r][1], shift[r].alpha);
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = i / 2 % 2;
    s[i] = ProbabilityOf(s[i], c, shift[r].shift);
    row.partial[r][i % 2] = AddRn(row.partial[r][i % 2], s[i]);
  }
}

// Probabilities as the A operand of four k16 steps.
__device__ __forceinline__ void RoundTile(const float (&s)[32], uint32_t (&p)[16]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) p[i] = RoundPair(s[2 * i], s[2 * i + 1]);
}

// What a thread adds up of its rows' outputs, in shared memory: registers 4 i .. 4 i + 3 as one
// 16-byte word, the words of the CTA's threads side by side.
template <int kThreads, int kOutputs>
struct OutputTotals {
  float4* mine;  // the thread's first word

  __device__ OutputTotals(void* shared, int thread) : mine(static_cast<float4*>(shared) + thread) {
#pragma unroll
    for (int i = 0; i < kOutputs / 4; ++i) mine[i * kThreads] = make_float4(0, 0, 0, 0);
  }
  __device__ __forceinline__ float4& Word(int i) const { return mine[i * kThreads]; }
};

// A segment's maximum and sum into those of row r; the factors of the outputs. A first segment is
// taken as it is: what was there counts 0 times. One without a visible key has only zeros and
// counts 0 times.
__device__ __forceinline__ SegmentFactors AddSegment(float segment_max, float segment_sum, float c,
                                                     RowTotals& totals, int r) {
  if (segment_max == -INFINITY) return {1.0f, 0.0f};
  if (totals.max[r] == -INFINITY) {
    totals.max[r] = segment_max;
    totals.sum[r] = segment_sum;
    return {0.0f, 1.0f};
  }
  return MergeSegment(segment_max, segment_sum, c, &totals.max[r], &totals.sum[r]);
}

// End of a segment: the maximum and sum of row r into the totals.
__device__ __forceinline__ SegmentFactors MergeRow(const SegmentState& row, int r, float c,
                                                   RowTotals& totals) {
  float sum = AddRn(row.partial[r][0], row.partial[r][1]);
  sum = AddRn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 1));
  sum = AddRn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 2));
  return AddSegment(row.max[r], sum, c, totals, r);
}

// The outputs too; leaves them zero.
template <int kThreads, int kOutputs>
__device__ __forceinline__ void MergeRows(float (&o)[kOutputs], const SegmentState& row, float c,
                                          RowTotals& totals,
                                          const OutputTotals<kThreads, kOutputs>& outputs) {
  const SegmentFactors low = MergeRow(row, 0, c, totals);
  const SegmentFactors high = MergeRow(row, 1, c, totals);
#pragma unroll
  for (int i = 0; i < kOutputs / 4; ++i) {
    float4 word = outputs.Word(i);
    word.x = MergeOutput(word.x, o[4 * i], low);
    word.y = MergeOutput(word.y, o[4 * i + 1], low);
    word.z = MergeOutput(word.z, o[4 * i + 2], high);
    word.w = MergeOutput(word.w, o[4 * i + 3], high);
    outputs.Word(i) = word;
#pragma unroll
    for (int j = 0; j < 4; ++j) o[4 * i + j] = 0.0f;
  }
}

// The thread's two rows, `query` and query + 8, and how many keys each may see.
template <int kHeadDim>
__device__ __forceinline__ void LoadQueries(const DeviceAttentionArgs& a,
                                            const AttentionSequence& seq, int query, int head,
                                            uint32_t (&q)[kHeadDim / 16][4], int (&visible)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int mine = query + 8 * r;
    const bool is_there = mine < static_cast<int>(seq.num_queries);
    visible[r] = is_there ? static_cast<int>(seq.num_keys - seq.num_queries) + mine + 1 : 0;
    LoadQueryRow<kHeadDim>(a.q + (seq.q_begin + (is_there ? mine : 0)) * a.q_stride +
                               static_cast<int64_t>(head) * kHeadDim + threadIdx.x % 4 * 2,
                           r, q);
  }
}

// out and log-sum-exp of the thread's two rows.
template <int kHeadDim, int kThreads>
__device__ __forceinline__ void WriteRows(const DeviceAttentionArgs& a,
                                          const AttentionSequence& seq, int query, int head,
                                          const RowTotals& totals,
                                          const OutputTotals<kThreads, kHeadDim / 2>& outputs) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (query + 8 * r >= static_cast<int>(seq.num_queries)) continue;
    const float share = ReciprocalRn(totals.sum[r]);
    const int64_t place = (seq.q_begin + query + 8 * r) * a.num_heads + head;
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const float4 word = outputs.Word(i);
      *reinterpret_cast<uint32_t*>(a.out + place * kHeadDim + 8 * i + lane % 4 * 2) =
          RoundPair(MulRn(r == 0 ? word.x : word.z, share), MulRn(r == 0 ? word.y : word.w, share));
    }
    if (a.lse != nullptr && lane % 4 == 0) {
      a.lse[place] = LogSumExp(totals.max[r], totals.sum[r], a.scale);
    }
  }
}

}  // namespace quatrain::cuda
