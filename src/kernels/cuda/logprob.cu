// Plan: eight lanes hold the eight residues of one block of 128 tokens, 16 logits a lane in
// registers, so the sum of a residue is a chain of one thread and their sum three shuffles. A warp
// takes four blocks, 128 bytes a load. Merge: a CTA a row, leaves in registers, then lanes, then
// warps.
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/logprob.h"

namespace quatrain::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kResidues = 8;
constexpr int kTerms = kVocabBlock / kResidues;
constexpr int kVocabBlocksPerCta = kBlockThreads / kResidues;

__device__ __forceinline__ float SumOfResidues(float t) {
#pragma unroll
  for (int offset = 1; offset < kResidues; offset *= 2) {
    t = AddRn(t, __shfl_xor_sync(0xFFFFFFFFu, t, offset));
  }
  return t;
}

// kWide: rows are whole blocks, 16-byte aligned; they are staged, so that loads are wide as well.
template <bool kMoment, bool kWide>
__global__ void __launch_bounds__(kBlockThreads) BlocksKernel(LogitSlice s, LogprobArgs a) {
  constexpr int kBlockStride = kVocabBlock + 8;  // floats; blocks start 8 banks apart
  __shared__ __align__(16) float staged[kWide ? kVocabBlocksPerCta * kBlockStride : 4];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int residue = threadIdx.x % kResidues;
  const int64_t row = blockIdx.x;
  const int64_t first_block = static_cast<int64_t>(blockIdx.y) * kVocabBlocksPerCta;
  const int64_t block = first_block + threadIdx.x / kResidues;
  const int64_t in_slice = block * kVocabBlock + residue;
  const float inverse = a.inv_temperature[row * a.inv_temperature_stride];
  const float* logits = s.logits + row * s.stride;
  const int32_t target = a.targets[row];
  float x[kTerms];
  float largest = -INFINITY;
  if constexpr (kWide) {
    const auto* source = reinterpret_cast<const float4*>(logits + first_block * kVocabBlock);
    const int64_t count = (s.columns - first_block * kVocabBlock) / 4;
    float4 v[kTerms / 4] = {};
#pragma unroll
    for (int i = 0; i < kTerms / 4; ++i) {
      const int at = threadIdx.x + i * kBlockThreads;
      if (at < count) v[i] = __ldcs(source + at);
    }
#pragma unroll
    for (int i = 0; i < kTerms / 4; ++i) {
      const int at = threadIdx.x + i * kBlockThreads;
      *reinterpret_cast<float4*>(staged + at / 32 * kBlockStride + at % 32 * 4) = v[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTerms; ++i) {
      x[i] = staged[threadIdx.x / kResidues * kBlockStride + residue + kResidues * i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kTerms; ++i) {
      const int64_t column = in_slice + kResidues * i;
      x[i] = column < s.columns ? __ldcs(logits + column) : -INFINITY;
    }
  }
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    x[i] = MulRn(x[i], inverse);
    if (in_slice + kResidues * i >= s.columns) x[i] = -INFINITY;
    largest = fmaxf(largest, x[i]);
    if (s.begin + in_slice + kResidues * i == target) a.state.target_x[row] = x[i];
  }
#pragma unroll
  for (int offset = 1; offset < kResidues; offset *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, offset));
  }
  const float shift = VocabShift(largest);
  float sum = 0.0f;
  float moment = 0.0f;
#pragma unroll
  for (int i = 0; i < kTerms; ++i) {
    const float e = VocabExp(x[i], shift);
    sum = AddRn(sum, e);
    if (kMoment) moment = e == 0.0f ? moment : FmaRn(e, AddRn(x[i], -largest), moment);
  }
  sum = SumOfResidues(sum);
  if (kMoment) moment = SumOfResidues(moment);
  if (residue != 0 || in_slice >= s.columns) return;
  const int64_t place =
      row * ((s.vocab_size + kVocabBlock - 1) / kVocabBlock) + s.begin / kVocabBlock + block;
  a.state.block_max[place] = largest;
  a.state.block_sum[place] = sum;
  if (kMoment) a.state.block_moment[place] = moment;
}

// Root of the neighbour tree over kLeaves leaves a thread, 32 lanes and 8 warps; all threads get
// it.
template <int kLeaves>
__device__ __forceinline__ float TreeOfCta(float (&leaves)[kLeaves], float* of_warps) {
  float sum = NeighbourTree(leaves);
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    sum = AddRn(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, offset));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  float sums[kBlockThreads / 32];
#pragma unroll
  for (int w = 0; w < kBlockThreads / 32; ++w) sums[w] = of_warps[w];
  return NeighbourTree(sums);
}

template <int kLeaves>
__global__ void __launch_bounds__(kBlockThreads)
    MergeKernel(LogprobArgs a, int64_t num_blocks, float* logprobs, float* entropy) {
  __shared__ float of_warps[kBlockThreads / 32];
  const int64_t row = blockIdx.x;
  const float* maxima = a.state.block_max + row * num_blocks;
  const float* sums = a.state.block_sum + row * num_blocks;
  float m[kLeaves];
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kLeaves; ++i) {
    const int64_t block = static_cast<int64_t>(threadIdx.x) * kLeaves + i;
    m[i] = block < num_blocks ? maxima[block] : -INFINITY;
    largest = fmaxf(largest, m[i]);
  }
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, offset));
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kBlockThreads / 32; ++w) largest = fmaxf(largest, of_warps[w]);
  float leaves[kLeaves];
  float moments[kLeaves];
#pragma unroll
  for (int i = 0; i < kLeaves; ++i) {
    const int64_t block = static_cast<int64_t>(threadIdx.x) * kLeaves + i;
    const float sum = block < num_blocks ? sums[block] : 0.0f;
    leaves[i] = VocabLeaf(sum, m[i], largest);
    moments[i] = 0.0f;
    if (entropy != nullptr && m[i] != -INFINITY) {
      const float moment = a.state.block_moment[row * num_blocks + block];
      const float at_row = FmaRn(sum, AddRn(m[i], -largest), moment);
      moments[i] = VocabLeaf(at_row, m[i], largest);
    }
  }
  const float sum = TreeOfCta(leaves, of_warps);
  if (entropy != nullptr) {
    const float moment = TreeOfCta(moments, of_warps);
    if (threadIdx.x == 0) entropy[row] = AddRn(LogOf(sum), -DivRn(moment, sum));
  }
  if (threadIdx.x != 0) return;
  logprobs[row] = LogprobOf(a.state.target_x[row], largest, sum);
  if (a.state.row_max != nullptr) a.state.row_max[row] = largest;
  if (a.state.row_sum != nullptr) a.state.row_sum[row] = sum;
}

// dz = inv ([v = t] dlogprob - p (dlogprob + dentropy (log p + H))), p = exp(x - M) / L.
__global__ void __launch_bounds__(kBlockThreads)
    BackwardKernel(LogitSlice s, LogprobArgs a, LogprobGradArgs g) {
  const int64_t row = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kBlockThreads + threadIdx.x) * 4;
  if (column >= s.columns) return;
  const float4 z = __ldcs(reinterpret_cast<const float4*>(s.logits + row * s.stride + column));
  const float inverse = a.inv_temperature[row * a.inv_temperature_stride];
  const float row_max = a.state.row_max[row];
  const float row_sum = a.state.row_sum[row];
  const float log_sum = LogOf(row_sum);
  const float dlogprob = g.dlogprobs[row];
  const float dentropy = g.dentropy == nullptr ? 0.0f : g.dentropy[row];
  const float entropy = g.dentropy == nullptr ? 0.0f : g.entropy[row];
  const float share = ReciprocalRn(row_sum);
  const int64_t target = a.targets[row] - s.begin - column;
  const float logits[4] = {z.x, z.y, z.z, z.w};
  float d[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float distance = AddRn(MulRn(logits[i], inverse), -row_max);
    const float p = MulRn(Ex2(MulRn(distance, kLog2E)), share);
    float slope = dlogprob;
    if (dentropy != 0.0f) slope = FmaRn(dentropy, AddRn(AddRn(distance, -log_sum), entropy), slope);
    const float hit = target == i ? dlogprob : 0.0f;
    d[i] = p == 0.0f ? MulRn(inverse, hit) : MulRn(inverse, FmaRn(-p, slope, hit));
  }
  *reinterpret_cast<uint2*>(g.dlogits + row * s.columns + column) =
      make_uint2(RoundPair(d[0], d[1]), RoundPair(d[2], d[3]));
}

}  // namespace

void LogprobBlocks(const LogitSlice& slice, const LogprobArgs& args, cudaStream_t stream,
                   LaunchOrder order) {
  QT_CHECK(slice.begin % kVocabBlock == 0, "a slice begins with a block");
  if (slice.rows == 0 || slice.columns == 0) return;
  const int64_t blocks = NumVocabBlocks(slice.columns);
  const bool is_wide = slice.columns % kVocabBlock == 0 && slice.stride % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(slice.logits) % 16 == 0;
  const auto ctas = static_cast<unsigned>((blocks + kVocabBlocksPerCta - 1) / kVocabBlocksPerCta);
  LaunchKernel(
      {dim3(static_cast<unsigned>(slice.rows), ctas), dim3(kBlockThreads), 0, stream, order},
      args.state.block_moment != nullptr
          ? (is_wide ? BlocksKernel<true, true> : BlocksKernel<true, false>)
          : (is_wide ? BlocksKernel<false, true> : BlocksKernel<false, false>),
      slice, args);
}

void LogprobMerge(const LogprobArgs& args, int64_t rows, int64_t vocab_size, float* logprobs,
                  float* entropy, cudaStream_t stream) {
  const int64_t blocks = NumVocabBlocks(vocab_size);
  QT_CHECK(entropy == nullptr || args.state.block_moment != nullptr);
  if (blocks > 16 * kBlockThreads) {
    throw Error(ErrorCode::kShape, {.where = "log-probabilities on the device",
                                    .what = "the vocabulary is too large",
                                    .expected = "at most 524288 tokens",
                                    .found = std::to_string(vocab_size)});
  }
  if (rows == 0) return;
  const LaunchShape shape = {dim3(static_cast<unsigned>(rows)), dim3(kBlockThreads), 0, stream};
  LaunchKernel(shape, blocks <= 8 * kBlockThreads ? MergeKernel<8> : MergeKernel<16>, args, blocks,
               logprobs, entropy);
}

void LogprobBackward(const LogitSlice& slice, const LogprobArgs& args, const LogprobGradArgs& grad,
                     cudaStream_t stream) {
  QT_CHECK(slice.columns % 4 == 0 && slice.stride % 4 == 0, "16-byte accesses");
  if (slice.rows == 0 || slice.columns == 0) return;
  const auto ctas = static_cast<unsigned>((slice.columns / 4 + kBlockThreads - 1) / kBlockThreads);
  LaunchKernel({dim3(static_cast<unsigned>(slice.rows), ctas), dim3(kBlockThreads), 0, stream},
               BackwardKernel, slice, args, grad);
}

}  // namespace quatrain::cuda
