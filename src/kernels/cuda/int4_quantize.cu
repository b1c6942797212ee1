// Plan: 8 neighbours belong to one thread, a group to 1 to 32 neighbouring lanes, its maximum is a
// shuffle. Four chunks a thread, loads first. A group of another size belongs to a CTA.
#include <string>

#include "kernels/cuda/int4_quantize.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/quantize_group.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kChunksPerThread = 4;

bool RuleDerives(ScaleRule rule) {
  return rule == ScaleRule::kAbsmax7 || rule == ScaleRule::kAbsmax7_5;
}

// Eight weights as BF16 pairs, from either source.
__device__ __forceinline__ void LoadEight(const QuantizeArgs& a, int64_t chunk,
                                          uint32_t (&pairs)[4]) {
  if (a.weight != nullptr) {
    const uint4 v = __ldcs(reinterpret_cast<const uint4*>(a.weight) + chunk);
    pairs[0] = v.x;
    pairs[1] = v.y;
    pairs[2] = v.z;
    pairs[3] = v.w;
    return;
  }
  const float4 low = reinterpret_cast<const float4*>(a.master)[2 * chunk];
  const float4 high = reinterpret_cast<const float4*>(a.master)[2 * chunk + 1];
  pairs[0] = RoundPair(low.x, low.y);
  pairs[1] = RoundPair(low.z, low.w);
  pairs[2] = RoundPair(high.x, high.y);
  pairs[3] = RoundPair(high.z, high.w);
}

template <int kBits>
__device__ __forceinline__ void StoreEight(const QuantizeArgs& a, int64_t chunk, BFloat16 scale,
                                           const EightCodes& codes) {
  if (a.fake != nullptr) {
    __stcs(reinterpret_cast<uint4*>(a.fake) + chunk,
           make_uint4(WeightsOf(codes, scale, 0), WeightsOf(codes, scale, 1),
                      WeightsOf(codes, scale, 2), WeightsOf(codes, scale, 3)));
  }
  if (a.packed != nullptr) {
    if constexpr (kBits == 4) {
      reinterpret_cast<uint32_t*>(a.packed)[chunk] = WordOf<4>(codes, 0);
    } else {
      reinterpret_cast<uint2*>(a.packed)[chunk] =
          make_uint2(WordOf<8>(codes, 0), WordOf<8>(codes, 1));
    }
  }
}

template <int kBits, int kLanes, bool kBounded>
__global__ void __launch_bounds__(kBlockThreads) QuantizeKernel(QuantizeArgs a, bool derives) {
  const int64_t chunks = a.out_features * a.in_features / 8;
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kBlockThreads * kChunksPerThread + threadIdx.x;
  uint32_t pairs[kChunksPerThread][4] = {};
#pragma unroll
  for (int i = 0; i < kChunksPerThread; ++i) {
    const int64_t chunk = first + i * kBlockThreads;
    if (chunk < chunks) LoadEight(a, chunk, pairs[i]);
  }
#pragma unroll
  for (int i = 0; i < kChunksPerThread; ++i) {
    const int64_t chunk = first + i * kBlockThreads;
    BFloat16 scale;
    if (derives) {
      const uint32_t absmax = AbsmaxOfLanes<kLanes>(AbsmaxOfEight(pairs[i]));
      scale = ScaleFromAbsmax(FloatFromBits(absmax << 16), a.spec.rule, a.spec.grid);
    } else if (chunk < chunks) {
      scale = a.scale[chunk / kLanes];
    }
    if (chunk >= chunks) continue;
    StoreEight<kBits>(a, chunk, scale, CodesOfEight<kBounded>(pairs[i], scale, a.spec.grid));
    if (derives && a.scale != nullptr && chunk % kLanes == 0) a.scale[chunk / kLanes] = scale;
  }
}

// One group a CTA.
template <int kBits>
__global__ void __launch_bounds__(kBlockThreads) QuantizeWideKernel(QuantizeArgs a, bool derives) {
  __shared__ uint32_t largest;
  const int64_t chunks = a.spec.group_size / 8;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * chunks;
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  uint32_t pairs[4];
  BFloat16 scale;
  if (derives) {
    uint32_t mine = 0;
    for (int64_t i = threadIdx.x; i < chunks; i += kBlockThreads) {
      LoadEight(a, first + i, pairs);
      mine = max(mine, AbsmaxOfEight(pairs));
    }
    mine = AbsmaxOfLanes<32>(mine);
    if (threadIdx.x % 32 == 0) atomicMax(&largest, mine);
    __syncthreads();
    scale = ScaleFromAbsmax(FloatFromBits(largest << 16), a.spec.rule, a.spec.grid);
    if (a.scale != nullptr && threadIdx.x == 0) a.scale[blockIdx.x] = scale;
  } else {
    scale = a.scale[blockIdx.x];
  }
  for (int64_t i = threadIdx.x; i < chunks; i += kBlockThreads) {
    LoadEight(a, first + i, pairs);
    StoreEight<kBits>(a, first + i, scale, CodesOfEight<false>(pairs, scale, a.spec.grid));
  }
}

template <int kBits, int kLanes>
void LaunchNarrow(const QuantizeArgs& args, cudaStream_t stream) {
  const int64_t chunks = args.out_features * args.in_features / 8;
  const int64_t per_block = kBlockThreads * kChunksPerThread;
  const auto blocks = static_cast<unsigned>((chunks + per_block - 1) / per_block);
  LaunchKernel({dim3(blocks), dim3(kBlockThreads), 0, stream},
               args.spec.rule == ScaleRule::kAbsmax7 ? QuantizeKernel<kBits, kLanes, true>
                                                     : QuantizeKernel<kBits, kLanes, false>,
               args, RuleDerives(args.spec.rule));
}

template <int kBits>
void Launch(const QuantizeArgs& args, cudaStream_t stream) {
  switch (args.spec.group_size) {
    case 32:
      return LaunchNarrow<kBits, 4>(args, stream);
    case 64:
      return LaunchNarrow<kBits, 8>(args, stream);
    case 128:
      return LaunchNarrow<kBits, 16>(args, stream);
    case 256:
      return LaunchNarrow<kBits, 32>(args, stream);
    default:
      break;
  }
  const int64_t groups = args.out_features * (args.in_features / args.spec.group_size);
  LaunchKernel({dim3(static_cast<unsigned>(groups)), dim3(kBlockThreads), 0, stream},
               QuantizeWideKernel<kBits>, args, RuleDerives(args.spec.rule));
}

}  // namespace

void Quantize(const QuantizeArgs& args, cudaStream_t stream) {
  const int64_t group = args.spec.group_size;
  if (group <= 0 || group % 8 != 0 || args.in_features % group != 0) {
    throw Error(ErrorCode::kShape,
                {.where = "quantise",
                 .what = "the group size does not suit the matrix",
                 .expected = "a multiple of 8 that divides in_features",
                 .found = std::to_string(group) + " of " + std::to_string(args.in_features)});
  }
  QT_CHECK((args.weight == nullptr) != (args.master == nullptr));
  QT_CHECK(args.packed == nullptr || args.scale != nullptr, "codes and scales go together");
  if (args.out_features == 0) return;
  return args.spec.grid.num_bits == 4 ? Launch<4>(args, stream) : Launch<8>(args, stream);
}

}  // namespace quatrain::cuda
