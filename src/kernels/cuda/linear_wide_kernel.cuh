// The wide linear: weights on the m64 side of wgmma, tokens on the n side, 32 to 128 of them. Codes
// are dequantised in registers from the kernel layout, which is that of the fragments.
//
//   one CTA = 1 to 3 warpgroups, 64 rows each, + two copying warps
//
//   one ---codes of the CTA's rows, K512 at a time---->  [slot][slot]...
//   other ---boxes of x for its tokens---------------->  [slot][slot]...
//                                                            |
//   warpgroup: codes (LDS.128) -> BF16 A fragments of K64 (fma), B in place -> 4 products
//
// Every CTA reads all of its tokens' x. So the CTAs of a cluster bring a share of its rows each,
// and to all of them at once; a slot of x is free when all of them have used it. While the products
// of one K64 run, the fragments of the next are made. The first copies of weights are under way
// before griddepcontrol.wait.
#pragma once

#include "kernels/bfloat16.h"
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_wide_stream.cuh"
#include "kernels/cuda/wide_product.cuh"

namespace quatrain::cuda {

// The fragments of K64 (half of a chunk) for a warp's 16 rows: four steps of four registers.
template <class Format, int kHalf>
__device__ __forceinline__ void MakeFragments(const typename Format::Chunk (&codes)[kUnitsOfWarp],
                                              GroupFactors (&factors)[kUnitsOfWarp],
                                              uint32_t (&a)[4][4]) {
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    uint32_t upper[4], lower[4];
    Format::Weights(codes[0], 2 * kHalf + pair, &factors[0], upper);
    Format::Weights(codes[1], 2 * kHalf + pair, &factors[1], lower);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      a[2 * pair + step][0] = upper[2 * step];
      a[2 * pair + step][1] = lower[2 * step];
      a[2 * pair + step][2] = upper[2 * step + 1];
      a[2 * pair + step][3] = lower[2 * step + 1];
    }
  }
}

template <int kTokens>
__device__ __forceinline__ void IssueProducts(float (&d)[kTokens / 8][4], const uint32_t (&a)[4][4],
                                              uint32_t box) {
  const uint32_t place = OperandPlace(box);
  FenceProducts();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    WideProduct<kTokens>(d, a[step], SwizzledOperand(place + OperandPlace(step * kStepBytes)));
  }
  CommitProducts();
}

// A warpgroup's way through the boxes of x, slot by slot.
template <int kTokens>
struct WideBoxes {
  static constexpr uint32_t kBoxBytes = kTokens * kBoxRowBytes;
  static constexpr int kBoxes = kBoxesAtOnce<kTokens>;
  WideSlot slot = {0, 0};
  uint32_t box = 0;  // the current one
  int left = 0;      // boxes of the slot after it

  // Goes to the next box, of this half of a chunk. What to give back when the products before it
  // are through: the barrier of the slot before, or 0.
  template <int kHalf>
  __device__ __forceinline__ uint32_t Next(const WideParameters& p, const WideBarriers& barriers,
                                           uint32_t base, bool is_first) {
    box += kBoxBytes;
    if ((kBoxes > 1 && kHalf == 1) || left > 0) {
      --left;
      return 0;
    }
    const uint32_t used = is_first ? 0 : barriers.x_empty + 8 * slot.index;
    if (!is_first) slot.Advance(p.x_slots);
    BarrierWait(barriers.x_full + 8 * slot.index, slot.parity);
    box = base + kBarrierBytes + slot.index * kBoxes * kBoxBytes;
    left = kBoxes - 1;
    return used;
  }
};

// A warpgroup's chains over the whole of K.
template <class Format, int kTokens>
struct WideWalk {
  using Codes = typename Format::Chunk[kUnitsOfWarp];

  const WideParameters& p;
  const uint32_t base;
  const WideBarriers barriers;
  const int warp, lane;
  WideBoxes<kTokens> x;
  WideSlot codes_slot = {0, 0};
  int chunks_left = 0;  // of the slot of codes
  uint32_t codes_at = 0;

  __device__ WideWalk(const WideParameters& parameters, uint32_t shared, int warp_index)
      : p(parameters),
        base(shared),
        barriers(shared, parameters),
        warp(warp_index),
        lane(threadIdx.x % 32) {}

  // The codes of `chunk`, the next one.
  __device__ __forceinline__ void LoadCodes(int chunk, Codes& codes) {
    if (chunks_left == 0) {
      if (chunk > 0) {
        __syncwarp();
        ArriveAsWarp(barriers.weight_empty + 8 * codes_slot.index, lane);
        codes_slot.Advance(p.weight_slots);
      }
      BarrierWait(barriers.weight_full + 8 * codes_slot.index, codes_slot.parity);
      codes_at = base + p.weight_offset + codes_slot.index * p.weight_bytes +
                 kUnitsOfWarp * warp * p.unit_pitch;
      chunks_left = kChunksAtOnce;
    }
    Format::Load(codes_at, lane, &codes[0]);
    Format::Load(codes_at + p.unit_pitch, lane, &codes[1]);
    codes_at += Format::kChunkBytes;
    --chunks_left;
  }

  // Half of a chunk: its fragments, and the products with the next box of x.
  template <int kHalf>
  __device__ __forceinline__ void Half(const Codes& codes, GroupFactors (&factors)[kUnitsOfWarp],
                                       uint32_t (&a)[4][4], bool is_first,
                                       float (&d)[kTokens / 8][4]) {
    const uint32_t used = x.template Next<kHalf>(p, barriers, base, is_first);
    MakeFragments<Format, kHalf>(codes, factors, a);
    IssueProducts<kTokens>(d, a, x.box);
    WaitForProducts<1>();
    // Everything of the slot before has been used.
    if (used != 0) {
      __syncwarp();
      ArriveAtAll(used, p.cluster, lane);
    }
  }

  __device__ __forceinline__ void Run(float (&d)[kTokens / 8][4]) {
    uint32_t a[2][4][4];
    Codes codes, next;
    GroupFactors factors[kUnitsOfWarp];
    FenceSums(d);
    LoadCodes(0, next);
#pragma unroll 1
    for (int chunk = 0; chunk < p.num_chunks; ++chunk) {
      codes[0] = next[0];
      codes[1] = next[1];
      if (chunk + 1 < p.num_chunks) LoadCodes(chunk + 1, next);
      Half<0>(codes, factors, a[0], chunk == 0, d);
      Half<1>(codes, factors, a[1], false, d);
    }
    WaitForProducts<0>();
    FenceSums(d);
  }
};

// A warpgroup's sums to shared memory, FP32, a token a row: what follows is a loop of few
// instructions, which straight from the registers would be thousands that run once.
template <class Format, int kTokens>
__device__ __forceinline__ void StageSums(uint32_t stage, const float (&d)[kTokens / 8][4]) {
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x / 32 % 4 * 16 + lane / 4;
  const uint32_t at = stage + 4 * (lane % 4 * 2 * kStagePitch + row);
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int token = i / 4 * 8 + i % 2;
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 4 * (token * kStagePitch + i % 4 / 2 * 8)),
                 "f"(d[i / 4][i % 4] * Format::kUnscale)
                 : "memory");
  }
}

__device__ __forceinline__ uint2 RoundFour(const float (&v)[4]) {
  const auto pair = [](float a, float b) {
    return ToBFloat16(a).bits | uint32_t{ToBFloat16(b).bits} << 16;
  };
  return {pair(v[0], v[1]), pair(v[2], v[3])};
}

// Four neighbouring outputs n of a row of y.
__device__ __forceinline__ void StoreFour(const WideParameters& p, int64_t row, int n,
                                          float (&v)[4]) {
  if (!p.is_aligned) {
    for (int i = 0; i < 4 && n + i < p.out_features; ++i)
      StoreOne(p, row * p.out_features + n + i, n + i, v[i]);
    return;
  }
  if (n >= p.out_features) return;
  const int64_t at = row * p.out_features + n;
  const auto add = [&v](const BFloat16* four) {
    const uint2 w = *reinterpret_cast<const uint2*>(four);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto bits = static_cast<uint16_t>((i < 2 ? w.x : w.y) >> (i % 2 * 16));
      v[i] = __fadd_rn(v[i], ToFloat(BFloat16{bits}));
    }
  };
  if (p.bias != nullptr) add(p.bias + n);
  if (p.y_float != nullptr) {
    *reinterpret_cast<float4*>(p.y_float + at) = {v[0], v[1], v[2], v[3]};
    return;
  }
  if (p.residual != nullptr) {
#pragma unroll
    for (float& value : v) value = ToFloat(ToBFloat16(value));
    add(p.residual + at);
  }
  *reinterpret_cast<uint2*>(p.y + at) = RoundFour(v);
}

// The staged sums of a warpgroup: four neighbouring outputs a thread, of kOutputs a token, whose
// first is `row`; `load` gives them from the token's sums.
template <int kOutputs, class Load>
__device__ __forceinline__ void StoreTokens(const WideParameters& p, const WideTile& tile, int row,
                                            uint32_t stage, const Load& load) {
  constexpr int kThreads = kOutputs / 4;  // a token
  const int thread = threadIdx.x % 128;
  const int column = thread % kThreads * 4;
#pragma unroll 1
  for (int token = thread / kThreads; token < tile.num_rows; token += 128 / kThreads) {
    float v[4];
    load(stage + 4 * token * kStagePitch, column, v);
    StoreFour(p, tile.row_begin + token, row + column, v);
  }
}

__device__ __forceinline__ void StoreRows(const WideParameters& p, const WideTile& tile, int row,
                                          uint32_t stage) {
  StoreTokens<kRowsOfGroup>(p, tile, row, stage, [](uint32_t sums, int column, float(&v)[4]) {
    const uint4 bits = LoadShared16(sums + 4 * column);
    v[0] = __uint_as_float(bits.x);
    v[1] = __uint_as_float(bits.y);
    v[2] = __uint_as_float(bits.z);
    v[3] = __uint_as_float(bits.w);
  });
}

// The same where a warp's rows are 8 of gate and the same 8 of up: half the outputs.
__device__ __forceinline__ void StoreSwiGlu(const WideParameters& p, const WideTile& tile, int row,
                                            uint32_t stage) {
  const auto load = [](uint32_t sums, int column, float(&v)[4]) {
    const uint32_t at = sums + 4 * (column / 8 * 16 + column % 8);
    const uint4 gate = LoadShared16(at);
    const uint4 up = LoadShared16(at + 4 * kUnitRows);
    const auto output = [](uint32_t g, uint32_t u) {
      return SwiGlu(RoundedToBFloat16(__uint_as_float(g)), RoundedToBFloat16(__uint_as_float(u)));
    };
    v[0] = output(gate.x, up.x);
    v[1] = output(gate.y, up.y);
    v[2] = output(gate.z, up.z);
    v[3] = output(gate.w, up.w);
  };
  StoreTokens<kRowsOfGroup / 2>(p, tile, row, stage, load);
}

template <class Format, int kTokens>
__global__ void __launch_bounds__(128 * kMostGroups + kCopyingThreads, 1)
    WideKernel(const __grid_constant__ WideParameters p,
               const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  // The same for a whole warp, which the compiler then knows.
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const int num_warps = (static_cast<int>(blockDim.x) - kCopyingThreads) / 32;
  LetNextKernelStart();
  const WideTile tile = TileOf<kTokens>(p);
  if (threadIdx.x == 0) {
    const WideBarriers barriers(base, p);
    for (int i = 0; i < p.x_slots; ++i) {
      BarrierInit(barriers.x_full + 8 * i, 1);
      BarrierInit(barriers.x_empty + 8 * i, ArrivalsOf(num_warps * p.cluster));
    }
    for (int i = 0; i < p.weight_slots; ++i) {
      BarrierInit(barriers.weight_full + 8 * i, 1);
      BarrierInit(barriers.weight_empty + 8 * i, ArrivalsOf(num_warps));
    }
    FenceForCopies();
  }
  __syncthreads();
  ArriveInCluster();
  if (warp == num_warps) {
    CopyWeights<Format>(p, base, num_warps / 4);
  } else if (warp == num_warps + 1) {
    WaitForCluster();
    WaitForPreviousKernel();
    CopyX<kTokens>(p, &x_map, base, tile);
  } else {
    WaitForCluster();
    float d[kTokens / 8][4] = {};
    WideWalk<Format, kTokens>(p, base, warp).Run(d);
    // The slots are free when all warps are through.
    const int group = warp / 4;
    const uint32_t stage = base + kBarrierBytes + group * kTokens * kStagePitch * 4;
    SyncSome(1, 32 * num_warps);
    StageSums<Format, kTokens>(stage, d);
    SyncSome(2 + group, 128);
    const int index = static_cast<int>(blockIdx.x) * num_warps / 4 + group;
    if (p.partner_units != 0) {
      StoreSwiGlu(p, tile, index * (kRowsOfGroup / 2), stage);
    } else {
      StoreRows(p, tile, index * kRowsOfGroup, stage);
    }
  }
  // No CTA leaves while another may copy to it or arrive at its barriers.
  __syncwarp();
  ArriveInCluster();
  WaitForCluster();
}

}  // namespace quatrain::cuda
