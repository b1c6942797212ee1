// How a warp of a kernel in clusters brings keys and values, has the scores of its 16 keys and
// gives them to all CTAs of the segment, through their shared memory (attention_decode_cluster.cu,
// attention_decode_messages.cu).
#pragma once

#include "kernels/cuda/attention_decode_cluster.cuh"
#include "kernels/cuda/cluster.cuh"

namespace quatrain::cuda::decode_cluster {

// By one load of the warp, a word a lane: many loads of one place queue up.
__device__ __forceinline__ AttentionSequence LoadSequence(const AttentionSequence* source) {
  static_assert(sizeof(AttentionSequence) == 40);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t mine = __ldg(reinterpret_cast<const long long*>(source) + min(lane, 4));
  int64_t words[5];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = __shfl_sync(0xFFFFFFFFu, mine, i);
  return {words[0], words[1], words[2], reinterpret_cast<const int32_t*>(words[3]), words[4]};
}
// What the CTA works on, in a grid of kParts CTAs a segment, row tiles of all kv heads, sequences.
template <int kParts, int kRows>
__device__ __forceinline__ PartWork WorkOf(const AttentionSequence& seq, const Cut& cut) {
  PartWork work;
  work.num_keys = static_cast<int>(seq.num_keys);
  work.part = static_cast<int>(blockIdx.x) % kParts;
  work.first_cta = static_cast<int>(blockIdx.x) - work.part;
  work.first_key = static_cast<int>(blockIdx.x) / kParts * kAttentionSegment;
  work.kv_head = Cut::Quotient(static_cast<int>(blockIdx.y), cut.of_row_tiles);
  work.first_row = (static_cast<int>(blockIdx.y) - work.kv_head * cut.row_tiles) * kDecodeRows;
  work.num_rows = min(kRows, static_cast<int>(seq.num_queries) * cut.group - work.first_row);
  return work;
}
__device__ __forceinline__ int NumTilesOf(const PartWork& work) {
  return min(kTilesPerSegment,
             (work.num_keys - work.first_key + kAttentionBlock - 1) / kAttentionBlock);
}
// A barrier for each tile of values, at which all threads of the warps that copy it count.
template <class L>
__device__ __forceinline__ void InitValueBarriers(uint32_t base) {
#pragma unroll
  for (int i = 0; i < kTilesPerSegment; ++i) {
    BarrierInit(base + L::kValuesThere + 8 * i, kGroupsOfTile * 32);
  }
}
// 256 bytes into the L2.
__device__ __forceinline__ void PrefetchRow(const BFloat16* source) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], 256;" ::"l"(source) : "memory");
}

// Rows of k or v where groups of 16 keys begin, a lane each: lane i has the i-th group of which the
// warp copies v, the last lane the one whose scores the warp has. A group past the end lies in the
// last page; nothing is read of it.
template <class L>
struct GroupRows {
  int32_t mine;

  __device__ __forceinline__ static int GroupOfValues(int i) {
    return i * L::kWarps + static_cast<int>(threadIdx.x) / 32;
  }
  __device__ __forceinline__ GroupRows(const KeyRows& keys, int first_key, int of_keys) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int group = lane == 31 ? of_keys : GroupOfValues(lane % L::kParts);
    const int key = first_key + group * kKeysOfGroup;
    mine = static_cast<int32_t>(keys.kv_begin) + key;
    if (keys.block_table != nullptr) {
      const int page = min(key, keys.num_keys - 1) >> keys.block_shift;
      mine = (__ldg(keys.block_table + page) << keys.block_shift) +
             (key & ((1 << keys.block_shift) - 1));
    }
  }
  __device__ __forceinline__ int32_t OfValues(int i) const {
    return __shfl_sync(0xFFFFFFFFu, mine, i);
  }
  __device__ __forceinline__ int32_t OfKeys() const { return __shfl_sync(0xFFFFFFFFu, mine, 31); }
};

// `row` rows of `stride` elements on.
__device__ __forceinline__ const BFloat16* RowAt(const BFloat16* first, int32_t row,
                                                 int64_t stride) {
  return first + int64_t{row} * static_cast<int32_t>(stride);
}

// The warp's 16 keys and their rows of v, all columns: with those of the other CTAs all of v.
__device__ __forceinline__ void PrefetchRows(const DeviceAttentionArgs& a, const PartWork& work,
                                             int32_t row, int key) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (key + lane % 16 >= work.num_keys) return;
  PrefetchRow(
      RowAt((lane < 16 ? a.k : a.v) + work.kv_head * kHeadDim, row + lane % 16, a.kv_stride));
}

// The warp's 16 keys from `key` on; zeros past the end.
__device__ __forceinline__ void CopyKeys(const DeviceAttentionArgs& a, const PartWork& work,
                                         int32_t row, int key, uint32_t place) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const BFloat16* const mine =
      RowAt(a.k + work.kv_head * kHeadDim + lane % 16 * 8, row + lane / 16, a.kv_stride);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    CopyAsync16(place + PlaceOfChunk(lane / 16 + 2 * i, lane % 16), RowAt(mine, 2 * i, a.kv_stride),
                key + lane / 16 + 2 * i < work.num_keys);
  }
}

// The part of the columns of v of the warp's i-th group of keys; zeros past the end.
template <class L>
__device__ __forceinline__ void CopyValues(const DeviceAttentionArgs& a, const PartWork& work,
                                           const GroupRows<L>& rows, int i, uint32_t base) {
  constexpr int kRowsAtOnce = 32 / L::kChunks;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunk = lane % L::kChunks;
  const BFloat16* const columns =
      RowAt(a.v + work.kv_head * kHeadDim + work.part * L::kWidth + chunk * 8, lane / L::kChunks,
            a.kv_stride);
  const int key = GroupRows<L>::GroupOfValues(i) * kKeysOfGroup + lane / L::kChunks;
  const BFloat16* const source = RowAt(columns, rows.OfValues(i), a.kv_stride);
#pragma unroll
  for (int j = 0; j < kKeysOfGroup / kRowsAtOnce; ++j) {
    // A place is that in the first group, as many groups on.
    CopyAsync16(base + L::PlaceOfValues(lane / L::kChunks + j * kRowsAtOnce, chunk) +
                    GroupRows<L>::GroupOfValues(i) * kKeysOfGroup * L::kRowBytes,
                RowAt(source, j * kRowsAtOnce, a.kv_stride),
                work.first_key + key + j * kRowsAtOnce < work.num_keys);
  }
}

// Queries of all rows, by the first threads; one that is not there stands for the last one.
template <class L>
__device__ __forceinline__ void CopyQueries(const DeviceAttentionArgs& a,
                                            const AttentionSequence& seq, const PartWork& work,
                                            const Cut& cut, uint32_t base) {
  static_assert(L::kRows * 16 <= 2 * L::kThreads);
#pragma unroll
  for (int i = 0; i < L::kRows * 16; i += L::kThreads) {
    const int index = i + static_cast<int>(threadIdx.x);
    if (index >= L::kRows * 16) break;
    const QueryHead of = QueryHeadOf(work, cut, min(index / 16, work.num_rows - 1));
    CopyAsync16(base + L::kQueries + PlaceOfChunk(index / 16, index % 16),
                a.q + (seq.q_begin + of.query) * a.q_stride + of.head * kHeadDim + index % 16 * 8,
                true);
  }
}

// How many keys rows 2 (lane % 4) and the next one of eight see.
template <int kEights>
struct Visible {
  int keys[kEights][2];

  __device__ __forceinline__ Visible(const AttentionSequence& seq, const PartWork& work,
                                     const Cut& cut) {
    const int before = work.num_keys - static_cast<int>(seq.num_queries);
#pragma unroll
    for (int i = 0; i < 2 * kEights; ++i) {
      const int row = i / 2 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
      keys[i / 2][i % 2] = before + Cut::Quotient(work.first_row + row, cut.of_group) + 1;
    }
  }
};

// Scores of a group of keys and eight rows from `first_row` on to every CTA: 16 bytes, four rows of
// a key, at a time. Neighbours exchange halves: an even lane has key g then, the next one g + 8.
template <class L>
__device__ __forceinline__ void GiveScores(const float (&s)[4], const PartWork& work, int first_row,
                                           int group, uint32_t base) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_odd = lane % 2 != 0;
  float four[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float from = __shfl_xor_sync(0xFFFFFFFFu, is_odd ? s[i] : s[2 + i], 1);
    four[i] = is_odd ? from : s[i];
    four[2 + i] = is_odd ? s[2 + i] : from;
  }
  const int row = first_row + lane / 2 % 2 * 4;
  if (row >= work.num_rows) return;
  const int key = group * kKeysOfGroup + lane / 4 + (is_odd ? 8 : 0);
  const uint32_t place = L::kScores + (row / 4 * kAttentionSegment + key) * 16;
#pragma unroll
  for (int i = 0; i < L::kParts; ++i) {
    const uint32_t other = SharedOf(base, work.first_cta + (work.part + i) % L::kParts);
    GiveFour(other + place, four, other + L::kScoresThere);
  }
}

// Their maxima: lane (g, t) gives those of rows 2 t and 2 t + 1 to the g-th CTA.
template <class L>
__device__ __forceinline__ void GiveMaxima(const float (&s)[4], const PartWork& work, int first_row,
                                           int group, uint32_t base) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = first_row + lane % 4 * 2;
  const uint32_t other = SharedOf(base, work.first_cta + min(lane / 4, L::kParts - 1));
  float largest[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    largest[i] = fmaxf(s[i], s[2 + i]);
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xFFFFFFFFu, largest[i], offset));
    }
  }
  if (row >= work.num_rows || lane / 4 >= L::kParts) return;
  const uint32_t place = other + L::kMaxima + (row * L::kMaximaStride + group) * 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Give(place + i * L::kMaximaStride * 4, largest[i], other + L::kScoresThere);
  }
}

// Scores of the warp's group of keys and their maxima, to every CTA of the segment.
template <class L>
__device__ __forceinline__ void ScoreGroup(uint32_t keys, const Visible<L::kRows / 8>& visible,
                                           const PartWork& work, int group, uint32_t base) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t k[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    // Matrices: keys 0-7 and 8-15 with the step's first eight elements, then with the last.
    LoadMatrices(keys + PlaceOfChunk(lane % 16, 2 * step + lane / 16), k[step]);
  }
  const int key = work.first_key + group * kKeysOfGroup + lane / 4;
#pragma unroll
  for (int n = 0; n < L::kRows / 8; ++n) {
    if (8 * n >= work.num_rows) break;
    uint32_t q[kSteps / 2][4];
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) {
      // Matrices: eight rows with eight elements each, of 32.
      LoadMatrices(base + L::kQueries + PlaceOfChunk(8 * n + lane % 8, 4 * i + lane / 8), q[i]);
    }
    float s[4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      ChainStep(s, k[step][0], k[step][1], k[step][2], k[step][3], q[step / 2] + step % 2 * 2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (key + i / 2 * 8 >= visible.keys[n][i % 2]) s[i] = -INFINITY;
    }
    GiveScores<L>(s, work, 8 * n, group, base);
    GiveMaxima<L>(s, work, 8 * n, group, base);
  }
}
// Bytes that a CTA gets of a group.
__device__ __forceinline__ int BytesOfGroup(int num_rows) {
  return (num_rows + 3) / 4 * 16 * kKeysOfGroup + (num_rows + 1) / 2 * 8;
}
// After all are set up: seen by the cluster, the scores that will be given expected.
template <class L>
__device__ __forceinline__ void ExpectScores(const PartWork& work, uint32_t base) {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  BarrierExpect(base + L::kScoresThere,
                work.num_tiles * kGroupsOfTile * BytesOfGroup(work.num_rows));
}

}  // namespace quatrain::cuda::decode_cluster
