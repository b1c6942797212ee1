// Plan: a warpgroup owns 64 queries of one head; a CTA of one or two of them walks the keys in
// tiles of
// 64. Scores of the next tile run on the tensor cores while this tile's softmax runs on the others:
//
//   copy K(b+2), V(b+1)   issue S(b+1) = Q K(b+1)   softmax S(b) -> P   O = O alpha + P V(b)   wait
//
// Q lies in registers; P goes from the accumulators' layout to the operand's without a move. Every
// 512 keys (O, m, t) is merged into the row's total, which waits in shared memory, a private word
// per thread and register.
//
// The compiler serialises products whose accumulators it sees touched under a condition, or in
// flight around the loop; hence the walk in pairs, and no shortcut for a factor of 1.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kRows = 64;  // of a warpgroup

// B operand: 64 rows of 128 bytes, swizzled; `address` points at the first byte of the k16 step.
__device__ __forceinline__ uint64_t OperandOf(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 >> 4;
  return (uint64_t{1} << 62) | (kEightRows << 32) | (kEightRows << 16) |
         ((address & 0x3FFFFu) >> 4);
}

// d (64 x 64) = a (64 x 16) b (16 x 64) + d, or without d if !accumulate. kTransposed: b's rows are
// k.
template <int kTransposed>
__device__ __forceinline__ void Product(float (&d)[32], const uint32_t* a, uint64_t b,
                                        int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
      "%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransposed));
}

// A thread's two rows (g and g + 8 of its warp's 16): what it keeps of the segment and of the
// whole.
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
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = row.max[r];
#pragma unroll
    for (int i = 0; i < 16; ++i) largest = fmaxf(largest, s[i / 2 * 4 + 2 * r + i % 2]);
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
    const SoftmaxShift shift = ShiftOf(row.max[r], largest, c);
    row.max[r] = largest;
    alpha[r] = shift.alpha;
    row.partial[r][0] = MulRn(row.partial[r][0], shift.alpha);
    row.partial[r][1] = MulRn(row.partial[r][1], shift.alpha);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& place = s[i / 2 * 4 + 2 * r + i % 2];
      place = ProbabilityOf(place, c, shift.shift);
      row.partial[r][i % 2] = AddRn(row.partial[r][i % 2], place);
    }
  }
}

// End of a segment: into the totals, O's in shared memory.
template <int kPanels, int kThreads>
__device__ __forceinline__ void MergeRows(float (&o)[kPanels][32], const SegmentState& row, float c,
                                          RowTotals& totals, float* total) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = AddRn(row.partial[r][0], row.partial[r][1]);
    sum = AddRn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 1));
    sum = AddRn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, 2));
    const bool is_first = totals.max[r] == -INFINITY;
    const bool is_seen = row.max[r] != -INFINITY;
    SegmentFactors f = {0.0f, 1.0f};
    if (is_seen && is_first) {
      totals.max[r] = row.max[r];
      totals.sum[r] = sum;
    } else if (is_seen) {
      f = MergeSegment(row.max[r], sum, c, &totals.max[r], &totals.sum[r]);
    }
#pragma unroll
    for (int i = 0; i < 16 * kPanels; ++i) {
      const int reg = i / 2 * 4 + 2 * r + i % 2;
      float& place = total[reg * kThreads + threadIdx.x];
      float& mine = o[reg / 32][reg % 32];
      if (is_seen) place = is_first ? mine : MergeOutput(place, mine, f);
      mine = 0.0f;
    }
  }
}

template <int kHeadDim>
__device__ __forceinline__ void LoadQueryRow(const BFloat16* source, int r,
                                             uint32_t (&q)[kHeadDim / 16][4]) {
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    q[step][r] = *reinterpret_cast<const uint32_t*>(source + step * 16);
    q[step][2 + r] = *reinterpret_cast<const uint32_t*>(source + step * 16 + 8);
  }
}

// out and log-sum-exp of the thread's two rows, `query` and query + 8.
template <int kHeadDim, int kThreads>
__device__ __forceinline__ void WriteRows(const DeviceAttentionArgs& a,
                                          const AttentionSequence& seq, int query, int head,
                                          const RowTotals& totals, const float* total) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (query + 8 * r >= static_cast<int>(seq.num_queries)) continue;
    const float share = ReciprocalRn(totals.sum[r]);
    const int64_t place = (seq.q_begin + query + 8 * r) * a.num_heads + head;
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const float low = total[(4 * i + 2 * r) * kThreads + threadIdx.x];
      const float high = total[(4 * i + 2 * r + 1) * kThreads + threadIdx.x];
      *reinterpret_cast<uint32_t*>(a.out + place * kHeadDim + 8 * i + lane % 4 * 2) =
          RoundPair(MulRn(low, share), MulRn(high, share));
    }
    if (a.lse != nullptr && lane % 4 == 0) {
      a.lse[place] = LogSumExp(totals.max[r], totals.sum[r], a.scale);
    }
  }
}

template <int kHeadDim, int kGroups>
__global__ void __launch_bounds__(kGroups * 128, 2 / kGroups)
    PrefillKernel(DeviceAttentionArgs a, int block_shift) {
  constexpr int kThreads = kGroups * 128;
  constexpr int kPanels = kHeadDim / 64;
  constexpr int kSteps = kHeadDim / 16;
  constexpr int kTile = kTileBytes<kHeadDim>;
  constexpr bool kOverlaps = kHeadDim <= 128;  // 256 has no registers for a second tile of scores
  constexpr int kAhead = kOverlaps ? 1 : 0;
  extern __shared__ __align__(1024) uint8_t shared[];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const AttentionSequence seq = a.sequences[blockIdx.z];
  const int num_queries = static_cast<int>(seq.num_queries);
  const int num_keys = static_cast<int>(seq.num_keys);
  // The longest rows first.
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kGroups * kRows;
  if (first_query >= num_queries) return;
  const int head = blockIdx.y;
  const int64_t kv_offset = static_cast<int64_t>(head / (a.num_heads / a.num_kv_heads)) * kHeadDim;
  const KeyRows keys = {seq.block_table, seq.kv_begin, block_shift, num_keys};
  const float c = MulRn(a.scale, kLog2E);

  const int lane = threadIdx.x % 32;
  const int row_in_cta = threadIdx.x / 32 * 16 + lane / 4;
  int visible[2];
  uint32_t q[kSteps][4];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = first_query + row_in_cta + 8 * r;
    const bool has_query = query < num_queries;
    visible[r] = has_query ? num_keys - num_queries + query + 1 : 0;
    LoadQueryRow<kHeadDim>(a.q + (seq.q_begin + (has_query ? query : 0)) * a.q_stride +
                               static_cast<int64_t>(head) * kHeadDim + lane % 4 * 2,
                           r, q);
  }
  const int last_query = min(first_query + kGroups * kRows, num_queries) - 1;
  // Overlapped, in pairs; a tile past the last key changes nothing.
  const int num_seen = (num_keys - num_queries + last_query + kAttentionBlock) / kAttentionBlock;
  const int num_blocks = kOverlaps ? (num_seen + 1) / 2 * 2 : num_seen;

  const uint32_t k_tiles = SharedAddress(shared);
  const uint32_t v_tiles = k_tiles + 2 * kTile;
  auto* total = reinterpret_cast<float*>(shared + 4 * kTile);
  auto* rows = reinterpret_cast<int32_t*>(total + kHeadDim / 2 * kThreads);  // [4][64]
  // Rows of a tile's keys, looked up a barrier before the tile is copied.
  const auto find_rows = [&](int block) {
    if (threadIdx.x < kAttentionBlock) {
      rows[block % 4 * kAttentionBlock + threadIdx.x] =
          keys.RowOf(block * kAttentionBlock + static_cast<int>(threadIdx.x));
    }
  };
  const auto copy_k = [&](int block) {
    if (block < num_blocks) {
      CopyTile<kHeadDim, kThreads>(rows + block % 4 * kAttentionBlock, a.k + kv_offset, a.kv_stride,
                                   k_tiles + block % 2 * kTile, threadIdx.x);
    }
  };
  const auto copy_v = [&](int block) {
    if (block < num_blocks) {
      CopyTile<kHeadDim, kThreads>(rows + block % 4 * kAttentionBlock, a.v + kv_offset, a.kv_stride,
                                   v_tiles + block % 2 * kTile, threadIdx.x);
    }
  };
  // What the copies brought is visible to the tensor cores of all warps after it.
  const auto wait_for_tiles = [&] {
    WaitForCopies<0>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  };
  const auto issue_scores = [&](int block, float(&s)[32]) {
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Product<0>(s, q[step],
                 OperandOf(k_tiles + block % 2 * kTile + step / 4 * kPanelBytes + step % 4 * 32),
                 step > 0);
    }
    CommitProducts();
  };

  float o[kPanels][32] = {};
  SegmentState row;
  RowTotals totals;
  const auto one_block = [&](int block, float(&mine)[32], float(&next)[32]) {
    wait_for_tiles();
    copy_k(block + 1 + kAhead);
    copy_v(block + 1);
    CommitCopies();
    find_rows(block + 3);
    // Overlapped, the scores of the tile after the last are computed as well, from whatever lies
    // there, and dropped.
    issue_scores(block + kAhead, next);
    if constexpr (!kOverlaps) WaitForProducts<0>();
    float alpha[2];
    SoftmaxTile(mine, row, visible, block * kAttentionBlock, c, alpha);
#pragma unroll
    for (int i = 0; i < 32 * kPanels; ++i) {
      o[i / 32][i % 32] = MulRn(o[i / 32][i % 32], alpha[i / 2 % 2]);
    }
    uint32_t p[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = RoundPair(mine[2 * i], mine[2 * i + 1]);
    FenceProducts();
#pragma unroll
    for (int i = 0; i < kAttentionBlock / 16 * kPanels; ++i) {
      const int step = i / kPanels;
      const int panel = i % kPanels;
      Product<1>(o[panel], p + 4 * step,
                 OperandOf(v_tiles + block % 2 * kTile + panel * kPanelBytes + step * 2048), 1);
    }
    CommitProducts();
    WaitForProducts<0>();
    if (block % (kAttentionSegment / kAttentionBlock) == 7 || block + 1 == num_blocks) {
      MergeRows<kPanels, kThreads>(o, row, c, totals, total);
      row = SegmentState{};
    }
  };

  float s[32];
  find_rows(0);
  find_rows(1);
  find_rows(2);
  __syncthreads();
  copy_k(0);
  if constexpr (kOverlaps) {
    CommitCopies();
    wait_for_tiles();
    copy_k(1);
    issue_scores(0, s);
    WaitForProducts<0>();
  }
  copy_v(0);
  CommitCopies();
  if constexpr (kOverlaps) {
    float other[32];
    for (int block = 0; block < num_blocks; block += 2) {
      one_block(block, s, other);
      one_block(block + 1, other, s);
    }
  } else {
    for (int block = 0; block < num_blocks; ++block) one_block(block, s, s);
  }
  WriteRows<kHeadDim, kThreads>(a, seq, first_query + row_in_cta, head, totals, total);
}

template <int kHeadDim, int kGroups>
void Launch(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order) {
  constexpr int kThreads = kGroups * 128;
  constexpr size_t kShared = 4 * kTileBytes<kHeadDim> + kHeadDim / 2 * kThreads * sizeof(float) +
                             4 * kAttentionBlock * sizeof(int32_t);
  const auto kernel = PrefillKernel<kHeadDim, kGroups>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
            "attention, shared memory");
  const unsigned tiles =
      static_cast<unsigned>((args.max_queries + kGroups * kRows - 1) / (kGroups * kRows));
  LaunchKernel(
      {dim3(tiles, args.num_heads, args.num_sequences), dim3(kThreads), kShared, stream, order},
      kernel, args, BlockShift(args));
}

}  // namespace

void AttentionPrefill(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order) {
  CheckAttention(args);
  if (args.num_sequences == 0 || args.max_queries == 0) return;
  if (args.head_dim == 64) return Launch<64, 2>(args, stream, order);
  if (args.head_dim == 128) return Launch<128, 2>(args, stream, order);
  Launch<256, 1>(args, stream, order);
}

}  // namespace quatrain::cuda
