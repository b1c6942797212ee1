// What the decode kernels of attention share: 16 rows (query, head) of one kv head against a
// segment of 512 keys, and the merge of segments by the last CTA.
#pragma once

#include "kernels/cuda/attention_tile.cuh"

namespace quatrain::cuda {

inline constexpr int kDecodeThreads = 128;
inline constexpr int kDecodeRows = 16;
inline constexpr int kTilesPerSegment = kAttentionSegment / kAttentionBlock;
inline constexpr int kScoreStride = kAttentionSegment + 8;  // floats; rows start 8 banks apart
// Most CTAs that share a segment whose parts meet in memory; each has tickets and partial sums of
// its own.
inline constexpr int kDecodeParts = 4;

inline int RowTiles(const DeviceAttentionArgs& a) {
  return (a.max_queries * (a.num_heads / a.num_kv_heads) + kDecodeRows - 1) / kDecodeRows;
}
inline int Segments(const DeviceAttentionArgs& a) {
  return (a.max_keys + kAttentionSegment - 1) / kAttentionSegment;
}
inline int64_t RowTilesOfAll(const DeviceAttentionArgs& a) {
  return int64_t{a.num_sequences} * a.num_kv_heads * RowTiles(a);
}

// Where the partial sums of a launch lie, and how many CTAs have left theirs.
struct DecodeScratch {
  unsigned* tickets;
  float* partials;
};

// Where what is known of a segment lies in shared memory: bytes from its start, behind kBegin bytes
// of keys and values.
// kRows: rows that scores are kept of.
template <int kBegin, int kRows = kDecodeRows>
struct SegmentLayout {
  static constexpr int kScores = kBegin;
  static constexpr int kWarpMaxima = kScores + kRows * kScoreStride * 4;  // [4][8][16]
  static constexpr int kAlpha = kWarpMaxima + 4 * kTilesPerSegment * kDecodeRows * 4;
  static constexpr int kShift = kAlpha + kTilesPerSegment * kDecodeRows * 4;
  static constexpr int kMax = kShift + kTilesPerSegment * kDecodeRows * 4;
  static constexpr int kSum = kMax + kDecodeRows * 4;
  static constexpr int kKeyRows = kSum + kDecodeRows * 4;  // [512]
  static constexpr int kBytes = kKeyRows + kAttentionSegment * 4;
};

// The kernel for few sequences (attention_decode_cluster.cu); false if there are more than it
// takes.
bool AttentionDecodeInClusters(const DeviceAttentionArgs& args, const DecodeScratch& scratch,
                               cudaStream_t stream, LaunchOrder order);

// Scores of 16 rows with the warp's 16 keys of kBatch tiles (first_tile of the segment on), to
// shared memory, with their maxima. Steps outside, tiles inside: their chains run side by side.
template <int kHeadDim, int kBatch, int kRows = kDecodeRows>
__device__ __forceinline__ void ScoreTiles(const uint32_t (&q)[kHeadDim / 16][4],
                                           const uint32_t (&tiles)[kBatch], int first_key,
                                           const int (&visible)[2], float* scores, float* maxima) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int key_row = warp * 16 + lane / 16 * 8 + lane % 8;
  float s[kBatch][2][4] = {};
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
    for (int tile = 0; tile < kBatch; ++tile) {
      // Matrices: keys 0-7 low k, keys 0-7 high k, keys 8-15 low k, keys 8-15 high k.
      uint32_t b[4];
      LoadMatrices(tiles[tile] + PlaceInTile(key_row, 2 * step + lane / 8 % 2), b);
      ChainStep(s[tile][0], q[step][0], q[step][1], q[step][2], q[step][3], b);
      ChainStep(s[tile][1], q[step][0], q[step][1], q[step][2], q[step][3], b + 2);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kBatch; ++tile) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int column = tile * kAttentionBlock + warp * 16 + 8 * n + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& place = s[tile][n][2 * r + i];
          if (first_key + column + i >= visible[r]) place = -INFINITY;
          largest = fmaxf(largest, place);
        }
        if (8 * r >= kRows) continue;
        *reinterpret_cast<float2*>(scores + (lane / 4 + 8 * r) * kScoreStride + column) =
            make_float2(s[tile][n][2 * r], s[tile][n][2 * r + 1]);
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
      if (lane % 4 == 0) {
        maxima[(warp * kTilesPerSegment + tile) * kDecodeRows + lane / 4 + 8 * r] = largest;
      }
    }
  }
}

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

// Thread (row, tile): the running maximum, alpha and shift of every tile.
__device__ __forceinline__ void ShiftsOfTiles(const float* maxima, int num_tiles, float c,
                                              float* alpha, float* shift, float* segment_max) {
  const int row = threadIdx.x / kTilesPerSegment;
  const int tile = threadIdx.x % kTilesPerSegment;
  float largest = -INFINITY;
#pragma unroll
  for (int warp = 0; warp < 4; ++warp) {
    const float each = maxima[(warp * kTilesPerSegment + tile) * kDecodeRows + row];
    if (tile < num_tiles) largest = fmaxf(largest, each);
  }
  const RunningShift running = RunningShiftOf(largest, c);
  alpha[tile * kDecodeRows + row] = running.of_tile.alpha;
  shift[tile * kDecodeRows + row] = running.of_tile.shift;
  if (tile == kTilesPerSegment - 1) segment_max[row] = running.max;
}

// Where a row of the tile lives.
struct RowPlace {
  int query, head;
  bool is_there;
};
__device__ __forceinline__ RowPlace PlaceOfRow(int flat, int kv_head, int group, int num_queries) {
  return {flat / group, kv_head * group + flat % group, flat / group < num_queries};
}

template <int kHeadDim>
__device__ __forceinline__ void StoreRow(const DeviceAttentionArgs& a, int64_t place, int column,
                                         float low, float high) {
  *reinterpret_cast<uint32_t*>(a.out + place * kHeadDim + column) = RoundPair(low, high);
}

// The running maximum and sum of a row, and the thread's share of its outputs.
template <int kColumns>
struct MergedRow {
  float max = -INFINITY;
  float sum = 0.0f;
  float outputs[kColumns];

  __device__ __forceinline__ void Add(float segment_max, float segment_sum,
                                      const float4 (&o)[kColumns / 4], float c) {
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
      const float4& v = o[i / 4];
      const float mine = i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w;
      outputs[i] = is_first ? mine : MergeOutput(outputs[i], mine, f);
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

// What the last CTA merges: partial sums, each kDecodeRows rows of head_dim, their maxima,
// their sums; those of the next segment lie `stride` floats on.
struct MergeWork {
  const float* partials;
  int64_t stride;
  int num_segments;
  int kv_head, first_row;
};

// Segments ascending: eight threads a row, each an eighth of the columns. kBatch segments are
// read at once.
template <int kHeadDim, int kBatch>
__device__ __forceinline__ void MergeSegments(const DeviceAttentionArgs& a,
                                              const AttentionSequence& seq, const MergeWork& work) {
  constexpr int kColumns = kHeadDim / 8;
  constexpr int kWords = (kColumns + 3) / 4;
  static_assert(kColumns % 4 == 0);
  const int row = threadIdx.x / 8;
  const int first = threadIdx.x % 8 * kColumns;
  const float c = MulRn(a.scale, kLog2E);
  const RowPlace place =
      PlaceOfRow(work.first_row + row, work.kv_head, a.num_heads / a.num_kv_heads,
                 static_cast<int>(seq.num_queries));
  if (!place.is_there) return;
  MergedRow<kColumns> merged;
#pragma unroll 1
  for (int begin = 0; begin < work.num_segments; begin += kBatch) {
    float max[kBatch], sum[kBatch];
    float4 o[kBatch][kWords];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      max[i] = -INFINITY;
      if (begin + i >= work.num_segments) continue;
      const float* partial = work.partials + (begin + i) * work.stride;
      max[i] = __ldcg(partial + kDecodeRows * kHeadDim + row);
      sum[i] = __ldcg(partial + kDecodeRows * kHeadDim + kDecodeRows + row);
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        o[i][word] =
            __ldcg(reinterpret_cast<const float4*>(partial + row * kHeadDim + first) + word);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) merged.Add(max[i], sum[i], o[i], c);
  }
  StoreMerged<kHeadDim>(a, (seq.q_begin + place.query) * a.num_heads + place.head, first, merged);
}

// Whether this CTA is the last of `count` to leave its partial sums; what they left is seen then.
// The ticket is zero again after the last. By all threads.
__device__ __forceinline__ bool IsLastOf(int count, unsigned* ticket) {
  __shared__ unsigned taken;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) taken = atomicInc(ticket, static_cast<unsigned>(count) - 1);
  __syncthreads();
  if (taken != static_cast<unsigned>(count) - 1) return false;
  __threadfence();
  return true;
}

template <int kHeadDim>
__device__ __forceinline__ void LoadQueries(const DeviceAttentionArgs& a,
                                            const AttentionSequence& seq, int kv_head,
                                            int first_row, uint32_t (&q)[kHeadDim / 16][4],
                                            int (&visible)[2]) {
  const int lane = threadIdx.x % 32;
  const int group = a.num_heads / a.num_kv_heads;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const RowPlace place =
        PlaceOfRow(first_row + lane / 4 + 8 * r, kv_head, group, static_cast<int>(seq.num_queries));
    visible[r] =
        place.is_there ? static_cast<int>(seq.num_keys - seq.num_queries) + place.query + 1 : 0;
    const BFloat16* source = a.q + (seq.q_begin + (place.is_there ? place.query : 0)) * a.q_stride +
                             static_cast<int64_t>(place.head) * kHeadDim + lane % 4 * 2;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      q[step][r] = *reinterpret_cast<const uint32_t*>(source + step * 16);
      q[step][2 + r] = *reinterpret_cast<const uint32_t*>(source + step * 16 + 8);
    }
  }
}

}  // namespace quatrain::cuda
