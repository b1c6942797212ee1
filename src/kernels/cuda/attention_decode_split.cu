// Plan: where there are few segments, four CTAs of a cluster share one, or two do, so that more
// multiprocessors read. Each has the scores of its part of the eight tiles and gives them to the
// others; then each walks the whole segment with its part of the columns of v. Nothing waits for
// room: all copies are under way at once, a box a page. The last CTA of a part merges the segments
// in order.
#include <algorithm>

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/tensor_map.h"

namespace quatrain::cuda {
namespace {

constexpr int kHeadDim = 128;
constexpr int kRoundedStride = (kAttentionSegment + 8) * 2;  // bytes; rows start 4 banks apart
constexpr int kMergeBatch = 8;

// Shared memory: keys, where the probabilities lie later, a part of the columns of v, the
// segment's, two barriers.
template <int kParts>
struct Layout {
  static constexpr int kTiles = kTilesPerSegment / kParts;  // whose scores a CTA has
  static constexpr int kWidth = kHeadDim / kParts;          // columns of v
  static constexpr int kRowBytes = 2 * kWidth;
  static constexpr int kValues = kTiles * kTileBytes<kHeadDim>;
  using Segment = SegmentLayout<kValues + kAttentionSegment * kRowBytes>;
  static constexpr int kKeysThere = Segment::kBytes;
  static constexpr int kValuesThere = kKeysThere + 8;
  static constexpr int kBytes = kKeysThere + 16;
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
template <int kParts>
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
template <int kParts>
__device__ __forceinline__ void GiveScores(uint32_t base, int rank, int num_rows) {
  using L = Layout<kParts>;
  constexpr int kWordsOfRow = L::kTiles * kAttentionBlock / 4;
  const int first = rank * L::kTiles;
  for (int index = static_cast<int>(threadIdx.x); index < num_rows * kWordsOfRow;
       index += kDecodeThreads) {
    const int row = index / kWordsOfRow;
    const int word = index % kWordsOfRow;
    GiveToOthers<kParts>(
        base + L::Segment::kScores + (row * kScoreStride + first * kAttentionBlock + word * 4) * 4,
        rank);
  }
  constexpr int kWordsOfWarp = L::kTiles * kDecodeRows / 4;
  if (threadIdx.x < 4 * kWordsOfWarp) {
    const int warp = static_cast<int>(threadIdx.x) / kWordsOfWarp;
    const int word = static_cast<int>(threadIdx.x) % kWordsOfWarp;
    GiveToOthers<kParts>(base + L::Segment::kWarpMaxima +
                             ((warp * kTilesPerSegment + first) * kDecodeRows + word * 4) * 4,
                         rank);
  }
}

// How pages are copied, a box each and panel of k or part of v.
struct PageCopies {
  CUtensorMap k, v;
  int box_rows;  // 0: no boxes
  int block_shift;
  bool comes_first;  // to the L2, while the kernel before runs: where this one finds room beside it
};

// What a CTA copies of the segment that begins at first_key.
struct PartWork {
  int first_key, num_keys, kv_head, rank;
};

// By one warp: all boxes of the CTA's keys and of its part of v that begin before num_keys. What
// lies in a page past the last key comes too; pages past it do not.
template <int kParts>
struct PageBoxes {
  using L = Layout<kParts>;
  static constexpr int kPanels = kHeadDim / 64;
  static constexpr int kKeysOfPart = L::kTiles * kAttentionBlock;
  const PageCopies& copies;
  const KeyRows& keys;
  int first_key, part_key, key_column, value_column, key_boxes, value_boxes;

  __device__ PageBoxes(const PageCopies& all, const KeyRows& of, const PartWork& work)
      : copies(all), keys(of), first_key(work.first_key) {
    const int shift = 31 - __clz(all.box_rows);
    const auto boxes_of = [&](int first, int count) {
      return (min(count, max(0, work.num_keys - first)) + all.box_rows - 1) >> shift;
    };
    part_key = work.first_key + work.rank * kKeysOfPart;
    key_boxes = boxes_of(part_key, kKeysOfPart);
    value_boxes = boxes_of(work.first_key, kAttentionSegment);
    key_column = work.kv_head * kHeadDim;
    value_column = key_column + work.rank * L::kWidth;
  }

  // Nothing of it is read before the kernel before this one has ended.
  __device__ __forceinline__ void Prefetch() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int i = lane; i < key_boxes * kPanels; i += 32) {
      PrefetchBox(&copies.k, key_column + i % kPanels * 64,
                  keys.RowOf(part_key + i / kPanels * copies.box_rows));
    }
    for (int i = lane; i < value_boxes; i += 32) {
      PrefetchBox(&copies.v, value_column, keys.RowOf(first_key + i * copies.box_rows));
    }
  }

  __device__ __forceinline__ void Copy(uint32_t base) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int rows = copies.box_rows;
    if (lane == 0) {
      BarrierExpect(base + L::kKeysThere, key_boxes * rows * kHeadDim * 2);
      BarrierExpect(base + L::kValuesThere, value_boxes * rows * L::kRowBytes);
    }
    __syncwarp();
    for (int i = lane; i < key_boxes * kPanels; i += 32) {
      const int row = i / kPanels * rows;
      const int panel = i % kPanels;
      CopyBox(base + row / kAttentionBlock * kTileBytes<kHeadDim> + panel * kPanelBytes +
                  row % kAttentionBlock * 128,
              &copies.k, key_column + panel * 64, keys.RowOf(part_key + row), base + L::kKeysThere);
    }
    for (int i = lane; i < value_boxes; i += 32) {
      CopyBox(base + L::kValues + i * rows * L::kRowBytes, &copies.v, value_column,
              keys.RowOf(first_key + i * rows), base + L::kValuesThere);
    }
  }
};

// Without boxes: the rows of the segment's keys, -1 past the end; then 16 bytes at a time, k first.
__device__ __forceinline__ void FindRows(const KeyRows& keys, int first_key, int32_t* key_rows) {
#pragma unroll
  for (int i = 0; i < kAttentionSegment / kDecodeThreads; ++i) {
    const int key = static_cast<int>(threadIdx.x) + i * kDecodeThreads;
    key_rows[key] = keys.RowOf(first_key + key);
  }
}
template <int kParts>
__device__ __forceinline__ void CopyRows(const DeviceAttentionArgs& a, const PartWork& work,
                                         const int32_t* key_rows, uint32_t base) {
  using L = Layout<kParts>;
  constexpr int kChunks = L::kRowBytes / 16;
  const int64_t kv_offset = static_cast<int64_t>(work.kv_head) * kHeadDim;
#pragma unroll
  for (int i = 0; i < L::kTiles; ++i) {
    CopyTile<kHeadDim, kDecodeThreads>(
        key_rows + (work.rank * L::kTiles + i) * kAttentionBlock, a.k + kv_offset, a.kv_stride,
        base + i * kTileBytes<kHeadDim>, static_cast<int>(threadIdx.x));
  }
  CommitCopies();
#pragma unroll 8
  for (int i = 0; i < kAttentionSegment * kChunks / kDecodeThreads; ++i) {
    const int index = i * kDecodeThreads + static_cast<int>(threadIdx.x);
    const int row = index / kChunks;
    const int32_t source = key_rows[row];
    CopyAsync16(base + L::PlaceOfValues(row, index % kChunks),
                a.v + kv_offset + static_cast<int64_t>(max(source, 0)) * a.kv_stride +
                    work.rank * L::kWidth + index % kChunks * 8,
                source >= 0);
  }
  CommitCopies();
}

// Rows of v past the last key, up to the end of its tile, become zero.
template <int kParts>
__device__ __forceinline__ void ClearValues(int num_rows, uint32_t base) {
  using L = Layout<kParts>;
  constexpr int kChunks = L::kRowBytes / 16;
  const int end = (num_rows + kAttentionBlock - 1) / kAttentionBlock * kAttentionBlock;
  for (int i = num_rows * kChunks + static_cast<int>(threadIdx.x); i < end * kChunks;
       i += kDecodeThreads) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(base + L::kValues + i * 16), "r"(0)
                 : "memory");
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

// O of the segment for the warp's share of the columns, eight at a time.
template <int kParts>
__device__ __forceinline__ void WalkValues(uint32_t base, const float* alpha, int num_tiles,
                                           float (&o)[Layout<kParts>::kWidth / 32][4]) {
  using L = Layout<kParts>;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // Matrices of a step: rows 0-7 and 8-15 of the first eight keys, then of the next eight.
  const uint32_t rounded = base + (lane % 16) * kRoundedStride + lane / 16 * 16;
#pragma unroll 2
  for (int tile = 0; tile < num_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float scale = alpha[tile * kDecodeRows + lane / 4 + i / 2 * 8];
      for (auto& eight : o) eight[i] = MulRn(eight[i], scale);
    }
#pragma unroll
    for (int pair = 0; pair < kAttentionBlock / 32; ++pair) {
      const int key = tile * kAttentionBlock + pair * 32;
      uint32_t p[2][4];
      LoadMatrices(rounded + key * 2, p[0]);
      LoadMatrices(rounded + key * 2 + 32, p[1]);
#pragma unroll
      for (int n = 0; n < L::kWidth / 32; ++n) {
        // Matrices: keys 0-7, 8-15, 16-23, 24-31 of the columns; transposed.
        uint32_t b[4];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                     : "r"(base + L::PlaceOfValues(key + lane, warp * (L::kWidth / 32) + n))
                     : "memory");
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          ChainStep(o[n], p[step][0], p[step][1], p[step][2], p[step][3], b + 2 * step);
        }
      }
    }
  }
}

template <int kParts>
__global__ void __launch_bounds__(kDecodeThreads)
    SplitDecodeKernel(const __grid_constant__ DeviceAttentionArgs a,
                      const __grid_constant__ PageCopies copies, int row_tiles,
                      DecodeScratch scratch) {
  using L = Layout<kParts>;
  constexpr int64_t kPartial = kDecodeRows * (L::kWidth + 2);
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  LetNextKernelStart();
  if (threadIdx.x == 0) {
    BarrierInit(base + L::kKeysThere, 1);
    BarrierInit(base + L::kValuesThere, 1);
    FenceForCopies();
  }
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
  const KeyRows keys = {seq.block_table, seq.kv_begin, copies.block_shift, num_keys};
  const float c = MulRn(a.scale, kLog2E);
  auto* scores = reinterpret_cast<float*>(shared + L::Segment::kScores);
  auto* warp_maxima = reinterpret_cast<float*>(shared + L::Segment::kWarpMaxima);
  auto* alpha = reinterpret_cast<float*>(shared + L::Segment::kAlpha);
  auto* shift = reinterpret_cast<float*>(shared + L::Segment::kShift);
  auto* segment_max = reinterpret_cast<float*>(shared + L::Segment::kMax);
  auto* segment_sum = reinterpret_cast<float*>(shared + L::Segment::kSum);
  auto* key_rows = reinterpret_cast<int32_t*>(shared + L::Segment::kKeyRows);
  const bool has_boxes = copies.box_rows > 0 && seq.block_table != nullptr;
  const PartWork part = {first_key, num_keys, kv_head, rank};
  const PageBoxes<kParts> boxes(copies, keys, part);
  if (!has_boxes) {
    FindRows(keys, first_key, key_rows);
  } else if (copies.comes_first && threadIdx.x < 32) {
    boxes.Prefetch();
  }
  WaitForPreviousKernel();
  if (has_boxes && threadIdx.x < 32) boxes.Copy(base);
  uint32_t q[kHeadDim / 16][4];
  int visible[2];
  LoadQueries<kHeadDim>(a, seq, kv_head, first_row, q, visible);
  __syncthreads();
  const int my_tile = rank * L::kTiles;
  uint32_t tiles[L::kTiles];
#pragma unroll
  for (int i = 0; i < L::kTiles; ++i) tiles[i] = base + i * kTileBytes<kHeadDim>;
  if (has_boxes) {
    BarrierWait(base + L::kKeysThere, 0);
  } else {
    CopyRows<kParts>(a, part, key_rows, base);
    WaitForCopies<1>();
    __syncthreads();
  }
  ScoreTiles<kHeadDim, L::kTiles>(q, tiles, first_key + my_tile * kAttentionBlock, visible,
                                  scores + my_tile * kAttentionBlock,
                                  warp_maxima + my_tile * kDecodeRows);
  WaitForCluster();  // all have begun
  __syncthreads();
  GiveScores<kParts>(base, rank, num_rows);
  ArriveInCluster();
  WaitForCopies<0>();
  WaitForCluster();
  if (has_boxes) {
    BarrierWait(base + L::kValuesThere, 0);
    if (num_keys - first_key < num_tiles * kAttentionBlock) {
      ClearValues<kParts>(num_keys - first_key, base);
    }
  }
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
  float o[L::kWidth / 32][4] = {};
  WalkValues<kParts>(base, alpha, num_tiles, o);
  const int column = warp * (L::kWidth / 4) + lane % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
    const RowPlace place =
        PlaceOfRow(first_row + row, kv_head, group, static_cast<int>(seq.num_queries));
    if (!place.is_there) continue;
    const int64_t at = (seq.q_begin + place.query) * a.num_heads + place.head;
    const float share = ReciprocalRn(segment_sum[row]);
#pragma unroll
    for (int n = 0; n < L::kWidth / 32; ++n) {
      if (num_segments > 1) {
        *reinterpret_cast<float2*>(partial + row * L::kWidth + column + 8 * n) =
            make_float2(o[n][2 * r], o[n][2 * r + 1]);
      } else {
        StoreRow<kHeadDim>(a, at, rank * L::kWidth + column + 8 * n, MulRn(o[n][2 * r], share),
                           MulRn(o[n][2 * r + 1], share));
      }
    }
    if (num_segments == 1 && a.lse != nullptr && rank == 0 && warp == 0 && lane % 4 == 0) {
      a.lse[at] = LogSumExp(segment_max[row], segment_sum[row], a.scale);
    }
  }
  if (num_segments == 1) return;
  if (threadIdx.x < num_rows) {
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

template <int kParts>
void Launch(const DeviceAttentionArgs& args, const DecodeScratch& scratch, cudaStream_t stream,
            LaunchOrder order) {
  const auto kernel = SplitDecodeKernel<kParts>;
  constexpr size_t kShared = Layout<kParts>::kBytes;
  PageCopies copies = {};
  copies.block_shift = BlockShift(args);
  copies.comes_first = kParts == 4 && order == LaunchOrder::kOverlap;
  if (args.block_size >= 8) {  // eight rows are what the swizzle repeats after
    copies.box_rows = std::min(args.block_size, kAttentionBlock);
    // How many rows there are is not known here; boxes stay within the pages.
    DeviceMatrix matrix = {args.k, int64_t{1} << 31,
                           static_cast<int64_t>(args.num_kv_heads) * kHeadDim, args.kv_stride};
    copies.k = BoxesOf(matrix, copies.box_rows);
    matrix.data = args.v;
    copies.v =
        kParts == 4 ? NarrowBoxesOf(matrix, copies.box_rows) : BoxesOf(matrix, copies.box_rows);
  }
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
      kernel, args, copies, tiles, scratch);
}

}  // namespace

void AttentionDecodeSplit(const DeviceAttentionArgs& args, int num_parts,
                          const DecodeScratch& scratch, cudaStream_t stream, LaunchOrder order) {
  QT_CHECK(args.head_dim == 128, "no split decode for head_dim {}", args.head_dim);
  if (num_parts == 4) return Launch<4>(args, scratch, stream, order);
  QT_CHECK(num_parts == 2, "no split decode in {} parts", num_parts);
  Launch<2>(args, scratch, stream, order);
}

}  // namespace quatrain::cuda
