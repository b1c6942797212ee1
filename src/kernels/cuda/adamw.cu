// Plan: 8 neighbours a thread, as eight 16-byte loads in flight (28 bytes a weight are the bound);
// the group's maximum is a shuffle. Warps walk the matrix in strides and add their counts once; a
// warp takes kRun x 256 neighbours in a row, so that it can write their scales in whole sectors.
// Groups other than 32, 64, 128 and 256 are quantised in a second pass over the masters.
#include <string>

#include "kernels/adamw_constants.h"
#include "kernels/cuda/adamw.h"
#include "kernels/cuda/int4_quantize.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/quantize_group.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr uint32_t kFirstBadWeight = 0x7F7F;
constexpr int64_t kMostElements = int64_t{1} << 33;  // places are counted in 32 bits

struct EightFloats {
  float v[8];
};

__device__ __forceinline__ EightFloats LoadEight(const float* data, uint32_t chunk) {
  EightFloats out;
  const auto* source = reinterpret_cast<const float4*>(data) + 2 * chunk;
  *reinterpret_cast<float4*>(out.v) = __ldcs(source);
  *reinterpret_cast<float4*>(out.v + 4) = __ldcs(source + 1);
  return out;
}

__device__ __forceinline__ void StoreEight(const EightFloats& values, float* data, uint32_t chunk) {
  auto* place = reinterpret_cast<float4*>(data) + 2 * chunk;
  __stcs(place, *reinterpret_cast<const float4*>(values.v));
  __stcs(place + 1, *reinterpret_cast<const float4*>(values.v + 4));
}

// The steps of kernels/cpu/adamw.cc, UpdateLanes.
__device__ __forceinline__ void UpdateElement(const AdamWConstants& c, float grad, float* w,
                                              float* m, float* v) {
  const float g = MulRn(grad, c.grad_scale);
  const float decayed = MulRn(*w, c.decay);
  const bool from_grad = c.grad_share >= 0.5f;
  const float share = from_grad ? AddRn(c.grad_share, -1.0f) : c.grad_share;
  *m = AddRn(from_grad ? g : *m, MulRn(share, AddRn(g, -*m)));
  const float square = MulRn(MulRn(c.square_share, g), g);
  *v = AddRn(MulRn(*v, c.beta2), square);
  const float denominator = AddRn(DivRn(SqrtRn(*v), c.root_correction2), c.eps);
  *w = AddRn(decayed, DivRn(MulRn(c.minus_step_size, *m), denominator));
}

struct Counts {
  int flipped_codes = 0;
  int changed_scales = 0;
};

// Codes and the scale of their group.
template <int kBits>
struct CodesOfChunk {
  uint32_t words[kBits / 4];
  BFloat16 scale;
};

// Of eight BF16 weights of a group on kLanes lanes. kBounded: the group's maximum gives the scale,
// as ScaleRule::kAbsmax7 has it. `kept`: the scale, where the rule keeps it.
template <int kBits, int kLanes, bool kBounded>
__device__ __forceinline__ CodesOfChunk<kBits> QuantizeChunk(const QuantizeSpec& spec,
                                                             const uint32_t (&pairs)[4],
                                                             BFloat16 kept) {
  CodesOfChunk<kBits> out;
  out.scale = kept;
  if (kBounded || spec.rule == ScaleRule::kAbsmax7_5) {
    const uint32_t absmax = AbsmaxOfLanes<kLanes>(AbsmaxOfEight(pairs));
    out.scale = ScaleFromAbsmax(FloatFromBits(absmax << 16), spec.rule, spec.grid);
  }
  const EightCodes codes = CodesOfEight<kBounded>(pairs, out.scale, spec.grid);
#pragma unroll
  for (int i = 0; i < kBits / 4; ++i) out.words[i] = WordOf<kBits>(codes, i);
  return out;
}

__device__ __forceinline__ void RoundEight(const EightFloats& values, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) pairs[j] = RoundPair(values.v[2 * j], values.v[2 * j + 1]);
}

// Eight neighbours on each lane of a warp; `chunk` counts such eights. A lane without one works on
// the last chunk and writes nothing. Returns the scale of its group, if there are codes.
template <int kBits, int kLanes, bool kBounded>
__device__ __forceinline__ BFloat16 UpdateChunk(const AdamWTask& a, const AdamWConstants& c,
                                                uint32_t chunk, bool has_chunk,
                                                AdamWCounters* counters, Counts* counts) {
  const EightFloats g = LoadEight(a.grad, chunk);
  EightFloats w = LoadEight(a.master, chunk);
  EightFloats m = LoadEight(a.exp_avg, chunk);
  EightFloats v = LoadEight(a.exp_avg_sq, chunk);
  BFloat16 kept = {};
  if constexpr (kLanes > 0 && !kBounded) kept = a.scale[chunk / kLanes];
  uint32_t pairs[4];
  // The codes that stand there are those of the old masters: made again, they cost no bytes.
  CodesOfChunk<kBits> old = {};
  if constexpr (kLanes > 0) {
    RoundEight(w, pairs);
    old = QuantizeChunk<kBits, kLanes, kBounded>(a.spec, pairs, kept);
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) UpdateElement(c, g.v[j], &w.v[j], &m.v[j], &v.v[j]);
  RoundEight(w, pairs);
  if (has_chunk) {
    if (AbsmaxOfEight(pairs) >= kFirstBadWeight) {
      int first = 0;
      while (first < 7 && ((pairs[first / 2] >> (16 * (first % 2))) & 0x7FFFu) < kFirstBadWeight) {
        ++first;
      }
      atomicMax(&counters->bad, ~(8ull * chunk + first));
    }
    StoreEight(w, a.master, chunk);
    StoreEight(m, a.exp_avg, chunk);
    StoreEight(v, a.exp_avg_sq, chunk);
    if (a.weight_float != nullptr) StoreEight(w, a.weight_float, chunk);
    if (a.weight_bf16 != nullptr) {
      reinterpret_cast<uint4*>(a.weight_bf16)[chunk] =
          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
  __syncwarp();
  // All lanes take part in the shuffles; lanes past the end make up whole groups of their own.
  if constexpr (kLanes > 0) {
    const auto now = QuantizeChunk<kBits, kLanes, kBounded>(a.spec, pairs, kept);
    if (!has_chunk) return now.scale;
    auto* words = reinterpret_cast<uint32_t*>(a.packed) + chunk * (kBits / 4);
#pragma unroll
    for (int i = 0; i < kBits / 4; ++i) {
      counts->flipped_codes += FlipsOf<kBits>(old.words[i], now.words[i]);
      words[i] = now.words[i];
    }
    if (chunk % kLanes == 0) counts->changed_scales += now.scale.bits != old.scale.bits;
    return now.scale;
  }
  return {};
}

// Times 32 chunks that follow each other. Measured on an H100: one run of a warp for plain weights
// takes 1 % longer.
constexpr int kRun = 4;

// kLanes 0: no codes. Whole warps walk together, kRun times 32 chunks; lane l keeps the scale of
// group l of the run.
template <int kBits, int kLanes, bool kBounded>
__global__ void __launch_bounds__(kBlockThreads, 4)
    AdamWKernel(AdamWTask a, AdamWConstants c, AdamWCounters* counters) {
  constexpr int kGroups = kLanes > 0 ? 32 / kLanes : 1;  // of 32 chunks
  const auto chunks = static_cast<uint32_t>(a.out_features * a.in_features / 8);
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t stride = gridDim.x * kBlockThreads * kRun;
  const uint32_t warp = (blockIdx.x * kBlockThreads + threadIdx.x) / 32;
  const bool writes_scales = kLanes > 0 && (kBounded || a.spec.rule == ScaleRule::kAbsmax7_5);
  Counts counts;
  for (uint32_t first = warp * 32 * kRun; first < chunks; first += stride) {
    uint32_t kept = 0;
#pragma unroll 1
    for (int run = 0; run < kRun && first + 32 * run < chunks; ++run) {
      const uint32_t i = first + 32 * run + lane;
      const BFloat16 scale = UpdateChunk<kBits, kLanes, kBounded>(a, c, min(i, chunks - 1),
                                                                  i < chunks, counters, &counts);
      if (writes_scales) {
        const uint32_t bits =
            __shfl_sync(0xFFFFFFFFu, static_cast<uint32_t>(scale.bits), lane % kGroups * kLanes);
        if (lane / kGroups == run) kept = bits;
      }
    }
    const uint32_t group = kLanes > 0 ? first / kLanes + lane : 0;
    if (writes_scales && lane < kGroups * kRun && group * kLanes < chunks) {
      a.scale[group] = BFloat16{static_cast<uint16_t>(kept)};
    }
  }
  if constexpr (kLanes > 0) {
    const int flips = __reduce_add_sync(0xFFFFFFFFu, counts.flipped_codes);
    const int scales = __reduce_add_sync(0xFFFFFFFFu, counts.changed_scales);
    if (threadIdx.x % 32 == 0 && (flips | scales) != 0) {
      atomicAdd(&counters->num_flipped_codes, static_cast<unsigned long long>(flips));
      atomicAdd(&counters->num_changed_scales, static_cast<unsigned long long>(scales));
    }
  }
}

// What all launches of a task share.
struct Launcher {
  const AdamWTask& task;
  const AdamWConstants& constants;
  AdamWCounters* counters;
  cudaStream_t stream;

  template <int kBits, int kLanes, bool kBounded>
  void Run() const {
    const int64_t chunks = task.out_features * task.in_features / 8;
    const int64_t most = static_cast<int64_t>(NumMultiprocessors()) * kBlocksPerMultiprocessor;
    const int64_t blocks = (chunks + kBlockThreads - 1) / kBlockThreads;
    LaunchKernel({dim3(static_cast<unsigned>(blocks < most ? blocks : most)), dim3(kBlockThreads),
                  0, stream},
                 AdamWKernel<kBits, kLanes, kBounded>, task, constants, counters);
  }

  void RunWithoutCodes() const { Run<4, 0, false>(); }

  template <int kBits, int kLanes>
  bool RunWithRule() const {
    if (task.spec.rule == ScaleRule::kAbsmax7) {
      Run<kBits, kLanes, true>();
    } else {
      Run<kBits, kLanes, false>();
    }
    return true;
  }

  // False for other group sizes.
  template <int kBits>
  bool RunWithCodes() const {
    switch (task.spec.group_size) {
      case 32:
        return RunWithRule<kBits, 4>();
      case 64:
        return RunWithRule<kBits, 8>();
      case 128:
        return RunWithRule<kBits, 16>();
      case 256:
        return RunWithRule<kBits, 32>();
      default:
        return false;
    }
  }
};

}  // namespace

void AdamWUpdate(const AdamWStep& step, const AdamWTask& task, AdamWCounters* counters,
                 cudaStream_t stream) {
  const int64_t size = task.out_features * task.in_features;
  const bool has_codes = task.packed != nullptr;
  if (size % 8 != 0 || (has_codes && (task.spec.group_size <= 0 || task.spec.group_size % 8 != 0 ||
                                      task.in_features % task.spec.group_size != 0))) {
    throw Error(
        ErrorCode::kShape,
        {.where = "AdamW on the device",
         .what = "the matrix does not suit 16-byte accesses",
         .expected = "elements and group size in multiples of 8, whole groups",
         .found = std::to_string(task.out_features) + " x " + std::to_string(task.in_features) +
                  ", group size " + std::to_string(task.spec.group_size)});
  }
  QT_CHECK(has_codes == (task.scale != nullptr), "codes and scales go together");
  QT_CHECK(size <= kMostElements, "a matrix of {} elements", size);
  if (size == 0) return;
  const AdamWConstants constants = ConstantsOf(step, task.weight_decay);
  const Launcher launcher = {task, constants, counters, stream};
  if (!has_codes) return launcher.RunWithoutCodes();
  if (task.spec.grid.num_bits == 4 ? launcher.RunWithCodes<4>() : launcher.RunWithCodes<8>())
    return;
  launcher.RunWithoutCodes();
  Quantize({.master = task.master,
            .out_features = task.out_features,
            .in_features = task.in_features,
            .spec = task.spec,
            .packed = task.packed,
            .scale = task.scale},
           stream);
}

}  // namespace quatrain::cuda
