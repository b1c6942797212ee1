// What a CTA of the kernels in clusters does (attention_decode_cluster.cu,
// attention_decode_messages.cu): where things lie in its shared memory, and how the scores of all
// keys become its columns of the outputs.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention_decode.cuh"

namespace quatrain::cuda::decode_cluster {

inline constexpr int kHeadDim = 128;
inline constexpr int kSteps = kHeadDim / 16;
inline constexpr int kKeysOfGroup = 16;
inline constexpr int kGroupBytes = kKeysOfGroup * kHeadDim * 2;
inline constexpr int kGroupsOfTile = kAttentionBlock / kKeysOfGroup;

// Place of 16 bytes of a warp's key or of a query: any eight of them lie in different banks.
__device__ __forceinline__ uint32_t PlaceOfChunk(int row, int chunk) {
  return static_cast<uint32_t>(row * kHeadDim * 2 + (chunk ^ row % 8) * 16);
}

// Threads and shared memory of one of the kParts CTAs that share a segment, with their part of the
// columns of v, where kSegments segments of kRows (query, head) rows meet: v, keys and later
// rounded probabilities in their place, scores (later probabilities) in fours of rows, maxima of 16
// keys each, factors, ends (maximum and sum) and outputs of segments, two barriers.
template <int kPartsOf, int kSegmentsOf, int kRowsOf>
struct Layout {
  static constexpr int kParts = kPartsOf;
  static constexpr int kSegments = kSegmentsOf;
  static constexpr int kRows = kRowsOf;
  static constexpr int kWarps = kAttentionSegment / kKeysOfGroup / kParts;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kWidth = kHeadDim / kParts;  // columns of v
  static constexpr int kOutputWarps = kWidth / 16;
  static constexpr int kRowBytes = 2 * kWidth;
  static constexpr int kChunks = kRowBytes / 16;
  // Rows start 4 banks apart.
  static constexpr int kRoundedStride = (kAttentionSegment + 8) * 2;          // bytes
  static constexpr int kMaximaStride = kAttentionSegment / kKeysOfGroup + 4;  // floats
  static constexpr int kOutputStride = kWidth + 4;                            // floats

  static constexpr int kKeysPlace = kAttentionSegment * kRowBytes;  // [kWarps][16][kHeadDim]
  static constexpr int kRounded = kKeysPlace;                       // later: [kRows][512 + 8]
  static constexpr int kScores =                                    // [kRows / 4][512][4]
      kKeysPlace + std::max(kWarps * kGroupBytes, kRows* kRoundedStride);
  static constexpr int kQueries = kScores + kAttentionSegment * kRows * 4;  // [kRows][kHeadDim]
  static constexpr int kMaxima = kQueries + kRows * kHeadDim * 2;           // [kRows][32 + 4]
  static constexpr int kAlpha = kMaxima + kRows * kMaximaStride * 4;        // [8][kRows]
  static constexpr int kShift = kAlpha + kTilesPerSegment * kRows * 4;      // [8][kRows]
  static constexpr int kEnds = kShift + kTilesPerSegment * kRows * 4;       // [kSegments][kRows][2]
  static constexpr int kOutputs = kEnds + kSegments * kRows * 8;  // [kSegments][kRows][kWidth + 4]
  static constexpr int kScoresThere = kOutputs + kSegments * kRows * kOutputStride * 4;
  static constexpr int kOutputsThere = kScoresThere + 8;
  static constexpr int kValuesThere = kOutputsThere + 8;  // [8]: tiles, where they are waited for
  static constexpr int kBytes = kValuesThere + 8 * kTilesPerSegment;
  // Whether values are asked for when the warp's keys are there, which alone keep the memory busy,
  // and walked tile by tile as they come. A cluster for several segments gains nothing by it.
  static constexpr bool kValuesWait = kSegments == 1 && kWarps * kGroupBytes >= 1 << 16;

  // Place of 16 bytes of a row of v: any eight rows lie in different banks.
  static __device__ __forceinline__ uint32_t PlaceOfValues(int key, int chunk) {
    constexpr int kRowsOfLine = 128 / kRowBytes;
    static_assert(kKeysOfGroup / kRowsOfLine % kChunks == 0);
    return static_cast<uint32_t>(key * kRowBytes + ((chunk ^ (key / kRowsOfLine)) % kChunks) * 16);
  }
};

// How the launch is cut. A quotient is exact as long as the dividend is small, as rows of one
// launch of this kernel are, and costs a tenth of a division.
struct Cut {
  int block_shift, row_tiles, group;
  float of_row_tiles, of_group;  // 1 over each
  bool comes_first;              // keys to the L2, while the kernel before runs

  __device__ __forceinline__ static int Quotient(int dividend, float inverse) {
    return static_cast<int>((static_cast<float>(dividend) + 0.5f) * inverse);
  }
};

inline Cut CutOf(const DeviceAttentionArgs& args, LaunchOrder order) {
  const int tiles = RowTiles(args);
  const int group = args.num_heads / args.num_kv_heads;
  return {.block_shift = BlockShift(args.block_size),
          .row_tiles = tiles,
          .group = group,
          .of_row_tiles = 1.0f / static_cast<float>(tiles),
          .of_group = 1.0f / static_cast<float>(group),
          .comes_first = order == LaunchOrder::kOverlap};
}

// Whether a group of keys lies in one page.
inline bool HasWholeGroups(const DeviceAttentionArgs& args) {
  return args.head_dim == kHeadDim && (args.block_size == 0 || args.block_size >= kKeysOfGroup);
}

// What a CTA works on: a segment, from first_key of num_keys keys on, whose num_tiles tiles it
// shares with the CTAs of the cluster from first_cta on.
struct PartWork {
  int first_key, num_keys, num_tiles;
  int kv_head, first_row, num_rows;
  int part, first_cta;
};

// Query and head of a row of the CTA, and its place among the rows of out and log-sum-exps.
struct QueryHead {
  int query, head;
};
__device__ __forceinline__ QueryHead QueryHeadOf(const PartWork& work, const Cut& cut, int row) {
  const int query = Cut::Quotient(work.first_row + row, cut.of_group);
  return {query, work.kv_head * cut.group + work.first_row + row - query * cut.group};
}
__device__ __forceinline__ int64_t PlaceOfRow(const DeviceAttentionArgs& a,
                                              const AttentionSequence& seq, const PartWork& work,
                                              const Cut& cut, int row) {
  const QueryHead of = QueryHeadOf(work, cut, row);
  return (seq.q_begin + of.query) * a.num_heads + of.head;
}

// Thread (row, tile): alpha and shift of every tile, the segment's maximum.
template <class L>
__device__ __forceinline__ void ShiftsOfSegment(uint8_t* shared, int num_tiles, float c) {
  constexpr int kRows = L::kRows;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= kTilesPerSegment * kRows) return;
  const int row = thread / kTilesPerSegment;
  const int tile = thread % kTilesPerSegment;
  const float4 maxima = *reinterpret_cast<const float4*>(
      shared + L::kMaxima + (row * L::kMaximaStride + tile * kGroupsOfTile) * 4);
  const float largest =
      tile < num_tiles ? fmaxf(fmaxf(maxima.x, maxima.y), fmaxf(maxima.z, maxima.w)) : -INFINITY;
  const RunningShift running = RunningShiftOf(largest, c);
  reinterpret_cast<float*>(shared + L::kAlpha)[tile * kRows + row] = running.of_tile.alpha;
  reinterpret_cast<float*>(shared + L::kShift)[tile * kRows + row] = running.of_tile.shift;
  if (tile == kTilesPerSegment - 1) {
    reinterpret_cast<float2*>(shared + L::kEnds)[row].x = running.max;
  }
}

// Thread (key): probabilities in the place of scores, and rounded ones. What they make of keys past
// the last tile is not used.
template <class L>
__device__ __forceinline__ void Probabilities(uint8_t* shared, int num_rows, float c) {
  constexpr int kFours = L::kRows / 4;
  static_assert(kAttentionSegment % L::kThreads == 0 && L::kThreads % kAttentionBlock == 0);
  const int thread = static_cast<int>(threadIdx.x);
  auto* const scores = reinterpret_cast<float4*>(shared + L::kScores) + thread;
  const auto* const shifts =
      reinterpret_cast<const float4*>(shared + L::kShift) + thread / kAttentionBlock * kFours;
  uint8_t* const rounded = shared + L::kRounded + thread * 2;
#pragma unroll
  for (int fours = 0; fours < kFours; ++fours) {
    if (fours * 4 >= num_rows) break;
#pragma unroll
    for (int key = 0; key < kAttentionSegment; key += L::kThreads) {  // of thread 0
      const float4 shift = shifts[key / kAttentionBlock * kFours + fours];
      const float4 s = scores[fours * kAttentionSegment + key];
      const float4 p = {ProbabilityOf(s.x, c, shift.x), ProbabilityOf(s.y, c, shift.y),
                        ProbabilityOf(s.z, c, shift.z), ProbabilityOf(s.w, c, shift.w)};
      scores[fours * kAttentionSegment + key] = p;
      uint8_t* const out = rounded + key * 2 + fours * 4 * L::kRoundedStride;
      const uint32_t low = RoundPair(p.x, p.y);
      const uint32_t high = RoundPair(p.z, p.w);
      *reinterpret_cast<uint16_t*>(out) = static_cast<uint16_t>(low);
      *reinterpret_cast<uint16_t*>(out + L::kRoundedStride) = static_cast<uint16_t>(low >> 16);
      *reinterpret_cast<uint16_t*>(out + 2 * L::kRoundedStride) = static_cast<uint16_t>(high);
      *reinterpret_cast<uint16_t*>(out + 3 * L::kRoundedStride) = static_cast<uint16_t>(high >> 16);
    }
  }
}

// Lane (row, residue): sums of four rows.
template <class L>
__device__ __forceinline__ void SumRows(uint8_t* shared, int fours, int num_tiles) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = fours * 4 + lane / 8;
  const auto* const mine = reinterpret_cast<const float*>(shared + L::kScores) +
                           (fours * kAttentionSegment + lane % 8) * 4 + lane / 8;
  const auto* const alpha = reinterpret_cast<const float*>(shared + L::kAlpha) + row;
  float t = 0.0f;
#pragma unroll 2
  for (int tile = 0; tile < num_tiles; ++tile) {
    t = MulRn(t, alpha[tile * L::kRows]);
    float p[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) p[i] = mine[(tile * kAttentionBlock + 8 * i) * 4];
#pragma unroll
    for (int i = 0; i < 8; ++i) t = AddRn(t, p[i]);
  }
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) {
    t = AddRn(t, __shfl_xor_sync(0xFFFFFFFFu, t, offset));
  }
  if (lane % 8 == 0) reinterpret_cast<float2*>(shared + L::kEnds)[row].y = t;
}

// O of the segment for 16 columns from `columns` of the part on. wait_for(tile) waits for the
// tile's values.
template <class L, class WaitFor>
__device__ __forceinline__ void WalkValues(const uint8_t* shared, int columns, int num_tiles,
                                           float (&o)[L::kRows / 8][4], const WaitFor& wait_for) {
  constexpr int kEights = L::kRows / 8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t base = SharedAddress(shared);
  const auto* const alpha = reinterpret_cast<const float*>(shared + L::kAlpha) + lane % 4 * 2;
  // Matrices: eight rows of 8 keys each, of 32 keys.
  const uint32_t rounded = base + L::kRounded + lane % 8 * L::kRoundedStride + lane / 8 * 16;
#pragma unroll 2
  for (int tile = 0; tile < num_tiles; ++tile) {
    wait_for(tile);
#pragma unroll
    for (int n = 0; n < kEights; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        o[n][i] = MulRn(o[n][i], alpha[tile * L::kRows + 8 * n + i % 2]);
      }
    }
#pragma unroll
    for (int pair = 0; pair < kAttentionBlock / 32; ++pair) {
      const int key = tile * kAttentionBlock + pair * 32;
      uint32_t p[kEights][4];
#pragma unroll
      for (int n = 0; n < kEights; ++n) {
        LoadMatrices(rounded + 8 * n * L::kRoundedStride + key * 2, p[n]);
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        // Matrices: keys 0-7 of the columns' first and last eight, then keys 8-15; transposed.
        uint32_t v[4];
        LoadTransposed(base + L::PlaceOfValues(key + step * 16 + lane / 16 * 8 + lane % 8,
                                               columns / 8 + lane / 8 % 2),
                       v);
#pragma unroll
        for (int n = 0; n < kEights; ++n) ChainStep(o[n], v[0], v[1], v[2], v[3], p[n] + 2 * step);
      }
    }
  }
}

}  // namespace quatrain::cuda::decode_cluster
