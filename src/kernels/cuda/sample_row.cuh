// What sampling (sample.cu) does with the logits of a row: the order of tokens, masses, sums over
// the CTAs of a row, and selection from the top.
#pragma once

#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"
#include "kernels/cuda/cluster.cuh"

namespace quatrain::cuda::sampling {

inline constexpr int kThreads = 512;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kBinBits = 9;
inline constexpr int kBins = 1 << kBinBits;
// Past this distance from the largest logit masses are 0 or 1.
inline constexpr float kReach = 31.0f;
inline constexpr float kBinWidth = kReach / kBins;
using Mass = unsigned long long;

// Orders as the logits do; -0 and +0 are one.
__device__ __forceinline__ uint32_t KeyOf(float logit) {
  const uint32_t bits = FloatBits(AddRn(logit, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float LogitOf(uint32_t key) {
  return FloatFromBits((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
}

// rn(share * 2^44) of a share in [0, 1], without conversions: 21 bits, then what is left of it,
// each made an integer by an addition. The first part is even in units of the second, so ties
// round as they do for the whole.
__device__ __forceinline__ Mass MassOfShare(float share) {
  constexpr float kInteger = 12582912.0f;  // 1.5 * 2^23
  const auto units_of = [](float sum) {
    return static_cast<int32_t>(FloatBits(sum) - 0x4B400000u);
  };
  const float upper = FmaRn(share, 0x1p21f, kInteger);
  const float rest = FmaRn(AddRn(upper, -kInteger), -0x1p-21f, share);
  const float lower = FmaRn(rest, 0x1p44f, kInteger);
  return static_cast<Mass>(static_cast<long long>(units_of(upper)) * (1 << 23) + units_of(lower));
}

// A row's logits as shares of the largest.
struct Scale {
  float inv_temperature;
  float largest;  // logit times inv_temperature

  __device__ __forceinline__ float Distance(float logit) const {
    return AddRn(MulRn(logit, inv_temperature), -largest);
  }
  __device__ __forceinline__ Mass MassOf(float logit) const {
    return MassOfShare(Ex2(MulRn(Distance(logit), kLog2E)));
  }
  __device__ __forceinline__ uint32_t DistanceBin(float logit) const {
    return static_cast<uint32_t>(fminf(MulRn(Distance(logit), -1.0f / kBinWidth), kBins - 1));
  }
  // The logit at a distance, and those that a bin can hold, with room for rounding.
  __device__ __forceinline__ float LogitAt(float distance, float rooms) const {
    const float room = MulRn(AddRn(fabsf(largest), kReach), 0x1p-20f);
    return DivRn(FmaRn(room, rooms, AddRn(largest, -distance)), inv_temperature);
  }
  __device__ __forceinline__ float LeastOf(uint32_t bin) const {
    return LogitAt(MulRn(static_cast<float>(bin + 1), kBinWidth), -1.0f);
  }
  __device__ __forceinline__ float MostOf(uint32_t bin) const {
    return LogitAt(MulRn(static_cast<float>(bin), kBinWidth), 1.0f);
  }
};

// Kept is every larger logit, and of those with this key the tokens up to `token`.
struct Cut {
  uint32_t key = 0;
  int32_t token = 0x7FFFFFFF;
  __device__ __forceinline__ bool Keeps(int32_t other, float logit) const {
    const uint32_t of_other = KeyOf(logit);
    return of_other > key || (of_other == key && other <= token);
  }
};

// A Mass in halves: 64-bit atomics on shared memory are loops.
struct alignas(8) Bin {
  uint32_t low, high;
};
struct alignas(8) Candidate {
  int32_t token;
  float logit;
};

inline constexpr int kMostCandidates = 2 * kThreads;  // of a CTA
inline constexpr int kMostCtas = 8;

// Of what other CTAs write or read there are two, in turns: they may be one step ahead. Of the
// candidates one list is enough: after it either nothing of the row uses bins but the first CTA,
// when it has read all lists, or nobody reads the lists.
struct Shared {
  union {
    Bin bins[2][kBins];
    Candidate candidates[kMostCandidates];
  };
  Mass of_groups[2][kWarps];   // sums of 32 bins
  Mass of_ctas[2][kMostCtas];  // by the CTAs
  uint64_t arrived[2];         // barriers for them
  Mass of_warps[kWarps];
  Mass reached, weight;
  uint32_t bin;
  int32_t token;
};

__device__ __forceinline__ Mass LargestOfWarp(Mass value) {
#pragma unroll
  for (int offset = 16; offset >= 1; offset /= 2) {
    value = max(value, __shfl_xor_sync(0xFFFFFFFFu, value, offset));
  }
  return value;
}
template <class T>
__device__ __forceinline__ T PrefixOfWarp(T sum) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T before = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) sum += before;
  }
  return sum;
}

// Of the warps before this one.
__device__ __forceinline__ Mass SumBeforeWarp(const Mass (&of_warps)[kWarps]) {
  Mass before = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    before += w < static_cast<int>(threadIdx.x / 32) ? of_warps[w] : 0;
  }
  return before;
}

// The CTAs of a row.
template <int kCtas>
struct Ctas {
  __device__ __forceinline__ static int Rank() { return static_cast<int>(blockIdx.x) % kCtas; }
  // A barrier of all their threads, and its two halves: what was written before Release is seen
  // after Await. Arrive orders nothing but barriers that were set up, and costs no fence.
  __device__ __forceinline__ static void Synchronize() {
    if constexpr (kCtas > 1) {
      SyncCluster();
    } else {
      __syncthreads();
    }
  }
  __device__ __forceinline__ static void Release() {
    if constexpr (kCtas > 1) ReleaseToClusterAligned();
  }
  __device__ __forceinline__ static void Arrive() {
    if constexpr (kCtas > 1) ArriveInClusterAligned();
  }
  __device__ __forceinline__ static void Await() {
    if constexpr (kCtas > 1) WaitForClusterAligned();
  }
  // Eight bytes that lie at the same place in the shared memory of one of them.
  __device__ __forceinline__ static Mass WordOf(const void* mine, int rank) {
    if constexpr (kCtas > 1) return LoadWordOf(SharedOf(SharedAddress(mine), rank));
    return *static_cast<const Mass*>(mine);
  }
};

// Tokens of a row, cut among the threads of its CTAs: consecutive ones, or, kListed, candidates
// that one CTA has, in order.
template <int kCtas, bool kListed>
struct Part {
  Shared& shared;
  const float* logits;    // of this thread's tokens, in shared memory
  const int32_t* tokens;  // with kListed
  int32_t begin, count;   // this thread's tokens, or places in the list
  float largest;          // of this thread's logits
  int exchanges = 0, levels = 0;

  __device__ __forceinline__ int32_t Token(int32_t i) const {
    if constexpr (kListed) return tokens[i];
    return begin + i;
  }
  // step(token, logit) for this thread's tokens.
  template <class Step>
  __device__ __forceinline__ void ForEach(Step step) const {
#pragma unroll 4
    for (int32_t i = 0; i < count; ++i) step(Token(i), logits[i]);
  }
  // For those from `least` to `most`, which are few.
  template <class Step>
  __device__ __forceinline__ void ForFew(float least, float most, Step step) const {
    if (largest < least) return;
    ForEach([&](int32_t token, float logit) {
      if (logit >= least && logit <= most) step(token, logit);
    });
  }

  // Values of warps -> of the CTA -> of CTA c in each warp's lane c, 0 in lanes without one.
  template <class Combine>
  __device__ __forceinline__ Mass Exchange(Mass of_warp, Combine combine) {
    const int lane = threadIdx.x % 32;
    __syncthreads();  // the last values of warps have been read
    if (lane == 0) shared.of_warps[threadIdx.x / 32] = of_warp;
    __syncthreads();
    Mass of_cta = shared.of_warps[lane % kWarps];
#pragma unroll
    for (int offset = kWarps / 2; offset >= 1; offset /= 2) {
      of_cta = combine(of_cta, __shfl_xor_sync(0xFFFFFFFFu, of_cta, offset));
    }
    if constexpr (kCtas == 1) return lane == 0 ? of_cta : 0;
    const int buffer = exchanges % 2;
    const uint32_t parity = exchanges / 2 % 2;
    ++exchanges;
    const uint32_t arrived = SharedAddress(&shared.arrived[buffer]);
    if (threadIdx.x == 0) BarrierExpect(arrived, 8 * kCtas);
    if (threadIdx.x < kCtas) {
      const uint32_t mine = SharedAddress(&shared.of_ctas[buffer][Ctas<kCtas>::Rank()]);
      GiveWord(SharedOf(mine, lane), of_cta, SharedOf(arrived, lane));
    }
    BarrierWaitForCluster(arrived, parity);
    return lane < kCtas ? shared.of_ctas[buffer][lane] : 0;
  }
};

template <class P>
inline constexpr int kCtasOf = 1;
template <int kCtas, bool kListed>
inline constexpr int kCtasOf<Part<kCtas, kListed>> = kCtas;

template <class P>
__device__ Mass LargestOfRow(P& part, Mass of_thread) {
  const auto larger = [](Mass a, Mass b) { return a > b ? a : b; };
  return LargestOfWarp(part.Exchange(LargestOfWarp(of_thread), larger));
}

// Sums over the row, over what comes before this thread, and of this thread.
struct Sums {
  Mass total, before, mine;
};
template <class P>
__device__ Sums SumsOfRow(P& part, Mass mine) {
  const Mass prefix = PrefixOfWarp(mine);
  const Mass of_ctas = PrefixOfWarp(
      part.Exchange(__shfl_sync(0xFFFFFFFFu, prefix, 31), [](Mass a, Mass b) { return a + b; }));
  const int rank = Ctas<kCtasOf<P>>::Rank();
  const Mass last = __shfl_sync(0xFFFFFFFFu, of_ctas, max(0, rank - 1));
  const Mass before_cta = rank > 0 ? last : 0;
  const Mass before = before_cta + SumBeforeWarp(part.shared.of_warps) + prefix - mine;
  return {__shfl_sync(0xFFFFFFFFu, of_ctas, kCtasOf<P> - 1), before, mine};
}

// The first token, ascending, at which the running sum of weight(token, logit) reaches `target`:
// the position of a tie or of the draw. -1 in CTAs without it.
template <class P, class Weight>
__device__ int32_t FirstReaching(P& part, const Sums& sums, Mass target, Weight weight) {
  if (threadIdx.x == 0) part.shared.token = -1;
  __syncthreads();
  const unsigned holder =
      __ballot_sync(0xFFFFFFFFu, sums.before < target && sums.before + sums.mine >= target);
  if (holder != 0) {
    // That thread's tokens, one a lane.
    const int from = __ffs(static_cast<int>(holder)) - 1;
    const int lane = threadIdx.x % 32;
    const int32_t first = __shfl_sync(0xFFFFFFFFu, part.begin, from) - part.begin;
    const int32_t count = __shfl_sync(0xFFFFFFFFu, part.count, from);
    Mass before = __shfl_sync(0xFFFFFFFFu, sums.before, from);
    for (int32_t i = lane; i - lane < count; i += 32) {
      const int32_t token = i < count ? part.Token(first + i) : -1;
      const Mass each = i < count ? weight(token, part.logits[first + i]) : 0;
      const Mass prefix = before + PrefixOfWarp(each);
      const unsigned hits = __ballot_sync(0xFFFFFFFFu, prefix >= target);
      if (hits != 0) {
        if (lane == __ffs(static_cast<int>(hits)) - 1) part.shared.token = token;
        break;
      }
      before = __shfl_sync(0xFFFFFFFFu, prefix, 31);
    }
  }
  __syncthreads();
  return part.shared.token;
}

// Where a selection stands: in bins before `bin` lies `reached`, in it `weight`.
struct Level {
  uint32_t bin;
  Mass reached, weight;
};

// By the first warp, when the bins of all CTAs are there: the first, ascending, at which the
// running sum, from `reached` on, reaches `target`. Of groups of 32 first, then in that group.
template <int kCtas>
__device__ __forceinline__ void FindBin(Shared& shared, int buffer, Mass reached, Mass target) {
  const int lane = threadIdx.x;
  Mass sum = 0;
  if (lane < kWarps) {
#pragma unroll
    for (int c = 0; c < kCtas; ++c) sum += Ctas<kCtas>::WordOf(&shared.of_groups[buffer][lane], c);
  }
  Mass prefix = reached + PrefixOfWarp(sum);
  const int group = __ffs(static_cast<int>(__ballot_sync(0xFFFFFFFFu, prefix >= target))) - 1;
  const Mass before = __shfl_sync(0xFFFFFFFFu, prefix - sum, group);
  Bin* bins = &shared.bins[buffer][32 * group];
  sum = 0;
#pragma unroll
  for (int c = 0; c < kCtas; ++c) sum += Ctas<kCtas>::WordOf(bins + lane, c);
  prefix = before + PrefixOfWarp(sum);
  const int found = __ffs(static_cast<int>(__ballot_sync(0xFFFFFFFFu, prefix >= target))) - 1;
  if (lane == found) {
    shared.bin = static_cast<uint32_t>(32 * group + lane);
    shared.reached = prefix - sum;
    shared.weight = sum;
  }
}

// Fills bins by fill(add) in all CTAs and finds the one that meets the target.
template <int kCtas, class Fill>
__device__ Level NextLevel(Shared& shared, int level, Mass reached, Mass target, Fill fill) {
  static_assert(kBins == kThreads && kWarps <= 32);
  Bin* bins = shared.bins[level % 2];
  bins[threadIdx.x] = {0, 0};
  __syncthreads();
  fill([&](uint32_t at, Mass weight) {
    const auto low = static_cast<uint32_t>(weight);
    const uint32_t before = atomicAdd(&bins[at].low, low);
    const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < low ? 1u : 0u);
    if (high != 0) atomicAdd(&bins[at].high, high);
  });
  __syncthreads();
  const int warp = threadIdx.x / 32;
  const Mass sum = Ctas<1>::WordOf(bins + threadIdx.x, 0);
  const Mass prefix = PrefixOfWarp(sum);
  if (threadIdx.x % 32 == 31) shared.of_groups[level % 2][warp] = prefix;
  Ctas<kCtas>::Synchronize();
  if constexpr (kCtas > 1) {
    if (warp == 0) FindBin<kCtas>(shared, level % 2, reached, target);
  } else {
    const Mass before = reached + SumBeforeWarp(shared.of_groups[level % 2]) + prefix - sum;
    if (before < target && before + sum >= target) {
      shared.bin = threadIdx.x;
      shared.reached = before;
      shared.weight = sum;
    }
  }
  __syncthreads();
  return {shared.bin, shared.reached, shared.weight};
}

// What is selected: of the tokens that `cut` keeps the smallest set of most likely ones whose
// weights reach `target`. It has no logit below `least`.
struct Selection {
  Cut cut;
  Mass target;
  float least;
};

// Of ties with `unit` of weight each, as many as the target needs: up to which token.
template <class P>
__device__ int32_t LastTie(P& part, uint32_t key, const Level& level, Mass unit,
                           const Selection& of) {
  const Mass needed = (of.target - level.reached + unit - 1) / unit;
  if (needed * unit >= level.weight) return of.cut.key == key ? of.cut.token : Cut().token;
  const auto is_tie = [&](int32_t, float logit) -> Mass { return KeyOf(logit) == key ? 1 : 0; };
  Mass ties = 0;
  part.ForEach([&](int32_t token, float logit) { ties += is_tie(token, logit); });
  const int32_t mine = FirstReaching(part, SumsOfRow(part, ties), needed, is_tie);
  return static_cast<int32_t>(LargestOfRow(part, static_cast<Mass>(mine + 1))) - 1;
}

// weight(logit) grows with the logit.
template <class P, class Weight>
__device__ Cut SelectFromTop(P& part, const Scale& scale, const Selection& of, Weight weight) {
  constexpr int kCtas = kCtasOf<P>;
  Level level = NextLevel<kCtas>(part.shared, part.levels++, 0, of.target, [&](auto add) {
    part.ForFew(of.least, INFINITY, [&](int32_t token, float logit) {
      if (of.cut.Keeps(token, logit)) add(scale.DistanceBin(logit), weight(logit));
    });
  });
  // Keys of the bin, with room for the rounding of distances.
  const uint32_t bin = level.bin;
  uint32_t low = bin == kBins - 1 ? 0 : KeyOf(scale.LeastOf(bin));
  uint32_t high = KeyOf(scale.MostOf(bin));
  int shift = max(0, 32 - __clz(static_cast<int>(high - low)) - kBinBits);
  while (true) {
    const float least = low <= KeyOf(-INFINITY) ? -INFINITY : LogitOf(low);
    level = NextLevel<kCtas>(part.shared, part.levels++, level.reached, of.target, [&](auto add) {
      part.ForFew(least, LogitOf(high), [&](int32_t token, float logit) {
        // As logits -0 and +0 are one.
        const uint32_t key = KeyOf(logit);
        if (key < low || key > high || scale.DistanceBin(logit) != bin) return;
        if (of.cut.Keeps(token, logit)) add(kBins - 1 - ((key - low) >> shift), weight(logit));
      });
    });
    low += (kBins - 1 - level.bin) << shift;  // bins begin at the top
    if (shift == 0) break;
    high = min(high, low + (1u << shift) - 1);
    shift = max(0, shift - kBinBits);
  }
  return {low, LastTie(part, low, level, weight(LogitOf(low)), of)};
}

}  // namespace quatrain::cuda::sampling
