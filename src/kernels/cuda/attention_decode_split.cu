// Plan: where there are few segments, four CTAs of a cluster share one, so that four times as many
// multiprocessors read. Each has the scores of two of its eight tiles and gives them to the others;
// then each walks the whole segment with a quarter of the columns of v. Nothing waits for room:
// all copies are under way at once. The last CTA of a quarter merges the segments in order.
#include "kernels/cuda/attention_decode.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kParts = kDecodeParts;
constexpr int kTilesOfPart = kTilesPerSegment / kParts;
constexpr int kRoundedStride = (kAttentionSegment + 8) * 2;  // bytes; rows start 4 banks apart
constexpr int kMergeBatch = 8;

// Bytes of a CTA's keys and of a row of its quarter of v.
template <int kHeadDim>
constexpr int kKeyBytes = kTilesOfPart* kTileBytes<kHeadDim>;
template <int kHeadDim>
constexpr int kValueRowBytes = kHeadDim / kParts * 2;

// Shared memory: keys, where the probabilities lie later, a quarter of v, and the segment's.
template <int kHeadDim>
struct Layout : SegmentLayout<kKeyBytes<kHeadDim> + kAttentionSegment * kValueRowBytes<kHeadDim>> {
  static constexpr int kWidth = kHeadDim / kParts;  // columns of v
  static constexpr int kRowBytes = kValueRowBytes<kHeadDim>;
  static constexpr int kValues = kKeyBytes<kHeadDim>;
  static_assert(kDecodeRows * kRoundedStride <= kValues);

  // Place of 16 bytes of a row of v: any eight rows lie in different banks.
  static __device__ __forceinline__ uint32_t PlaceOfValues(int row, int chunk) {
    constexpr int kChunks = kRowBytes / 16;
    constexpr int kRowsOfLine = 128 / kRowBytes;
    return kValues + row * kRowBytes + ((chunk ^ (row / kRowsOfLine)) % kChunks) * 16;
  }
};

__device__ __forceinline__ void ArriveInCluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void WaitForCluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// 16 bytes of this CTA's shared memory to the same place in all others of the cluster.
__device__ __forceinline__ void GiveToOthers(uint32_t address, int rank) {
  const uint4 word = LoadShared16(address);
#pragma unroll
  for (int i = 1; i < kParts; ++i) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "st.shared::cluster.v4.u32 [remote], {%2,%3,%4,%5};\n"
        "}\n" ::"r"(address),
        "r"((rank + i) % kParts), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
        : "memory");
  }
}

// The scores of this CTA's tiles, and the maxima of its warps.
template <int kHeadDim>
__device__ __forceinline__ void GiveScores(uint32_t base, int rank, int num_rows) {
  using L = Layout<kHeadDim>;
  constexpr int kWordsOfRow = kTilesOfPart * kAttentionBlock / 4;
  const int first = rank * kTilesOfPart;
  for (int index = static_cast<int>(threadIdx.x); index < num_rows * kWordsOfRow;
       index += kDecodeThreads) {
    const int row = index / kWordsOfRow;
    const int word = index % kWordsOfRow;
    GiveToOthers(base + L::kScores + (row * kScoreStride + first * kAttentionBlock + word * 4) * 4,
                 rank);
  }
  constexpr int kWordsOfWarp = kTilesOfPart * kDecodeRows / 4;
  if (threadIdx.x < 4 * kWordsOfWarp) {
    const int warp = static_cast<int>(threadIdx.x) / kWordsOfWarp;
    const int word = static_cast<int>(threadIdx.x) % kWordsOfWarp;
    GiveToOthers(
        base + L::kWarpMaxima + ((warp * kTilesPerSegment + first) * kDecodeRows + word * 4) * 4,
        rank);
  }
}

struct SegmentSize {
  int num_rows, num_tiles;
};

// Thread (row, residue): rounded probabilities, and the row's sum.
__device__ __forceinline__ void RoundedProbabilities(const float* scores, const SegmentSize& size,
                                                     float c, const float* alpha,
                                                     const float* shift, BFloat16* rounded,
                                                     float* segment_sum) {
  const int row = threadIdx.x / 8;
  const int residue = threadIdx.x % 8;
  const float* const mine = scores + row * kScoreStride + residue;
  BFloat16* const out = rounded + row * (kRoundedStride / 2) + residue;
  float t = 0.0f;
  if (row >= size.num_rows) return;
#pragma unroll 2
  for (int tile = 0; tile < size.num_tiles; ++tile) {
    const float of_tile = shift[tile * kDecodeRows + row];
    t = MulRn(t, alpha[tile * kDecodeRows + row]);
    float p[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      p[i] = ProbabilityOf(mine[tile * kAttentionBlock + 8 * i], c, of_tile);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      out[tile * kAttentionBlock + 8 * i].bits = static_cast<uint16_t>(RoundPair(p[i], 0.0f));
      t = AddRn(t, p[i]);
    }
  }
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) {
    t = AddRn(t, __shfl_xor_sync(0xFFu << (threadIdx.x % 32 / 8 * 8), t, offset));
  }
  if (residue == 0) segment_sum[row] = t;
}

// O of the segment for the warp's eight columns of the quarter.
template <int kHeadDim>
__device__ __forceinline__ void WalkValues(uint32_t base, const float* alpha, int num_tiles,
                                           float (&o)[4]) {
  using L = Layout<kHeadDim>;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // Matrices of a step: rows 0-7 and 8-15 of the first eight keys, then of the next eight.
  const uint32_t rounded = base + (lane % 16) * kRoundedStride + lane / 16 * 16;
#pragma unroll 2
  for (int tile = 0; tile < num_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      o[i] = MulRn(o[i], alpha[tile * kDecodeRows + lane / 4 + i / 2 * 8]);
    }
#pragma unroll
    for (int pair = 0; pair < kAttentionBlock / 32; ++pair) {
      const int key = tile * kAttentionBlock + pair * 32;
      // Matrices: keys 0-7, 8-15, 16-23, 24-31 of the columns; transposed.
      uint32_t b[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                   : "r"(base + L::PlaceOfValues(key + lane, warp))
                   : "memory");
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        uint32_t p[4];
        LoadMatrices(rounded + (key + step * 16) * 2, p);
        ChainStep(o, p[0], p[1], p[2], p[3], b + 2 * step);
      }
    }
  }
}

template <int kHeadDim>
__global__ void __launch_bounds__(kDecodeThreads)
    SplitDecodeKernel(DeviceAttentionArgs a, int block_shift, int row_tiles,
                      DecodeScratch scratch) {
  using L = Layout<kHeadDim>;
  constexpr int kWarps = L::kWidth / 8;  // that have columns
  constexpr int64_t kPartial = kDecodeRows * (L::kWidth + 2);
  extern __shared__ __align__(1024) uint8_t shared[];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const AttentionSequence seq = a.sequences[blockIdx.z];
  const int num_keys = static_cast<int>(seq.num_keys);
  const int segment = static_cast<int>(blockIdx.x) / kParts;
  const int rank = static_cast<int>(blockIdx.x) % kParts;  // in the cluster
  const int kv_head = static_cast<int>(blockIdx.y) / row_tiles;
  const int first_row = static_cast<int>(blockIdx.y) % row_tiles * kDecodeRows;
  const int group = a.num_heads / a.num_kv_heads;
  // So do all CTAs of the cluster.
  if (segment * kAttentionSegment >= num_keys ||
      first_row >= static_cast<int>(seq.num_queries) * group) {
    return;
  }
  ArriveInCluster();
  const int num_rows = min(kDecodeRows, static_cast<int>(seq.num_queries) * group - first_row);
  const int num_segments = (num_keys + kAttentionSegment - 1) / kAttentionSegment;
  const int first_key = segment * kAttentionSegment;
  const int num_tiles =
      min(kTilesPerSegment, (num_keys - first_key + kAttentionBlock - 1) / kAttentionBlock);
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
  const uint32_t base = SharedAddress(shared);
#pragma unroll
  for (int i = 0; i < kAttentionSegment / kDecodeThreads; ++i) {
    const int key = static_cast<int>(threadIdx.x) + i * kDecodeThreads;
    key_rows[key] = keys.RowOf(first_key + key);
  }
  uint32_t q[kHeadDim / 16][4];
  int visible[2];
  LoadQueries<kHeadDim>(a, seq, kv_head, first_row, q, visible);
  __syncthreads();
  const int my_tile = rank * kTilesOfPart;
  uint32_t tiles[kTilesOfPart];
#pragma unroll
  for (int i = 0; i < kTilesOfPart; ++i) {
    tiles[i] = base + i * kTileBytes<kHeadDim>;
    CopyTile<kHeadDim, kDecodeThreads>(key_rows + (my_tile + i) * kAttentionBlock, a.k + kv_offset,
                                       a.kv_stride, tiles[i], static_cast<int>(threadIdx.x));
  }
  CommitCopies();
  constexpr int kChunks = L::kRowBytes / 16;
#pragma unroll 8
  for (int i = 0; i < kAttentionSegment * kChunks / kDecodeThreads; ++i) {
    const int index = i * kDecodeThreads + static_cast<int>(threadIdx.x);
    const int row = index / kChunks;
    const int32_t source = key_rows[row];
    CopyAsync16(base + L::PlaceOfValues(row, index % kChunks),
                a.v + kv_offset + static_cast<int64_t>(max(source, 0)) * a.kv_stride +
                    rank * L::kWidth + index % kChunks * 8,
                source >= 0);
  }
  CommitCopies();

  WaitForCopies<1>();
  __syncthreads();
  ScoreTiles<kHeadDim, kTilesOfPart>(q, tiles, first_key + my_tile * kAttentionBlock, visible,
                                     scores + my_tile * kAttentionBlock,
                                     warp_maxima + my_tile * kDecodeRows);
  WaitForCluster();  // all have begun
  __syncthreads();
  GiveScores<kHeadDim>(base, rank, num_rows);
  ArriveInCluster();
  WaitForCopies<0>();
  WaitForCluster();
  ShiftsOfTiles(warp_maxima, num_tiles, c, alpha, shift, segment_max);
  __syncthreads();
  RoundedProbabilities(scores, {num_rows, num_tiles}, c, alpha, shift,
                       reinterpret_cast<BFloat16*>(shared), segment_sum);
  __syncthreads();

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t tile_index =
      (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * kParts + rank;
  const int all_segments = static_cast<int>(gridDim.x) / kParts;
  float* const partials = scratch.partials + tile_index * all_segments * kPartial;
  float* const partial = partials + segment * kPartial;
  if (warp < kWarps) {
    float o[4] = {};
    WalkValues<kHeadDim>(base, alpha, num_tiles, o);
    const int column = warp * 8 + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane / 4 + 8 * r;
      const RowPlace place =
          PlaceOfRow(first_row + row, kv_head, group, static_cast<int>(seq.num_queries));
      const int64_t at = (seq.q_begin + place.query) * a.num_heads + place.head;
      if (num_segments > 1) {
        *reinterpret_cast<float2*>(partial + row * L::kWidth + column) =
            make_float2(o[2 * r], o[2 * r + 1]);
      } else if (place.is_there) {
        const float share = ReciprocalRn(segment_sum[row]);
        StoreRow<kHeadDim>(a, at, rank * L::kWidth + column, MulRn(o[2 * r], share),
                           MulRn(o[2 * r + 1], share));
        if (a.lse != nullptr && rank == 0 && warp == 0 && lane % 4 == 0) {
          a.lse[at] = LogSumExp(segment_max[row], segment_sum[row], a.scale);
        }
      }
    }
  }
  if (num_segments == 1) return;
  if (threadIdx.x < kDecodeRows) {
    partial[kDecodeRows * L::kWidth + threadIdx.x] = segment_max[threadIdx.x];
    partial[kDecodeRows * L::kWidth + kDecodeRows + threadIdx.x] = segment_sum[threadIdx.x];
  }
  if (!IsLastOf(num_segments, scratch.tickets + tile_index)) return;
  MergeSegments<kHeadDim, L::kWidth, kMergeBatch>(a, seq,
                                                  {.partials = partials,
                                                   .stride = kPartial,
                                                   .num_segments = num_segments,
                                                   .kv_head = kv_head,
                                                   .first_row = first_row,
                                                   .first_column = rank * L::kWidth});
}

template <int kHeadDim>
void Launch(const DeviceAttentionArgs& args, const DecodeScratch& scratch, cudaStream_t stream,
            LaunchOrder order) {
  const auto kernel = SplitDecodeKernel<kHeadDim>;
  constexpr size_t kShared = Layout<kHeadDim>::kBytes;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
            "attention, shared memory");
  const int tiles = RowTiles(args);
  LaunchKernel(
      {.grid = dim3(Segments(args) * kParts, args.num_kv_heads * tiles, args.num_sequences),
       .block = dim3(kDecodeThreads),
       .shared_bytes = kShared,
       .stream = stream,
       .order = order,
       .cluster = kParts},
      kernel, args, BlockShift(args), tiles, scratch);
}

}  // namespace

void AttentionDecodeSplit(const DeviceAttentionArgs& args, const DecodeScratch& scratch,
                          cudaStream_t stream, LaunchOrder order) {
  QT_CHECK(args.head_dim == 128, "no split decode for head_dim {}", args.head_dim);
  Launch<128>(args, scratch, stream, order);
}

}  // namespace quatrain::cuda
