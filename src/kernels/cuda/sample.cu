// Plan: a cluster of CTAs a row, each with a part of the vocabulary in shared memory, so that
// logits are read once. The largest logit, then what limits leave, then the inverse CDF: each
// thread sums consecutive tokens, a warp walks those of the thread that holds the draw.
// Limits: tokens that cannot be kept are left out, those past the distance in which the largest of
// k threads lie, or whose mass is too small for all that are like it together to be kept. If few
// are left, as a rule, one CTA gathers and finishes them; else all go on together. There top-k and
// top-p are selections from the top: a histogram of counts or masses over distances to the largest
// logit, then over the keys in the bin that was met, finer until one key is left, ties by index.
#include <algorithm>
#include <string>

#include "base/random.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_row.cuh"

namespace quatrain::cuda {
namespace {

using namespace sampling;

// Rows of more tokens than kFewTokens have a cluster of CTAs.
constexpr int64_t kFewTokens = 8192;
constexpr int64_t kMostTokens = kMostCtas * kThreads * 109;  // 223 KB a CTA

// What limits the draw. Target of top-p: 0 before it is known. No kept token has a logit below
// `least`.
struct Limits {
  int32_t top_k;  // 0: off
  float top_p;
  Mass target = 0;
  float least = -INFINITY;
};

// Of this thread's tokens.
template <class P>
__device__ Mass MassOfKept(const P& part, const Scale& scale, const Cut& cut) {
  Mass sum = 0;
  if (cut.key == 0) {
    part.ForEach([&](int32_t, float logit) { sum += scale.MassOf(logit); });
  } else {
    part.ForEach([&](int32_t token, float logit) {
      if (cut.Keeps(token, logit)) sum += scale.MassOf(logit);
    });
  }
  return sum;
}

// Top-p of tokens with this mass: they reach `target`, and tokens whose mass is at most an equal
// share of what may be dropped all can be: half a unit less before it is rounded. The share is two
// units at least, since 1 - top_p is at least 2^-24 and a row has less than 2^19 tokens.
__device__ void SetTarget(Limits& limits, const Scale& scale, Mass total, int32_t vocab_size) {
  const double wanted = ceil(static_cast<double>(limits.top_p) * static_cast<double>(total));
  limits.target = min(wanted < 1.0 ? Mass{1} : static_cast<Mass>(wanted), total);
  if (limits.target == total) return;
  const float share = static_cast<float>(total - limits.target) / static_cast<float>(vocab_size);
  const float distance = (44.0f - __log2f(AddRn(share, -0.5f))) / kLog2E;
  limits.least = fmaxf(limits.least, scale.LogitAt(distance + 0.01f, -1.0f));
}

// The token; -1 in CTAs that do not have it.
template <class P>
__device__ int32_t Draw(P& part, const Scale& scale, Limits limits, double uniform,
                        int32_t vocab_size) {
  Cut cut;
  if (limits.top_k > 0) {
    const Selection of = {cut, static_cast<Mass>(limits.top_k), limits.least};
    cut = SelectFromTop(part, scale, of, [](float) -> Mass { return 1; });
  }
  if (limits.top_p < 1.0f) {
    if (limits.target == 0) {
      SetTarget(limits, scale, SumsOfRow(part, MassOfKept(part, scale, cut)).total, vocab_size);
    }
    const Selection of = {cut, limits.target, limits.least};
    cut = SelectFromTop(part, scale, of, [&](float logit) { return scale.MassOf(logit); });
  }
  const Sums sums = SumsOfRow(part, MassOfKept(part, scale, cut));
  const auto drawn = static_cast<Mass>(uniform * static_cast<double>(sums.total));
  return FirstReaching(part, sums, min(drawn, sums.total - 1) + 1,
                       [&](int32_t token, float logit) -> Mass {
                         return cut.Keeps(token, logit) ? scale.MassOf(logit) : 0;
                       });
}

// Raises `least` as far as that is cheap.
template <int kCtas>
__device__ void Narrow(Part<kCtas, false>& part, const Scale& scale, Limits& limits,
                       int32_t vocab_size) {
  if (limits.top_k == 0) {
    SetTarget(limits, scale, SumsOfRow(part, MassOfKept(part, scale, {})).total, vocab_size);
    return;
  }
  const int num_threads = __syncthreads_count(part.count > 0);
  if (limits.top_k > num_threads) return;
  // So many threads of this CTA have a token as near as that; the k nearest of the row are among
  // the k nearest of the CTAs.
  const auto add_largest = [&](auto add) {
    if (part.count > 0) add(scale.DistanceBin(part.largest), Mass{1});
  };
  const uint32_t bin =
      NextLevel<1>(part.shared, 0, 0, static_cast<Mass>(limits.top_k), add_largest).bin;
  if (bin < kBins - 1) limits.least = scale.LeastOf(bin);
}

// Lists this CTA's tokens from `least` on, in order, if there is room; how many each CTA has, in
// each warp's lanes.
template <int kCtas>
__device__ Mass ListCandidates(Part<kCtas, false>& part, float least) {
  int32_t mine = 0;
  part.ForFew(least, INFINITY, [&](int32_t, float) { ++mine; });
  const int32_t prefix = PrefixOfWarp(mine);
  const Mass of_warp = static_cast<Mass>(__shfl_sync(0xFFFFFFFFu, prefix, 31));
  __syncthreads();  // the last values of warps have been read
  if (threadIdx.x % 32 == 0) part.shared.of_warps[threadIdx.x / 32] = of_warp;
  __syncthreads();
  int32_t place = static_cast<int32_t>(SumBeforeWarp(part.shared.of_warps)) + prefix - mine;
  if (place + mine <= kMostCandidates) {
    part.ForFew(least, INFINITY, [&](int32_t token, float logit) {
      part.shared.candidates[place++] = {token, logit};
    });
  }
  Ctas<kCtas>::Release();
  const Mass of_ctas = part.Exchange(of_warp, [](Mass a, Mass b) { return a + b; });
  Ctas<kCtas>::Await();
  return of_ctas;
}

// By the first CTA: all candidates into its own shared memory, `logits`, and the draw.
template <int kCtas>
__device__ int32_t DrawCandidate(Shared& shared, float* logits, Mass of_ctas, const Scale& scale,
                                 const Limits& limits, double uniform, int32_t vocab_size) {
  const auto ends = static_cast<int32_t>(PrefixOfWarp(of_ctas));
  const int32_t total = __shfl_sync(0xFFFFFFFFu, ends, kCtas - 1);
  auto* tokens = reinterpret_cast<int32_t*>(logits + total);
  for (int32_t i = threadIdx.x; i - static_cast<int32_t>(threadIdx.x) < total; i += kThreads) {
    int from = 0;
    int32_t begin = 0;
#pragma unroll
    for (int c = 0; c + 1 < kCtas; ++c) {
      const int32_t end = __shfl_sync(0xFFFFFFFFu, ends, c);
      from += i >= end ? 1 : 0;
      begin = i >= end ? end : begin;
    }
    if (i >= total) continue;
    const Mass each = Ctas<kCtas>::WordOf(&shared.candidates[i - begin], from);
    tokens[i] = static_cast<int32_t>(each);
    logits[i] = FloatFromBits(static_cast<uint32_t>(each >> 32));
  }
  __syncthreads();
  const int32_t of_thread = (total + kThreads - 1) / kThreads;
  const int32_t first = static_cast<int32_t>(threadIdx.x) * of_thread;
  Part<1, true> part = {
      shared,  logits + first, tokens + first, first, max(0, min(of_thread, total - first)),
      INFINITY};
  return Draw(part, scale, limits, uniform, vocab_size);
}

__device__ __forceinline__ void CopyAsync4(uint32_t destination, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(destination), "l"(source)
               : "memory");
}

// Copies the part: each warp what its threads sum, so that it alone waits for it.
template <int kCtas>
__device__ void LoadPart(const Part<kCtas, false>& part, const float* logits_V,
                         int32_t tokens_of_thread, int32_t vocab_size) {
  const int lane = threadIdx.x % 32;
  const int32_t first = part.begin - lane * tokens_of_thread;
  const int32_t end = min(first + 32 * tokens_of_thread, vocab_size);
  const uint32_t target = SharedAddress(part.logits - lane * tokens_of_thread);
  int32_t copied = first;
  if (reinterpret_cast<uintptr_t>(logits_V) % 16 == 0) {
    for (int32_t i = first + 4 * lane; i + 4 <= end; i += 128) {
      CopyAsync16(target + 4 * (i - first), logits_V + i, true);
    }
    copied = max(first, first + (end - first) / 4 * 4);
  }
  for (int32_t i = copied + lane; i < end; i += 32) {
    CopyAsync4(target + 4 * (i - first), logits_V + i);
  }
  CommitCopies();
  WaitForCopies<0>();
  __syncwarp();
}

__device__ __forceinline__ float LargerOrNan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// The most likely token of the row (the lowest on ties) in the lower half, complemented, where it
// `is_wanted`; its key above. All ones if a logit is NaN or +inf.
template <int kCtas>
__device__ Mass LargestOf(Part<kCtas, false>& part, bool is_wanted) {
  part.ForEach([&](int32_t, float logit) { part.largest = LargerOrNan(part.largest, logit); });
  uint32_t first = 0;
  if (is_wanted) {
    first = ~0u;
    part.ForEach([&](int32_t token, float logit) {
      if (logit == part.largest) first = min(first, static_cast<uint32_t>(token));
    });
  }
  const Mass best = static_cast<Mass>(KeyOf(part.largest)) << 32 | ~first;
  return LargestOfRow(part, part.largest < INFINITY ? best : ~Mass{0});
}

template <int kCtas>
__device__ void DrawRow(Part<kCtas, false>& part, float* logits, const Scale& scale,
                        const DeviceSamplingRow& sampling, const SampleArgs& a) {
  const auto vocab_size = static_cast<int32_t>(a.vocab_size);
  const bool has_top_k = sampling.top_k > 0 && sampling.top_k < vocab_size;
  Limits limits = {has_top_k ? sampling.top_k : 0, sampling.top_p};
  int32_t token = -1;
  bool is_alone = false;
  if (has_top_k || sampling.top_p < 1.0f) {
    Narrow(part, scale, limits, vocab_size);
    const Mass of_ctas = ListCandidates(part, limits.least);
    is_alone = LargestOfWarp(of_ctas) <= kMostCandidates;
    if (is_alone && Ctas<kCtas>::Rank() == 0) {
      token = DrawCandidate<kCtas>(part.shared, logits, of_ctas, scale, limits, sampling.uniform,
                                   vocab_size);
    }
  }
  if (!is_alone) token = Draw(part, scale, limits, sampling.uniform, vocab_size);
  if (token >= 0 && threadIdx.x == 0) a.tokens[blockIdx.x / kCtas] = token;
}

template <int kCtas>
__device__ __forceinline__ void SampleRow(const SampleArgs& a, int32_t tokens_of_thread) {
  extern __shared__ __align__(16) float logits[];
  __shared__ Shared shared;
  LetNextKernelStart();
  if (threadIdx.x < 2) BarrierInit(SharedAddress(&shared.arrived[threadIdx.x]), 1);
  FenceForCopies();
  Ctas<kCtas>::Arrive();
  WaitForPreviousKernel();
  const int64_t row = blockIdx.x / kCtas;
  const DeviceSamplingRow sampling = a.sampling[row];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t begin = (Ctas<kCtas>::Rank() * kThreads + thread) * tokens_of_thread;
  Part<kCtas, false> part = {
      shared,
      logits + thread * tokens_of_thread,
      nullptr,
      begin,
      max(0, min(tokens_of_thread, static_cast<int32_t>(a.vocab_size) - begin)),
      -INFINITY};
  LoadPart(part, a.logits + row * a.stride, tokens_of_thread, static_cast<int32_t>(a.vocab_size));
  Ctas<kCtas>::Await();  // the barriers of all are set up
  const Mass best = LargestOf(part, sampling.is_greedy != 0);
  const float logit = LogitOf(static_cast<uint32_t>(best >> 32));
  const Scale scale = {sampling.inv_temperature, MulRn(logit, sampling.inv_temperature)};
  const bool is_usable = ~best != 0 && fabsf(logit) < INFINITY && fabsf(scale.largest) < INFINITY;
  if (is_usable && sampling.is_greedy == 0) {
    DrawRow(part, logits, scale, sampling, a);
  } else if (Ctas<kCtas>::Rank() == 0 && threadIdx.x == 0) {
    a.tokens[row] = is_usable ? static_cast<int32_t>(~static_cast<uint32_t>(best)) : -1;
  }
  // What the others read of this CTA stays until they have.
  Ctas<kCtas>::Arrive();
  Ctas<kCtas>::Await();
}

// Devices without clusters have the form with one CTA.
template <int kCtas>
__global__ void __launch_bounds__(kThreads, 2)
    SampleKernel(SampleArgs a, int32_t tokens_of_thread) {
#if __CUDA_ARCH__ < 900
  if constexpr (kCtas > 1) {
    __trap();
    return;
  }
#endif
  SampleRow<kCtas>(a, tokens_of_thread);
}

template <int kCtas>
void Launch(const SampleArgs& args, cudaStream_t stream, LaunchOrder order) {
  // Odd, so that the threads of a warp read different banks.
  const int64_t tokens_of_thread = ((args.vocab_size - 1) / (kCtas * kThreads) + 1) | 1;
  const int64_t candidates = std::min<int64_t>(args.vocab_size, kCtas * kMostCandidates);
  const auto bytes = static_cast<size_t>(std::max(
      4 * tokens_of_thread * kThreads, static_cast<int64_t>(sizeof(Candidate)) * candidates));
  CheckCuda(cudaFuncSetAttribute(SampleKernel<kCtas>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes)),
            "shared memory of sampling");
  LaunchKernel(
      {dim3(static_cast<unsigned>(args.rows * kCtas)), dim3(kThreads), bytes, stream, order, kCtas},
      SampleKernel<kCtas>, args, static_cast<int32_t>(tokens_of_thread));
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
  QT_CHECK(args.vocab_size > 0);
  if (args.vocab_size > kMostTokens) {
    throw Error(ErrorCode::kShape, {.where = "sampling on the device",
                                    .what = "the vocabulary is too large",
                                    .expected = fmt::format("at most {} tokens", kMostTokens),
                                    .found = std::to_string(args.vocab_size)});
  }
  if (args.rows == 0) return;
  args.vocab_size <= kFewTokens ? Launch<1>(args, stream, order)
                                : Launch<kMostCtas>(args, stream, order);
}

}  // namespace quatrain::cuda
