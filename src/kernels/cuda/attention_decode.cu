// Plan: a CTA takes one segment of 512 keys for 16 rows (query, head) of one kv head. Keys, then
// values stream through a ring of tiles. All scores come first (each warp 16 keys of every tile),
// then maxima, shifts and probabilities of the whole segment at once (one thread per row and tile,
// then per row and residue), then O (each warp a quarter of the columns), one chain over the
// segment. The last CTA of a tile of rows merges its segments in order.
#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_decode.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kDecodeThreads = 128;
constexpr int kScoreStride = kAttentionSegment + 8;  // floats; rows start 8 banks apart

// Tiles in the ring: few, so that two CTAs share a multiprocessor, or, where there are no more CTAs
// than multiprocessors, as many as fit, so that most of a segment is on its way at once.
template <int kHeadDim>
constexpr int kShallow = kHeadDim == 256   ? 2
                         : kHeadDim == 128 ? 4
                                           : 6;
template <int kHeadDim>
constexpr int kDeep = kHeadDim == 256   ? 5
                      : kHeadDim == 128 ? 11
                                        : 16;

// Where there are few rows, scores are kept of no more: three CTAs share a multiprocessor then, and
// what one does before its first keys come and after its last ones is under the copies of the
// others. Four do with the shortest ring, where there are more than three.
template <int kHeadDim>
constexpr int kShallowFew = kHeadDim == 256   ? 2
                            : kHeadDim == 128 ? 3
                                              : 6;
template <int kHeadDim>
constexpr int kShallowest = kHeadDim == 64 ? 4 : 2;

// Shared memory: the ring, then what is known of the segment. kRows: rows that scores are kept of.
template <int kHeadDim, int kStages, int kRows>
struct Layout {
  static constexpr int kScores = kStages * kTileBytes<kHeadDim>;
  static constexpr int kWarpMaxima = kScores + kRows * kScoreStride * 4;  // [4][8][16]
  static constexpr int kAlpha = kWarpMaxima + 4 * kTilesPerSegment * kDecodeRows * 4;
  static constexpr int kShift = kAlpha + kTilesPerSegment * kDecodeRows * 4;
  static constexpr int kMax = kShift + kTilesPerSegment * kDecodeRows * 4;
  static constexpr int kSum = kMax + kDecodeRows * 4;
  static constexpr int kKeyRows = kSum + kDecodeRows * 4;  // [512]
  static constexpr int kBytes = kKeyRows + kAttentionSegment * 4;
};

// Where a row of the tile lives.
struct RowPlace {
  int query, head;
  bool is_there;
};
__device__ __forceinline__ RowPlace PlaceOfRow(int flat, int kv_head, int group, int num_queries) {
  return {flat / group, kv_head * group + flat % group, flat / group < num_queries};
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
    LoadQueryRow<kHeadDim>(a.q + (seq.q_begin + (place.is_there ? place.query : 0)) * a.q_stride +
                               static_cast<int64_t>(place.head) * kHeadDim + lane % 4 * 2,
                           r, q);
  }
}

// Copies a tile of k or v (base: the kv head's first element). rows: the row of each of its 64
// keys, in shared memory, -1 past the end: zeros then.
template <int kHeadDim, int kThreads>
__device__ __forceinline__ void CopyTile(const int32_t* rows, const BFloat16* base, int64_t stride,
                                         uint32_t tile, int thread) {
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kRowsAtOnce = kThreads / kChunks;
  const int chunk = thread % kChunks;
#pragma unroll 8
  for (int i = 0; i < kAttentionBlock / kRowsAtOnce; ++i) {
    const int row = thread / kChunks + i * kRowsAtOnce;
    const int32_t source = rows[row];
    CopyAsync16(tile + PlaceInTile(row, chunk),
                base + static_cast<int64_t>(max(source, 0)) * stride + 8 * chunk, source >= 0);
  }
}

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

// Thread (row, residue): probabilities in the place of scores, and the row's sum.
__device__ __forceinline__ void Probabilities(float* scores, int num_tiles, float c,
                                              const float* alpha, const float* shift,
                                              float* segment_sum) {
  const int row = threadIdx.x / 8;
  const int residue = threadIdx.x % 8;
  float* mine = scores + row * kScoreStride + residue;
  float t = 0.0f;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const float of_tile = shift[tile * kDecodeRows + row];
    t = MulRn(t, alpha[tile * kDecodeRows + row]);
    float p[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      p[i] = ProbabilityOf(mine[tile * kAttentionBlock + 8 * i], c, of_tile);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      mine[tile * kAttentionBlock + 8 * i] = p[i];
      t = AddRn(t, p[i]);
    }
  }
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) {
    t = AddRn(t, __shfl_xor_sync(0xFFFFFFFFu, t, offset));
  }
  if (residue == 0) segment_sum[row] = t;
}

// O = O alpha + P V of one tile, the warp's quarter of the columns.
template <int kHeadDim, int kRows>
__device__ __forceinline__ void ValueTile(float (&o)[kHeadDim / 32][4], uint32_t tile,
                                          const float* probabilities, const float* alpha) {
  constexpr int kColumnTiles = kHeadDim / 32;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const float scale[2] = {alpha[lane / 4], alpha[lane / 4 + 8]};
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[n][i] = MulRn(o[n][i], scale[i / 2]);
  }
#pragma unroll
  for (int step = 0; step < kAttentionBlock / 16; ++step) {
    uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i] = 0;
      if (i % 2 * 8 >= kRows) continue;
      const float2 pair =
          *reinterpret_cast<const float2*>(probabilities + (lane / 4 + i % 2 * 8) * kScoreStride +
                                           step * 16 + i / 2 * 8 + lane % 4 * 2);
      p[i] = RoundPair(pair.x, pair.y);
    }
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      // Matrices: keys 0-7 and 8-15 of the columns' first 8, then of the next 8; transposed.
      uint32_t b[4];
      const int row = step * 16 + lane % 16;
      const int chunk = (warp * kHeadDim / 4 + n * 8) / 8 + lane / 16;
      LoadTransposed(tile + PlaceInTile(row, chunk), b);
      ChainStep(o[n], p[0], p[1], p[2], p[3], b);
      ChainStep(o[n + 1], p[0], p[1], p[2], p[3], b + 2);
    }
  }
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
    float o[kBatch][kColumns];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      max[i] = -INFINITY;
      if (begin + i >= work.num_segments) continue;
      const float* partial = work.partials + (begin + i) * work.stride;
      max[i] = __ldcg(partial + kDecodeRows * kHeadDim + row);
      sum[i] = __ldcg(partial + kDecodeRows * kHeadDim + kDecodeRows + row);
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        SetFour(o[i] + 4 * word,
                __ldcg(reinterpret_cast<const float4*>(partial + row * kHeadDim + first) + word));
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

template <int kHeadDim, int kStages, int kRows>
__global__ void __launch_bounds__(kDecodeThreads)
    DecodeKernel(DeviceAttentionArgs a, int block_shift, int row_tiles, DecodeScratch scratch) {
  using L = Layout<kHeadDim, kStages, kRows>;
  // Tiles handled between two barriers.
  constexpr int kBatch = kStages == kDeep<kHeadDim> && kHeadDim <= 128 ? 4 : 1;
  constexpr int kColumnTiles = kHeadDim / 32;
  constexpr int64_t kPartial = kDecodeRows * (kHeadDim + 2);
  extern __shared__ __align__(1024) uint8_t shared[];
  LetNextKernelStart();
  const AttentionSequence seq = a.sequences[blockIdx.z];
  const int num_keys = static_cast<int>(seq.num_keys);
  const int segment = blockIdx.x;
  const int kv_head = blockIdx.y / row_tiles;
  const int first_row = blockIdx.y % row_tiles * kDecodeRows;
  const int group = a.num_heads / a.num_kv_heads;
  if (segment * kAttentionSegment >= num_keys ||
      first_row >= static_cast<int>(seq.num_queries) * group) {
    return EndWithoutWork();
  }
  const int num_segments = (num_keys + kAttentionSegment - 1) / kAttentionSegment;
  const int first_tile = segment * kTilesPerSegment;
  const int num_tiles =
      min(kTilesPerSegment, (num_keys + kAttentionBlock - 1) / kAttentionBlock - first_tile);
  const int padded_tiles = (num_tiles + kBatch - 1) / kBatch * kBatch;
  const KeyRows keys = {seq.block_table, seq.kv_begin, block_shift, num_keys};
  const float c = MulRn(a.scale, kLog2E);
  const int64_t kv_offset = static_cast<int64_t>(kv_head) * kHeadDim;
  auto* scores = reinterpret_cast<float*>(shared + L::kScores);
  auto* warp_maxima = reinterpret_cast<float*>(shared + L::kWarpMaxima);
  auto* alpha = reinterpret_cast<float*>(shared + L::kAlpha);
  auto* shift = reinterpret_cast<float*>(shared + L::kShift);
  auto* segment_max = reinterpret_cast<float*>(shared + L::kMax);
  auto* segment_sum = reinterpret_cast<float*>(shared + L::kSum);
  auto* key_rows = reinterpret_cast<int32_t*>(shared + L::kKeyRows);
#pragma unroll
  for (int i = 0; i < kAttentionSegment / kDecodeThreads; ++i) {
    const int key = threadIdx.x + i * kDecodeThreads;
    key_rows[key] = keys.RowOf(segment * kAttentionSegment + key);
  }
  WaitForPreviousKernel();
  __syncthreads();
  const uint32_t ring = SharedAddress(shared);
  // Item i: tile i of k, then of v. One group of copies an item, empty past the end.
  const auto copy_item = [&](int item) {
    const bool is_key = item < padded_tiles;
    const BFloat16* base = (is_key ? a.k : a.v) + kv_offset;
    const int tile = is_key ? item : item - padded_tiles;
    if (tile < num_tiles) {
      CopyTile<kHeadDim, kDecodeThreads>(key_rows + tile * kAttentionBlock, base, a.kv_stride,
                                         ring + item % kStages * kTileBytes<kHeadDim>, threadIdx.x);
    }
    CommitCopies();
  };
  // Waits for kBatch items from `item` on, and starts the copies that take the places of those
  // before.
  constexpr int kAhead = kStages - kBatch;
  const auto wait_for = [&](int item, uint32_t(&tiles)[kBatch]) {
    WaitForCopies<kAhead - kBatch>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      copy_item(item + kAhead + i);
      tiles[i] = ring + (item + i) % kStages * kTileBytes<kHeadDim>;
    }
  };
  for (int item = 0; item < kAhead; ++item) copy_item(item);

  uint32_t q[kHeadDim / 16][4];
  int visible[2];
  LoadQueries<kHeadDim>(a, seq, kv_head, first_row, q, visible);
  uint32_t tiles[kBatch];
  for (int tile = 0; tile < padded_tiles; tile += kBatch) {
    wait_for(tile, tiles);
    ScoreTiles<kHeadDim, kBatch, kRows>(q, tiles, (first_tile + tile) * kAttentionBlock, visible,
                                        scores + tile * kAttentionBlock,
                                        warp_maxima + tile * kDecodeRows);
  }
  __syncthreads();
  ShiftsOfTiles(warp_maxima, num_tiles, c, alpha, shift, segment_max);
  __syncthreads();
  if (threadIdx.x < kRows * 8) {
    Probabilities(scores, num_tiles, c, alpha, shift, segment_sum);
  }
  float o[kColumnTiles][4] = {};
  for (int tile = 0; tile < padded_tiles; tile += kBatch) {
    wait_for(padded_tiles + tile, tiles);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (tile + i < num_tiles) {
        ValueTile<kHeadDim, kRows>(o, tiles[i], scores + (tile + i) * kAttentionBlock,
                                   alpha + (tile + i) * kDecodeRows);
      }
    }
  }

  const int lane = threadIdx.x % 32;
  const int column = threadIdx.x / 32 * (kHeadDim / 4) + lane % 4 * 2;
  const int64_t tile_index = (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y);
  float* partial = scratch.partials + (tile_index * gridDim.x + segment) * kPartial;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
    const RowPlace place =
        PlaceOfRow(first_row + row, kv_head, group, static_cast<int>(seq.num_queries));
    if (!place.is_there) continue;
    const int64_t at = (seq.q_begin + place.query) * a.num_heads + place.head;
    const float share = ReciprocalRn(segment_sum[row]);
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      if (num_segments > 1) {
        *reinterpret_cast<float2*>(partial + row * kHeadDim + column + 8 * n) =
            make_float2(o[n][2 * r], o[n][2 * r + 1]);
      } else {
        StoreRow<kHeadDim>(a, at, column + 8 * n, MulRn(o[n][2 * r], share),
                           MulRn(o[n][2 * r + 1], share));
      }
    }
    if (num_segments == 1 && a.lse != nullptr && threadIdx.x / 32 == 0 && lane % 4 == 0) {
      a.lse[at] = LogSumExp(segment_max[row], segment_sum[row], a.scale);
    }
  }
  if (num_segments == 1) return;
  if (threadIdx.x < kRows) {
    partial[kDecodeRows * kHeadDim + threadIdx.x] = segment_max[threadIdx.x];
    partial[kDecodeRows * kHeadDim + kDecodeRows + threadIdx.x] = segment_sum[threadIdx.x];
  }
  if (!IsLastOf(num_segments, scratch.tickets + tile_index)) return;
  MergeSegments<kHeadDim, 2>(a, seq,
                             {.partials = scratch.partials + tile_index * gridDim.x * kPartial,
                              .stride = kPartial,
                              .num_segments = num_segments,
                              .kv_head = kv_head,
                              .first_row = first_row});
}

template <int kHeadDim, int kStages, int kRows>
void LaunchWith(const DeviceAttentionArgs& args, const DecodeScratch& scratch, cudaStream_t stream,
                LaunchOrder order) {
  const auto kernel = DecodeKernel<kHeadDim, kStages, kRows>;
  constexpr size_t kShared = Layout<kHeadDim, kStages, kRows>::kBytes;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
            "attention, shared memory");
  const int tiles = RowTiles(args);
  LaunchKernel({dim3(Segments(args), args.num_kv_heads * tiles, args.num_sequences),
                dim3(kDecodeThreads), kShared, stream, order},
               kernel, args, BlockShift(args.block_size), tiles, scratch);
}

template <int kHeadDim>
void Launch(const DeviceAttentionArgs& args, const DecodeScratch& scratch, cudaStream_t stream,
            LaunchOrder order) {
  const int64_t num_ctas = RowTilesOfAll(args) * Segments(args);
  if (num_ctas <= NumMultiprocessors()) {
    return LaunchWith<kHeadDim, kDeep<kHeadDim>, kDecodeRows>(args, scratch, stream, order);
  }
  if (HasFewRows(args)) {
    if (num_ctas <= 3 * NumMultiprocessors()) {
      return LaunchWith<kHeadDim, kShallowFew<kHeadDim>, kFewRows>(args, scratch, stream, order);
    }
    return LaunchWith<kHeadDim, kShallowest<kHeadDim>, kFewRows>(args, scratch, stream, order);
  }
  LaunchWith<kHeadDim, kShallow<kHeadDim>, kDecodeRows>(args, scratch, stream, order);
}

// Of messages and tickets.
int64_t ZeroBytes(const DeviceAttentionArgs& args) {
  return MessageBytes() + (std::max(kLeastTickets, RowTilesOfAll(args)) * 4 + 255) / 256 * 256;
}

DecodeScratch ScratchOf(const DeviceAttentionArgs& args, void* scratch) {
  auto* const bytes = static_cast<uint8_t*>(scratch);
  return {reinterpret_cast<uint4*>(bytes), reinterpret_cast<unsigned*>(bytes + MessageBytes()),
          reinterpret_cast<float*>(bytes + ZeroBytes(args))};
}

}  // namespace

int64_t AttentionDecodeTickets(const DeviceAttentionArgs& args) { return ZeroBytes(args) / 4; }

int64_t AttentionDecodeScratchBytes(const DeviceAttentionArgs& args) {
  return ZeroBytes(args) +
         RowTilesOfAll(args) * Segments(args) * kDecodeRows * (args.head_dim + 2) * 4;
}

void AttentionDecode(const DeviceAttentionArgs& args, void* scratch, cudaStream_t stream,
                     LaunchOrder order) {
  CheckAttention(args);
  if (args.num_sequences == 0 || args.max_queries == 0 || args.max_keys == 0) return;
  if (IsDecodedInClusters(args)) return AttentionDecodeInClusters(args, stream, order);
  const DecodeScratch parts = ScratchOf(args, scratch);
  if (IsDecodedByMessages(args)) return AttentionDecodeByMessages(args, parts, stream, order);
  if (args.head_dim == 64) return Launch<64>(args, parts, stream, order);
  if (args.head_dim == 128) return Launch<128>(args, parts, stream, order);
  Launch<256>(args, parts, stream, order);
}

}  // namespace quatrain::cuda
