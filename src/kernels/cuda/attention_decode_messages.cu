// Plan: where there are more segments than one cluster takes, and room for a cluster of two or four
// for each, a cluster has a segment, as in attention_decode_cluster.cu. All that a CTA has to read
// is on its way early: a warp asks for its keys, and for its values as soon as the keys are there,
// so that scores and probabilities are ready long before the last values, which are walked tile by
// tile as they arrive.
//
// Segments meet in memory without a fence: a CTA leaves its sums as words that are never zero, and
// the CTA of a part that began last waits for those of the others and makes them zero again. The
// others have begun, so they end whatever room there is. Ends (maximum and sum) of a segment are
// known long before its outputs; so are the factors of the merge, then.
#include "kernels/cuda/attention_decode_scores.cuh"
#include "kernels/cuda/warp_arrival.cuh"

namespace quatrain::cuda {
namespace decode_cluster {
namespace {

constexpr int kAtOnce = 8;  // segments whose messages a thread waits for at once
constexpr int kMostSegments = 100;
// What a CTA leaves, in units of four words: outputs of 16 columns and eight rows, a unit a lane,
// for each warp that has outputs; then the ends of two rows a unit.
template <int kParts, int kRows>
struct Message {
  static constexpr int kOutputWarps = kHeadDim / kParts / 16;
  static constexpr int kEights = kRows / 8;
  static constexpr int kOutputUnits = kOutputWarps * kEights * 32;
  static constexpr int kUnits = kOutputUnits + kRows / 2;

  static __device__ __forceinline__ int Outputs(int warp, int eight) {
    return (warp * kEights + eight) * 32 + static_cast<int>(threadIdx.x) % 32;
  }
};

// Behind what all kernels in clusters have: a barrier for the factors, the ticket. In the place of
// keys, behind the probabilities: what merged rows are multiplied with, factors of all segments.
template <int kPartsOf, int kRowsOf>
struct MessageLayout : Layout<kPartsOf, 1, kRowsOf> {
  using Base = Layout<kPartsOf, 1, kRowsOf>;
  static constexpr int kShares = Base::kRounded + kRowsOf * Base::kRoundedStride;  // [kRows]
  static constexpr int kFactors = kShares + kRowsOf * 4;  // [segments][kRows][2]: old, new
  static_assert(kFactors % 16 == 0 && kFactors + kMostSegments * kRowsOf * 8 <= Base::kScores);
  static constexpr int kFactorsThere = Base::kBytes;
  static constexpr int kTicket = kFactorsThere + 8;
  static constexpr int kBytes = kTicket + 8;
};

// A number as a word that is not zero. The one NaN that this would make zero no instruction gives.
constexpr uint32_t kNoNumber = 0xFFFFFFFF;
__device__ __forceinline__ uint32_t WordOf(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits == kNoNumber ? 0x7FFFFFFF : bits) ^ kNoNumber;
}
__device__ __forceinline__ float NumberOf(uint32_t word) {
  return __uint_as_float(word ^ kNoNumber);
}
__device__ __forceinline__ void Leave(uint4* to, const uint4& unit) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(unit.x),
               "r"(unit.y), "r"(unit.z), "r"(unit.w)
               : "memory");
}
__device__ __forceinline__ uint4 LookAt(const uint4* from) {
  uint4 unit;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(unit.x), "=r"(unit.y), "=r"(unit.z), "=r"(unit.w)
               : "l"(from)
               : "memory");
  return unit;
}
__device__ __forceinline__ bool IsWhole(const uint4& unit) {
  return unit.x != 0 && unit.y != 0 && unit.z != 0 && unit.w != 0;
}

// Takes one unit of each of `count` segments, M::kUnits apart, when all are there: zero in memory
// then. All are looked at at once: one after the other each would be a wait of its own. Units past
// the last are those of the last.
template <class M>
__device__ __forceinline__ void TakeUnits(uint4* from, int count, uint4 (&units)[kAtOnce]) {
  bool are_whole;
  do {
    are_whole = true;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) units[i] = LookAt(from + min(i, count - 1) * M::kUnits);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) are_whole = are_whole && IsWhole(units[i]);
  } while (!are_whole);
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) Leave(from + min(i, count - 1) * M::kUnits, uint4{0, 0, 0, 0});
}

// The CTA that merges a part's columns of a row tile. Few instructions: a warp waits for each.
template <int kParts, int kRows>
struct Merger {
  using L = MessageLayout<kParts, kRows>;
  using M = Message<kParts, kRows>;
  uint4* messages;  // of all segments
  int num_segments, num_rows;
  uint8_t* shared;

  // By a warp, two lanes a unit and one a row: factors of every segment, what outputs are
  // multiplied with in the end; log-sum-exps where there is a place for them.
  __device__ __forceinline__ void Factors(const DeviceAttentionArgs& a,
                                          const AttentionSequence& seq, const PartWork& work,
                                          const Cut& cut) const {
    const int row = static_cast<int>(threadIdx.x) % 32;
    const float c = MulRn(a.scale, kLog2E);
    auto* const factors = reinterpret_cast<SegmentFactors*>(shared + L::kFactors) + row;
    float max = -INFINITY;
    float sum = 0.0f;
#pragma unroll 1
    for (int begin = 0; begin < num_segments; begin += kAtOnce) {
      uint4 units[kAtOnce] = {};
      const int count = min(kAtOnce, num_segments - begin);
      if (row < num_rows && row % 2 == 0) {
        TakeUnits<M>(messages + begin * M::kUnits + M::kOutputUnits + row / 2, count, units);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t other_max = __shfl_xor_sync(0xFFFFFFFFu, units[i].z, 1);
        const uint32_t other_sum = __shfl_xor_sync(0xFFFFFFFFu, units[i].w, 1);
        AddEnds(NumberOf(row % 2 == 0 ? units[i].x : other_max),
                NumberOf(row % 2 == 0 ? units[i].y : other_sum), c, i < count, &max, &sum,
                row < kRows && i < count ? factors + (begin + i) * kRows : nullptr);
      }
    }
    if (row < kRows) reinterpret_cast<float*>(shared + L::kShares)[row] = ReciprocalRn(sum);
    if (a.lse != nullptr && work.part == 0 && row < num_rows) {
      a.lse[PlaceOfRow(a, seq, work, cut, row)] = LogSumExp(max, sum, a.scale);
    }
  }

  // A negative old factor stands for a first segment, which is taken as it is, a negative new one
  // for a segment without a visible key.
  static __device__ __forceinline__ void AddEnds(float segment_max, float segment_sum, float c,
                                                 bool is_there, float* max, float* sum,
                                                 SegmentFactors* factors) {
    float new_max = *max;
    float new_sum = *sum;
    SegmentFactors f = MergeSegment(segment_max, segment_sum, c, &new_max, &new_sum);
    const bool is_first = *max == -INFINITY;
    const bool is_seen = is_there && segment_max != -INFINITY;
    if (is_first) f.old_factor = -1.0f;
    if (!is_seen) f = {0.0f, -1.0f};
    *max = is_seen ? new_max : *max;
    *sum = !is_seen ? *sum : is_first ? segment_sum : new_sum;
    if (factors != nullptr) *factors = f;
  }
  static __device__ __forceinline__ float Merged(float old, uint32_t word,
                                                 const SegmentFactors& f) {
    const float of_segment = NumberOf(word);
    const float merged = MergeOutput(old, of_segment, f);
    return f.new_factor < 0.0f ? old : f.old_factor < 0.0f ? of_segment : merged;
  }

  // By as many warps as have outputs, two rows of each eight and two columns, eight apart, a lane.
  __device__ __forceinline__ void Outputs(const DeviceAttentionArgs& a,
                                          const AttentionSequence& seq, const PartWork& work,
                                          const Cut& cut, int warp) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t base = SharedAddress(shared);
#pragma unroll 1
    for (int first_row = lane % 4 * 2; first_row < num_rows; first_row += 8) {
      uint4* const from = messages + M::Outputs(warp, first_row / 8);
      const auto* const factors =
          reinterpret_cast<const float4*>(shared + L::kFactors) + first_row / 2;
      const int column = work.part * L::kWidth + warp * 16 + lane / 4;
      int64_t place[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        place[r] = PlaceOfRow(a, seq, work, cut, first_row + r) * kHeadDim + column;
        asm volatile("" : "+l"(place[r]));  // computed here
      }
      float o[4] = {};
#pragma unroll 1
      for (int begin = 0; begin < num_segments; begin += kAtOnce) {
        uint4 units[kAtOnce];
        const int count = min(kAtOnce, num_segments - begin);
        TakeUnits<M>(from + begin * M::kUnits, count, units);
        if (begin == 0) BarrierWait(base + L::kFactorsThere, 0);
          // Without branches, so that all factors are on their way at once.
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const float4 f = factors[(begin + min(i, count - 1)) * (kRows / 2)];
          const SegmentFactors low = {f.x, i < count ? f.y : -1.0f};
          const SegmentFactors high = {f.z, i < count ? f.w : -1.0f};
          o[0] = Merged(o[0], units[i].x, low);
          o[1] = Merged(o[1], units[i].y, high);
          o[2] = Merged(o[2], units[i].z, low);
          o[3] = Merged(o[3], units[i].w, high);
        }
      }
      const float2 share = reinterpret_cast<const float2*>(shared + L::kShares)[first_row / 2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (first_row + r >= num_rows) continue;
        const float of_row = r == 0 ? share.x : share.y;
        const uint32_t pair = RoundPair(MulRn(o[r], of_row), MulRn(o[2 + r], of_row));
        auto* const out = reinterpret_cast<uint16_t*>(a.out + place[r]);
        out[0] = static_cast<uint16_t>(pair);
        out[8] = static_cast<uint16_t>(pair >> 16);
      }
    }
  }
};

// Barriers for gifts, factors and values.
template <class L>
__device__ __forceinline__ void PrepareBarriers(const PartWork& work, uint32_t base) {
  BarrierInit(base + L::kScoresThere, 1);
  BarrierInit(base + L::kFactorsThere, ArrivalsOf(1));
  InitValueBarriers<L>(base);
  ExpectScores<L>(work, base);
}

template <int kParts, int kRows>
__global__ void __launch_bounds__(MessageLayout<kParts, kRows>::kThreads)
    MessageDecodeKernel(const __grid_constant__ DeviceAttentionArgs a,
                        const __grid_constant__ Cut cut, unsigned* tickets, uint4* all_messages) {
  using L = MessageLayout<kParts, kRows>;
  using M = Message<kParts, kRows>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const AttentionSequence seq = LoadSequence(a.sequences + blockIdx.z);
  const int segment = static_cast<int>(blockIdx.x) / kParts;
  PartWork work = WorkOf<kParts, kRows>(seq, cut);
  work.first_cta = 0;  // the cluster has one segment
  // So do all CTAs of the cluster.
  if (work.num_keys <= work.first_key || work.num_rows <= 0) return EndWithoutWork();
  work.num_tiles = NumTilesOf(work);
  const int num_segments = (work.num_keys + kAttentionSegment - 1) / kAttentionSegment;
  const int64_t tile_index =
      (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * kParts + work.part;
  uint4* const messages = all_messages + tile_index * (gridDim.x / kParts) * M::kUnits;
  if (thread == 0) PrepareBarriers<L>(work, base);
  ArriveInClusterAligned();
  const int group = warp * kParts + work.part;
  const int first_key = work.first_key + group * kKeysOfGroup;
  const KeyRows keys = {seq.block_table, seq.kv_begin, cut.block_shift, work.num_keys};
  const GroupRows<L> rows(keys, work.first_key, group);
  if (cut.comes_first) PrefetchRows(a, work, rows.OfKeys(), first_key);
  WaitForPreviousKernel();
  // Before the keys, behind which it would take as long as they do.
  unsigned ticket = 0;
  if (thread == L::kThreads - 1) ticket = atomicInc(tickets + tile_index, num_segments - 1);
  const uint32_t my_keys = base + L::kKeysPlace + warp * kGroupBytes;
  CopyQueries<L>(a, seq, work, cut, base);
  CommitCopies();
  CopyKeys(a, work, rows.OfKeys(), first_key, my_keys);
  CommitCopies();
  const auto copy_values = [&] {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      CopyValues<L>(a, work, rows, i, base);
      ArriveWithCopies(base + L::kValuesThere + GroupRows<L>::GroupOfValues(i) / kGroupsOfTile * 8);
    }
    CommitCopies();
  };
  const Visible<kRows / 8> visible(seq, work, cut);
  // Two groups of copies, or three.
  constexpr int kBehindKeys = L::kValuesWait ? 0 : 1;
  if (!L::kValuesWait) {
    WaitForClusterAligned();
    __syncthreads();  // barriers are there
    copy_values();
  }
  WaitForCopies<1 + kBehindKeys>();
  if (L::kValuesWait) WaitForClusterAligned();
  __syncthreads();  // queries
  WaitForCopies<kBehindKeys>();
  __syncwarp();  // the warp's keys
  if (L::kValuesWait) copy_values();
  // Not earlier: kernels that wait would bring their keys before those of the ones before them.
  LetNextKernelStart();
  if (group < work.num_tiles * kGroupsOfTile) {
    ScoreGroup<L>(my_keys, visible, work, group, base);
  }
  if (thread == L::kThreads - 1) *reinterpret_cast<unsigned*>(shared + L::kTicket) = ticket;
  BarrierWaitForCluster(base + L::kScoresThere);
  const float c = MulRn(a.scale, kLog2E);
  ShiftsOfSegment<L>(shared, work.num_tiles, c);
  __syncthreads();
  Probabilities<L>(shared, work.num_rows, c);
  __syncthreads();
  const bool merges = *reinterpret_cast<const unsigned*>(shared + L::kTicket) ==
                      static_cast<unsigned>(num_segments) - 1;
  const Merger<kParts, kRows> merger = {messages, num_segments, work.num_rows, shared};
  uint4* const message = messages + segment * M::kUnits;
  // Some warps have outputs, as many the sums, and merge; the next one has the factors.
  constexpr int kWithFactors = 2 * L::kOutputWarps;
  static_assert(kWithFactors < L::kWarps);
  if (warp < L::kOutputWarps) {
    float o[kRows / 8][4] = {};
    WalkValues<L>(shared, warp * 16, work.num_tiles, o,
                  [&](int tile) { BarrierWait(base + L::kValuesThere + 8 * tile, 0); });
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      if (8 * n + thread % 4 * 2 >= work.num_rows) break;
      Leave(message + M::Outputs(warp, n),
            make_uint4(WordOf(o[n][0]), WordOf(o[n][1]), WordOf(o[n][2]), WordOf(o[n][3])));
    }
  } else if (warp < kWithFactors) {
    for (int fours = warp - L::kOutputWarps; fours * 4 < work.num_rows; fours += L::kOutputWarps) {
      SumRows<L>(shared, fours, work.num_tiles);
      __syncwarp();
      const int pair = fours * 2 + thread % 32;
      if (thread % 32 >= 2 || pair * 2 >= work.num_rows) continue;
      const float4 ends = reinterpret_cast<const float4*>(shared + L::kEnds)[pair];
      Leave(message + M::kOutputUnits + pair,
            make_uint4(WordOf(ends.x), WordOf(ends.y), WordOf(ends.z), WordOf(ends.w)));
    }
    if (merges) merger.Outputs(a, seq, work, cut, warp - L::kOutputWarps);
  } else if (warp == kWithFactors && merges) {
    // Before its own values are there a look at messages would take as long as they do.
    BarrierWait(base + L::kValuesThere + 8 * (work.num_tiles - 1), 0);
    merger.Factors(a, seq, work, cut);
    __syncwarp();
    ArriveAsWarp(base + L::kFactorsThere, thread % 32);
  }
  WaitForCopies<0>();  // no thread ends before its copies
}

template <int kParts, int kRows>
void Launch(const DeviceAttentionArgs& args, const DecodeScratch& scratch, cudaStream_t stream,
            LaunchOrder order) {
  using L = MessageLayout<kParts, kRows>;
  const auto kernel = MessageDecodeKernel<kParts, kRows>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kBytes),
            "attention, shared memory");
  const Cut cut = CutOf(args, order);
  LaunchKernel(
      {.grid = dim3(kParts * Segments(args), args.num_kv_heads * cut.row_tiles, args.num_sequences),
       .block = dim3(L::kThreads),
       .shared_bytes = L::kBytes,
       .stream = stream,
       .order = order,
       .cluster = kParts},
      kernel, args, cut, scratch.tickets, scratch.messages);
}

// CTAs that share a segment, each with a multiprocessor of its own; 0 if there is no room. Four
// where two would leave three quarters of the multiprocessors idle.
int PartsOf(const DeviceAttentionArgs& args) {
  const int64_t row_tiles = RowTilesOfAll(args);
  if (row_tiles == 0 || !HasWholeGroups(args) || IsDecodedInClusters(args)) return 0;
  const int64_t room = NumMultiprocessors() / row_tiles;
  const int segments = Segments(args);
  if (segments < 2 || segments > kMostSegments || room < 2 * segments) return 0;
  return room >= 8 * segments ? 4 : 2;
}

template <int kParts>
void LaunchFor(const DeviceAttentionArgs& args, const DecodeScratch& scratch, cudaStream_t stream,
               LaunchOrder order) {
  if (HasFewRows(args)) return Launch<kParts, kFewRows>(args, scratch, stream, order);
  Launch<kParts, kDecodeRows>(args, scratch, stream, order);
}

}  // namespace
}  // namespace decode_cluster

bool IsDecodedByMessages(const DeviceAttentionArgs& args) {
  return decode_cluster::PartsOf(args) > 0;
}

int64_t MessageBytes() {
  // Every CTA has a multiprocessor.
  using decode_cluster::Message;
  constexpr int kUnits = Message<2, kDecodeRows>::kUnits;
  static_assert(kUnits >= Message<4, kDecodeRows>::kUnits);
  return (int64_t{NumMultiprocessors()} * kUnits * 16 + 255) / 256 * 256;
}

void AttentionDecodeByMessages(const DeviceAttentionArgs& args, const DecodeScratch& scratch,
                               cudaStream_t stream, LaunchOrder order) {
  if (decode_cluster::PartsOf(args) == 4) {
    return decode_cluster::LaunchFor<4>(args, scratch, stream, order);
  }
  decode_cluster::LaunchFor<2>(args, scratch, stream, order);
}

}  // namespace quatrain::cuda
