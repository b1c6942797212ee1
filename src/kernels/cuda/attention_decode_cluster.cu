// Plan: where there are few keys, what counts is the number of waits in a row and of instructions
// between them. One cluster has all keys of 16 (query, head) rows, some of its CTAs a segment;
// where there are more keys, attention_decode_messages.cu takes them. A warp brings 16 keys and
// gives their scores to all CTAs of its segment, through their shared memory; each of these then
// has the probabilities of all keys of the segment and walks them with its part of the columns of
// v, a warp 16 columns, while other warps add up the rows. The CTAs of the first segment are given
// the outputs of the others and merge them in order.
//
// Products stand on the other side than in attention_decode.cu: keys or columns of v are the 16
// rows of a step, (query, head) rows its eight columns.
#include "kernels/cuda/attention_decode_scores.cuh"

namespace quatrain::cuda {
namespace decode_cluster {
namespace {

// O of the warp's 16 columns to shared memory.
template <class L>
__device__ __forceinline__ void KeepOutputs(uint8_t* shared, int columns,
                                            const float (&o)[L::kRows / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  auto* const out = reinterpret_cast<float*>(shared + L::kOutputs) + columns + lane / 4;
#pragma unroll
  for (int n = 0; n < L::kRows / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 8 * n + lane % 4 * 2 + i % 2;
      out[row * L::kOutputStride + i / 2 * 8] = o[n][i];
    }
  }
}

// Outputs by some warps, 16 columns each, sums by the others.
template <class L, class WaitFor>
__device__ __forceinline__ void WalkSegment(uint8_t* shared, int num_rows, int num_tiles,
                                            const WaitFor& wait_for) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < L::kOutputWarps) {
    float o[L::kRows / 8][4] = {};
    WalkValues<L>(shared, warp * 16, num_tiles, o, wait_for);
    return KeepOutputs<L>(shared, warp * 16, o);
  }
  for (int fours = warp - L::kOutputWarps; fours * 4 < num_rows;
       fours += L::kWarps - L::kOutputWarps) {
    SumRows<L>(shared, fours, num_tiles);
  }
}

// Where a thread's four columns of an output row lie: the row of the CTA, -1 if it has none, its
// place among all rows, the first column of the CTA's part. Known before it is needed, so that the
// end of the kernel is short.
struct OutputPlace {
  int row;
  int64_t place;
  int column;

  template <class L>
  static __device__ __forceinline__ OutputPlace Of(const DeviceAttentionArgs& a,
                                                   const AttentionSequence& seq,
                                                   const PartWork& work, const Cut& cut) {
    constexpr int kFours = L::kWidth / 4;
    static_assert(L::kRows * kFours <= L::kThreads);
    const int row = static_cast<int>(threadIdx.x) / kFours;
    OutputPlace of = {row < work.num_rows ? row : -1, PlaceOfRow(a, seq, work, cut, row),
                      static_cast<int>(threadIdx.x) % kFours * 4};
    asm volatile("" : "+l"(of.place));  // computed here
    return of;
  }
};

// Merges the row's segments, which are all there, and stores the thread's columns.
template <class L>
__device__ __forceinline__ void MergeAndStore(const DeviceAttentionArgs& a, const PartWork& work,
                                              const OutputPlace& of, const uint8_t* shared) {
  if (of.row < 0) return;
  const float c = MulRn(a.scale, kLog2E);
  MergedRow<4> merged;
#pragma unroll
  for (int segment = 0; segment < L::kSegments; ++segment) {
    if (segment * kAttentionSegment >= work.num_keys) break;
    const int row = segment * L::kRows + of.row;
    const float2 ends = reinterpret_cast<const float2*>(shared + L::kEnds)[row];
    float o[4];
    SetFour(o, *reinterpret_cast<const float4*>(shared + L::kOutputs +
                                                (row * L::kOutputStride + of.column) * 4));
    merged.Add(ends.x, ends.y, o, c);
  }
  StoreMerged<kHeadDim>(a, of.place, work.part * L::kWidth + of.column, merged);
}

// The thread's outputs, with the row's ends by one of its threads, to the CTA that has the first
// segment of the same columns.
template <class L>
__device__ __forceinline__ void GiveOutputs(const PartWork& work, const OutputPlace& of,
                                            const uint8_t* shared, uint32_t base) {
  if (of.row < 0) return;
  const uint32_t other = SharedOf(base, work.part);
  const uint32_t row = work.first_cta / L::kParts * L::kRows + of.row;
  const float4 o = *reinterpret_cast<const float4*>(shared + L::kOutputs +
                                                    (of.row * L::kOutputStride + of.column) * 4);
  const float four[4] = {o.x, o.y, o.z, o.w};
  GiveFour(other + L::kOutputs + (row * L::kOutputStride + of.column) * 4, four,
           other + L::kOutputsThere);
  if (of.column != 0) return;
  GivePair(other + L::kEnds + row * 8, reinterpret_cast<const float2*>(shared + L::kEnds)[of.row],
           other + L::kOutputsThere);
}

// Two barriers, at which gifts count: scores, and outputs of other segments; and those of values,
// where they are waited for.
template <class L>
__device__ __forceinline__ void PrepareBarriers(const PartWork& work, uint32_t base) {
  BarrierInit(base + L::kScoresThere, 1);
  BarrierInit(base + L::kOutputsThere, 1);
  if (L::kValuesWait) InitValueBarriers<L>(base);
  ExpectScores<L>(work, base);
  if (L::kSegments == 1 || work.first_cta > 0) return;
  const int others = (work.num_keys - 1) / kAttentionSegment;
  BarrierExpect(base + L::kOutputsThere, others * work.num_rows * (L::kWidth * 4 + 8));
}

template <int kParts, int kSegments, int kRows>
__global__ void __launch_bounds__(Layout<kParts, kSegments, kRows>::kThreads)
    ClusterDecodeKernel(const __grid_constant__ DeviceAttentionArgs a,
                        const __grid_constant__ Cut cut) {
  using L = Layout<kParts, kSegments, kRows>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  const AttentionSequence seq = LoadSequence(a.sequences + blockIdx.z);
  PartWork work = WorkOf<kParts, kRows>(seq, cut);
  // So do all CTAs of the cluster.
  if (work.num_keys <= 0 || work.num_rows <= 0) return EndWithoutWork();
  work.num_tiles = NumTilesOf(work);
  if (threadIdx.x == 0 && work.num_tiles > 0) PrepareBarriers<L>(work, base);
  ArriveInClusterAligned();
  if (work.num_tiles <= 0) return WaitForClusterAligned();
  // The segment's groups of keys in turn: all its CTAs have the same share.
  const int group = static_cast<int>(threadIdx.x) / 32 * kParts + work.part;
  const int first_key = work.first_key + group * kKeysOfGroup;
  const KeyRows keys = {seq.block_table, seq.kv_begin, cut.block_shift, work.num_keys};
  const GroupRows<L> rows(keys, work.first_key, group);
  if (cut.comes_first) PrefetchRows(a, work, rows.OfKeys(), first_key);
  WaitForPreviousKernel();
  const uint32_t my_keys = base + L::kKeysPlace + static_cast<int>(threadIdx.x) / 32 * kGroupBytes;
  CopyQueries<L>(a, seq, work, cut, base);
  CommitCopies();
  CopyKeys(a, work, rows.OfKeys(), first_key, my_keys);
  CommitCopies();
  const auto copy_values = [&] {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      CopyValues<L>(a, work, rows, i, base);
      if (L::kValuesWait) {
        ArriveWithCopies(base + L::kValuesThere +
                         GroupRows<L>::GroupOfValues(i) / kGroupsOfTile * 8);
      }
    }
    CommitCopies();
    // Not earlier: kernels that wait would bring their keys before those of the ones before them.
    LetNextKernelStart();
  };
  if (!L::kValuesWait) copy_values();
  const OutputPlace of = OutputPlace::Of<L>(a, seq, work, cut);
  const Visible<kRows / 8> visible(seq, work, cut);
  WaitForClusterAligned();  // all barriers are there
  constexpr int kBehindKeys = L::kValuesWait ? 0 : 1;
  WaitForCopies<1 + kBehindKeys>();
  __syncthreads();  // queries
  WaitForCopies<kBehindKeys>();
  __syncwarp();  // the warp's keys
  if (L::kValuesWait) copy_values();
  if (group < work.num_tiles * kGroupsOfTile) {
    ScoreGroup<L>(my_keys, visible, work, group, base);
  }
  BarrierWaitForCluster(base + L::kScoresThere);
  const float c = MulRn(a.scale, kLog2E);
  ShiftsOfSegment<L>(shared, work.num_tiles, c);
  __syncthreads();
  Probabilities<L>(shared, work.num_rows, c);
  if (!L::kValuesWait) WaitForCopies<0>();
  __syncthreads();
  WalkSegment<L>(shared, work.num_rows, work.num_tiles, [&](int tile) {
    if (L::kValuesWait) BarrierWait(base + L::kValuesThere + 8 * tile, 0);
  });
  WaitForCopies<0>();  // no thread ends before its copies
  __syncthreads();
  if (work.first_cta > 0) return GiveOutputs<L>(work, of, shared, base);
  if (kSegments > 1) BarrierWaitForCluster(base + L::kOutputsThere);
  MergeAndStore<L>(a, work, of, shared);
}

template <int kParts, int kSegments, int kRows>
void LaunchWith(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order) {
  using L = Layout<kParts, kSegments, kRows>;
  const auto kernel = ClusterDecodeKernel<kParts, kSegments, kRows>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kBytes),
            "attention, shared memory");
  const Cut cut = CutOf(args, order);
  LaunchKernel(
      {.grid = dim3(kParts * kSegments, args.num_kv_heads * cut.row_tiles, args.num_sequences),
       .block = dim3(L::kThreads),
       .shared_bytes = L::kBytes,
       .stream = stream,
       .order = order,
       .cluster = kParts * kSegments},
      kernel, args, cut);
}

template <int kParts, int kSegments>
void Launch(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order) {
  if (HasFewRows(args)) return LaunchWith<kParts, kSegments, kFewRows>(args, stream, order);
  LaunchWith<kParts, kSegments, kDecodeRows>(args, stream, order);
}

}  // namespace
}  // namespace decode_cluster

bool IsDecodedInClusters(const DeviceAttentionArgs& args) {
  const int64_t row_tiles = RowTilesOfAll(args);
  if (row_tiles == 0 || !decode_cluster::HasWholeGroups(args)) return false;
  // Multiprocessors for each row tile; every CTA has one of its own.
  const int64_t room = NumMultiprocessors() / row_tiles;
  const int segments = Segments(args);
  // Two segments have a cluster of eight, and so have three and four, but these have most of a
  // multiprocessor's shared memory: where a cluster of eight has one of its own each, not all that
  // the room is for are there at once.
  return room >= (segments == 1 ? 2 : segments == 2 ? 8 : 9) && segments <= 4;
}

void AttentionDecodeInClusters(const DeviceAttentionArgs& args, cudaStream_t stream,
                               LaunchOrder order) {
  using decode_cluster::Launch;
  const int64_t room = NumMultiprocessors() / RowTilesOfAll(args);
  const int segments = Segments(args);
  if (segments > 2) return Launch<2, 4>(args, stream, order);
  if (segments == 2) return Launch<4, 2>(args, stream, order);
  if (room >= 8) return Launch<8, 1>(args, stream, order);
  if (room >= 4) return Launch<4, 1>(args, stream, order);
  Launch<2, 1>(args, stream, order);
}

}  // namespace quatrain::cuda
