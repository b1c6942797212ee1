// Plan: a CTA a row. The largest logit; then top-k and top-p by radix selection over the bits of
// the logit (three histograms, of counts or of masses), ties by index; then the inverse CDF: each
// warp sums a contiguous range, the warp that holds the draw walks its range. Without limits the
// histograms are left out.
#include "base/random.h"
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/sample.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;
constexpr float kMassUnit = 17592186044416.0f;  // 2^44
using Mass = unsigned long long;

// Orders as the logits do; -0 and +0 are one.
__device__ __forceinline__ uint32_t KeyOf(float logit) {
  const uint32_t bits = FloatBits(AddRn(logit, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float LogitOf(uint32_t key) {
  return FloatFromBits((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
}

// Kept is every larger logit, and of those with this key the indices up to `index`.
struct Cut {
  uint32_t key = 0;
  int32_t index = 0x7FFFFFFF;
  __device__ __forceinline__ bool Keeps(uint32_t other, int32_t at) const {
    return other > key || (other == key && at <= index);
  }
};

struct Row {
  const float* logits;
  int32_t vocab_size;
  float inv_temperature, largest;

  __device__ __forceinline__ Mass MassOf(float logit) const {
    const float distance = AddRn(MulRn(logit, inv_temperature), -largest);
    return __float2ull_rn(MulRn(Ex2(MulRn(distance, kLog2E)), kMassUnit));
  }
};

struct Shared {
  Mass histogram[kBins];
  Mass of_warps[kWarps];
  Mass reached;
  uint32_t bin;
  int32_t index;
};

__device__ __forceinline__ Mass SumOfWarp(Mass sum) {
#pragma unroll
  for (int offset = 16; offset >= 1; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
  return sum;
}
__device__ __forceinline__ Mass PrefixOfWarp(Mass sum) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const Mass before = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) sum += before;
  }
  return sum;
}

// The first index, ascending, at which the running sum of weight(i) reaches `target`: the position
// of a tie or of the draw. -1 if it never does.
template <class Weight>
__device__ int32_t FirstIndexReaching(const Row& row, Mass target, Shared& shared, Weight weight) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int32_t range = (row.vocab_size + kWarps * 32 - 1) / (kWarps * 32) * 32;
  const int32_t begin = warp * range;
  const int32_t end = min(row.vocab_size, begin + range);
  Mass sum = 0;
  for (int32_t i = begin + lane; i < end; i += 32) sum += weight(i);
  sum = SumOfWarp(sum);
  __syncthreads();
  if (threadIdx.x == 0) shared.index = -1;
  if (lane == 0) shared.of_warps[warp] = sum;
  __syncthreads();
  Mass before = 0;
  for (int w = 0; w < warp; ++w) before += shared.of_warps[w];
  if (before < target && before + sum >= target) {
    for (int32_t i = begin; i < end; i += 32) {
      const Mass prefix = before + PrefixOfWarp(i + lane < end ? weight(i + lane) : 0);
      const unsigned hits = __ballot_sync(0xFFFFFFFFu, prefix >= target);
      if (hits != 0) {
        if (lane == 0) shared.index = i + __ffs(static_cast<int>(hits)) - 1;
        break;
      }
      before = __shfl_sync(0xFFFFFFFFu, prefix, 31);
    }
  }
  __syncthreads();
  return shared.index;
}

// Smallest set of most likely tokens whose weights reach `target` (1 <= target <= their sum).
template <class Weight>
__device__ Cut SelectFromTop(const Row& row, Mass target, Shared& shared, Weight weight) {
  uint32_t prefix = 0;
  int prefix_shift = 32;
  Mass reached = 0;
  for (const int shift : {21, 10, 0}) {
    const uint32_t bins = shift == 0 ? 1024 : kBins;
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.histogram[i] = 0;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < row.vocab_size; i += kThreads) {
      const uint32_t key = KeyOf(row.logits[i]);
      if (prefix_shift < 32 && key >> prefix_shift != prefix) continue;
      const Mass mine = weight(i);
      if (mine != 0) atomicAdd(&shared.histogram[(key >> shift) & (bins - 1)], mine);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Lane 0 has the largest bins.
      const int per_lane = static_cast<int>(bins) / 32;
      const int top = static_cast<int>(bins) - 1 - static_cast<int>(threadIdx.x) * per_lane;
      Mass sum = 0;
      for (int i = 0; i < per_lane; ++i) sum += shared.histogram[top - i];
      Mass before = reached + PrefixOfWarp(sum) - sum;
      if (before < target && before + sum >= target) {
        int bin = top;
        while (before + shared.histogram[bin] < target) before += shared.histogram[bin--];
        shared.bin = static_cast<uint32_t>(bin);
        shared.reached = before;
      }
    }
    __syncthreads();
    prefix = prefix_shift == 32 ? shared.bin : prefix << (prefix_shift - shift) | shared.bin;
    prefix_shift = shift;
    reached = shared.reached;
    __syncthreads();
  }
  const int32_t index = FirstIndexReaching(row, target - reached, shared, [&](int32_t i) -> Mass {
    return KeyOf(row.logits[i]) == prefix ? weight(i) : 0;
  });
  return {prefix, index};
}

// The most likely token (lowest index on ties) in the lower half, complemented; its key above.
__device__ Mass LargestOf(const Row& row, Shared& shared, bool* is_usable) {
  Mass best = 0;
  bool is_bad = false;
  for (int32_t i = threadIdx.x; i < row.vocab_size; i += kThreads) {
    const float logit = row.logits[i];
    is_bad |= !(logit < INFINITY);
    const Mass each =
        static_cast<Mass>(KeyOf(logit)) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(i));
    best = each > best ? each : best;
  }
#pragma unroll
  for (int offset = 16; offset >= 1; offset /= 2) {
    const Mass other = __shfl_xor_sync(0xFFFFFFFFu, best, offset);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) shared.of_warps[threadIdx.x / 32] = best;
  *is_usable = __syncthreads_or(is_bad) == 0;
  for (int w = 0; w < kWarps; ++w) best = shared.of_warps[w] > best ? shared.of_warps[w] : best;
  *is_usable = *is_usable && LogitOf(static_cast<uint32_t>(best >> 32)) > -INFINITY;
  __syncthreads();
  return best;
}

__device__ Mass SumOfCta(Mass sum, Shared& shared) {
  sum = SumOfWarp(sum);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  Mass total = 0;
  for (int w = 0; w < kWarps; ++w) total += shared.of_warps[w];
  return total;
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SampleArgs a) {
  __shared__ Shared shared;
  LetNextKernelStart();
  WaitForPreviousKernel();
  const DeviceSamplingRow sampling = a.sampling[blockIdx.x];
  Row row = {a.logits + blockIdx.x * a.stride, static_cast<int32_t>(a.vocab_size),
             sampling.inv_temperature, 0.0f};
  bool is_usable = false;
  const Mass best = LargestOf(row, shared, &is_usable);
  if (!is_usable || sampling.is_greedy != 0) {
    if (threadIdx.x == 0) {
      a.tokens[blockIdx.x] =
          is_usable ? static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(best)) : -1;
    }
    return;
  }
  row.largest = MulRn(LogitOf(static_cast<uint32_t>(best >> 32)), row.inv_temperature);
  Cut cut;
  if (sampling.top_k > 0 && sampling.top_k < row.vocab_size) {
    cut = SelectFromTop(row, static_cast<Mass>(sampling.top_k), shared,
                        [](int32_t) -> Mass { return 1; });
  }
  const auto kept_mass = [&](int32_t i) -> Mass {
    const float logit = row.logits[i];
    return cut.Keeps(KeyOf(logit), i) ? row.MassOf(logit) : 0;
  };
  const auto kept_total = [&] {
    Mass sum = 0;
    for (int32_t i = threadIdx.x; i < row.vocab_size; i += kThreads) sum += kept_mass(i);
    return SumOfCta(sum, shared);
  };
  Mass total = kept_total();
  if (sampling.top_p < 1.0f) {
    const double wanted = ceil(static_cast<double>(sampling.top_p) * static_cast<double>(total));
    const Mass target = wanted < 1.0 ? 1 : static_cast<Mass>(wanted);
    cut = SelectFromTop(row, target < total ? target : total, shared, kept_mass);
    total = kept_total();
  }
  const Mass drawn = static_cast<Mass>(sampling.uniform * static_cast<double>(total));
  const int32_t token =
      FirstIndexReaching(row, (drawn < total ? drawn : total - 1) + 1, shared, kept_mass);
  if (threadIdx.x == 0) a.tokens[blockIdx.x] = token;
}

}  // namespace

DeviceSamplingRow DeviceRowOf(const SamplingRow& row) {
  const bool is_greedy = row.temperature == 0.0f;
  return {.uniform = UniformDouble(row.seed, static_cast<uint64_t>(row.position), 0),
          .inv_temperature = is_greedy ? 1.0f : 1.0f / row.temperature,
          .top_p = row.top_p,
          .top_k = row.top_k > 0 && row.top_k < INT32_MAX ? static_cast<int32_t>(row.top_k) : 0,
          .is_greedy = is_greedy};
}

void Sample(const SampleArgs& args, cudaStream_t stream, LaunchOrder order) {
  QT_CHECK(args.vocab_size > 0 && args.vocab_size <= INT32_MAX - 2048);
  if (args.rows == 0) return;
  LaunchKernel({dim3(static_cast<unsigned>(args.rows)), dim3(kThreads), 0, stream, order},
               SampleKernel, args);
}

}  // namespace quatrain::cuda
