// The linear over BF16 weights: tokens on the m64 side of wgmma, rows of the matrix on the n side,
// 16 to 128 of them, so that small matrices, too, fill all multiprocessors.
//
//   one CTA = 1 or 2 warpgroups, 64 tokens each, + two copying warps
//
//   one ----boxes of the tile's rows of the matrix, K64 each------->  [slot][slot]...
//   other --boxes of x for its tokens------------------------------>  [slot][slot]...
//                                                                         |
//   warpgroup: both in place -> 4 products a K64, one chain over all of K
//
// A tile is a block of rows and up to 128 tokens; a CTA takes every gridDim.x-th, and the copying
// warps run ahead into the next one. The first copies of weights are under way before
// griddepcontrol.wait. Where there are fewer than 64 tokens, the products of the others are made of
// whatever lies behind the box, and not stored.
#include <algorithm>
#include <limits>

#include "kernels/bfloat16.h"
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/linear_plain.h"
#include "kernels/cuda/linear_wide_stream.cuh"
#include "kernels/cuda/plain_product.cuh"
#include "kernels/cuda/tensor_map.h"

namespace quatrain::cuda {
namespace {

constexpr int kTokensOfGroup = 64;
constexpr int kMostWarpgroups = 2;

// Outputs that a thread stores together: one, or eight where y, N and what is added allow it.
enum class StorePart { kOne, kEight };

struct PlainParameters {
  const BFloat16* bias;
  const BFloat16* residual;
  BFloat16* y;
  float* y_float;
  int out_features;
  int num_tokens;
  StorePart part;
  int is_in_row;  // boxes of a slot come in one copy
  int num_boxes;  // of K
  int num_tiles;
  int token_tiles;
  int box_rows;  // tokens in a box of x
  int x_slots;
  int weight_slots;
  uint32_t weights_at;  // the first slot of them in shared memory
};

struct PlainMaps {
  CUtensorMap weight, x;
};

// What a CTA multiplies at a time.
struct PlainTile {
  int row_begin, token_begin;

  __device__ PlainTile(const PlainParameters& p, int index, int rows, int tokens)
      : row_begin(index / p.token_tiles * rows), token_begin(index % p.token_tiles * tokens) {}
};

// A slot of a ring to the copy engine: kBoxes boxes from `box` and `row` on.
template <int kBoxes>
struct SlotCopy {
  const CUtensorMap* map;
  int is_in_row;
  uint32_t box_bytes;

  __device__ __forceinline__ void Issue(uint32_t to, int box, int row, uint32_t full) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) BarrierExpect(full, kBoxes * box_bytes);
    __syncwarp();
    if (lane >= (is_in_row ? 1 : kBoxes)) return;
    const BoxPlace from = {is_in_row ? 0 : (box + lane) * kBoxColumns, row, is_in_row ? box : 0};
    CopyBoxes(to + lane * box_bytes, map, from, full);
  }
};

// The warp that copies weights.
template <int kRows, int kBoxes>
__device__ __forceinline__ void CopyWeights(const PlainParameters& p, const CUtensorMap* map,
                                            uint32_t base, int tokens) {
  const SlotCopy<kBoxes> copy = {map, p.is_in_row, kRows * kBoxRowBytes};
  const WideBarriers barriers(base, p);
  WideSlot slot = {0, 1};
  for (int index = static_cast<int>(blockIdx.x); index < p.num_tiles; index += gridDim.x) {
    const PlainTile tile(p, index, kRows, tokens);
    for (int box = 0; box < p.num_boxes; box += kBoxes) {
      BarrierWait(barriers.weight_empty + 8 * slot.index, slot.parity);
      copy.Issue(base + p.weights_at + slot.index * kBoxes * copy.box_bytes, box, tile.row_begin,
                 barriers.weight_full + 8 * slot.index);
      slot.Advance(p.weight_slots);
    }
  }
}

// The warp that copies x.
template <int kRows, int kBoxes>
__device__ __forceinline__ void CopyTokens(const PlainParameters& p, const CUtensorMap* map,
                                           uint32_t base, int tokens) {
  const SlotCopy<kBoxes> copy = {map, p.is_in_row,
                                 static_cast<uint32_t>(p.box_rows) * kBoxRowBytes};
  const WideBarriers barriers(base, p);
  WideSlot slot = {0, 1};
  for (int index = static_cast<int>(blockIdx.x); index < p.num_tiles; index += gridDim.x) {
    const PlainTile tile(p, index, kRows, tokens);
    for (int box = 0; box < p.num_boxes; box += kBoxes) {
      BarrierWait(barriers.x_empty + 8 * slot.index, slot.parity);
      copy.Issue(base + kBarrierBytes + slot.index * kBoxes * copy.box_bytes, box, tile.token_begin,
                 barriers.x_full + 8 * slot.index);
      slot.Advance(p.x_slots);
    }
  }
}

// Lower half of an operand's descriptor; what is added to it is added to its place.
__device__ __forceinline__ uint32_t LowOfOperand(uint32_t address) {
  return static_cast<uint32_t>(SwizzledOperand(OperandPlace(address)));
}
__device__ __forceinline__ uint64_t OperandOf(uint32_t low) {
  return SwizzledOperand(0) & 0xFFFFFFFF00000000ull | low;
}

// A warpgroup's chains.
template <int kRows, int kBoxes>
struct PlainWalk {
  static constexpr uint32_t kWeightBox = kRows * kBoxRowBytes;

  const PlainParameters& p;
  const uint32_t base;
  const WideBarriers barriers;
  const uint32_t group_offset;
  const uint32_t x_box;
  WideSlot x_slot = {0, 0}, weight_slot = {0, 0};
  uint32_t x_used = 0, weight_used = 0;  // barriers of slots whose products may still run

  __device__ PlainWalk(const PlainParameters& parameters, uint32_t shared, int group)
      : p(parameters),
        base(shared),
        barriers(shared, parameters),
        group_offset(group * kTokensOfGroup * kBoxRowBytes),
        x_box(parameters.box_rows * kBoxRowBytes) {}

  __device__ __forceinline__ void GiveBack(int lane) const {
    __syncwarp();
    ArriveAsWarp(x_used, lane);
    ArriveAsWarp(weight_used, lane);
  }
  __device__ __forceinline__ void Multiply(uint32_t x, uint32_t weights,
                                           float (&d)[kRows / 8][4]) const {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      constexpr uint32_t kStep = kStepBytes >> 4;
      WideProductOfShared<kRows>(d, OperandOf(x + step * kStep), OperandOf(weights + step * kStep));
    }
  }
  // The products of the next slots' first boxes, kSome of them in a group; then gives back the
  // slots before.
  template <int kSome>
  __device__ __forceinline__ void WalkSlot(int boxes, int lane, float (&d)[kRows / 8][4]) {
    BarrierWaitBoth(barriers.x_full + 8 * x_slot.index, x_slot.parity,
                    barriers.weight_full + 8 * weight_slot.index, weight_slot.parity);
    uint32_t x = LowOfOperand(base + kBarrierBytes + x_slot.index * kBoxes * x_box + group_offset);
    uint32_t weights = LowOfOperand(base + p.weights_at + weight_slot.index * kBoxes * kWeightBox);
#pragma unroll 1
    for (int done = 0; done < boxes; done += kSome) {
      FenceProducts();
#pragma unroll
      for (int i = 0; i < kSome; ++i) {
        Multiply(x + OperandPlace(i * x_box), weights + OperandPlace(i * kWeightBox), d);
      }
      CommitProducts();
      x += OperandPlace(kSome * x_box);
      weights += OperandPlace(kSome * kWeightBox);
    }
    WaitForProducts<1>();
    // Everything of the slots before has been used.
    if (x_used != 0) GiveBack(lane);
    x_used = barriers.x_empty + 8 * x_slot.index;
    weight_used = barriers.weight_empty + 8 * weight_slot.index;
    x_slot.Advance(p.x_slots);
    weight_slot.Advance(p.weight_slots);
  }
  // Over the whole of K.
  __device__ __forceinline__ void Run(float (&d)[kRows / 8][4]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    FenceSums(d);
    int left = p.num_boxes;
#pragma unroll 1
    for (; left >= kBoxes; left -= kBoxes) WalkSlot<kBoxes>(kBoxes, lane, d);
    if (left > 0) WalkSlot<1>(left, lane, d);
    WaitForProducts<0>();
    GiveBack(lane);
    x_used = 0;
    FenceSums(d);
  }
};

__device__ __forceinline__ void StoreOne(const PlainParameters& p, int64_t at, int n, float sum) {
  if (n >= p.out_features) return;
  if (p.bias != nullptr) sum = AddRn(sum, ToFloat(p.bias[n]));
  if (p.y_float != nullptr) {
    p.y_float[at] = sum;
    return;
  }
  BFloat16 value = ToBFloat16(sum);
  if (p.residual != nullptr) value = ToBFloat16(AddRn(ToFloat(p.residual[at]), ToFloat(value)));
  p.y[at] = value;
}

// Two neighbouring outputs n of a token, rounded, with bias and residual.
__device__ __forceinline__ uint32_t RoundTwo(const PlainParameters& p, int64_t at, int n, float low,
                                             float high) {
  if (n >= p.out_features) return 0;
  if (p.bias != nullptr) {
    const uint32_t bias = *reinterpret_cast<const uint32_t*>(p.bias + n);
    low = AddRn(low, LowOfPair(bias));
    high = AddRn(high, HighOfPair(bias));
  }
  const uint32_t value = RoundPair(low, high);
  if (p.residual == nullptr) return value;
  const uint32_t residual = *reinterpret_cast<const uint32_t*>(p.residual + at);
  return RoundPair(AddRn(LowOfPair(residual), LowOfPair(value)),
                   AddRn(HighOfPair(residual), HighOfPair(value)));
}

// Lane q of four has the pairs q of parts 0 to 3; afterwards all pairs of part q.
__device__ __forceinline__ void TransposeQuad(uint32_t (&v)[4], int lane) {
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const bool is_upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & distance) != 0) continue;
      const uint32_t given = is_upper ? v[i] : v[i + distance];
      const uint32_t taken = __shfl_xor_sync(0xFFFFFFFFu, given, distance);
      if (is_upper) {
        v[i] = taken;
      } else {
        v[i + distance] = taken;
      }
    }
  }
}

// The sums of a warp: 16 tokens from `token` on, kRows outputs from `row` on.
template <int kRows>
__device__ __forceinline__ void StoreTile(const PlainParameters& p, int token, int row,
                                          const float (&d)[kRows / 8][4]) {
  constexpr int kParts = kRows / 8;
  if (token >= p.num_tokens) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int n = row + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int m = token + 8 * half + lane / 4;
    const bool is_there = m < p.num_tokens;
    const int64_t at = static_cast<int64_t>(m) * p.out_features + n;
    if (p.part == StorePart::kOne) {
#pragma unroll
      for (int i = 0; is_there && i < kParts; ++i) {
        StoreOne(p, at + 8 * i, n + 8 * i, d[i][2 * half]);
        StoreOne(p, at + 8 * i + 1, n + 8 * i + 1, d[i][2 * half + 1]);
      }
      continue;
    }
#pragma unroll
    for (int first = 0; first < kParts; first += 4) {
      uint32_t v[4] = {};
#pragma unroll
      for (int i = 0; i < 4 && first + i < kParts; ++i) {
        const int j = first + i;
        if (is_there) v[i] = RoundTwo(p, at + 8 * j, n + 8 * j, d[j][2 * half], d[j][2 * half + 1]);
      }
      TransposeQuad(v, lane);
      const int part = first + lane % 4;
      const int column = row + 8 * part;
      if (is_there && part < kParts && column < p.out_features) {
        *reinterpret_cast<uint4*>(p.y + static_cast<int64_t>(m) * p.out_features + column) =
            make_uint4(v[0], v[1], v[2], v[3]);
      }
    }
  }
}

template <int kRows, int kBoxes>
__global__ void __launch_bounds__(128 * kMostWarpgroups + kCopyingThreads, 1)
    PlainKernel(const __grid_constant__ PlainParameters p, const __grid_constant__ PlainMaps maps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = SharedAddress(shared);
  // The same for a whole warp, which the compiler then knows.
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const int num_warps = (static_cast<int>(blockDim.x) - kCopyingThreads) / 32;
  const int tokens = num_warps * 16;
  LetNextKernelStart();
  if (threadIdx.x == 0) {
    const WideBarriers barriers(base, p);
    for (int i = 0; i < p.x_slots; ++i) {
      BarrierInit(barriers.x_full + 8 * i, 1);
      BarrierInit(barriers.x_empty + 8 * i, ArrivalsOf(num_warps));
    }
    for (int i = 0; i < p.weight_slots; ++i) {
      BarrierInit(barriers.weight_full + 8 * i, 1);
      BarrierInit(barriers.weight_empty + 8 * i, ArrivalsOf(num_warps));
    }
    FenceForCopies();
  }
  __syncthreads();
  if (warp == num_warps) {
    CopyWeights<kRows, kBoxes>(p, &maps.weight, base, tokens);
  } else if (warp == num_warps + 1) {
    PrefetchMap(&maps.x);
    WaitForPreviousKernel();
    CopyTokens<kRows, kBoxes>(p, &maps.x, base, tokens);
  } else {
    PlainWalk<kRows, kBoxes> walk(p, base, warp / 4);
#pragma unroll 1
    for (int index = static_cast<int>(blockIdx.x); index < p.num_tiles; index += gridDim.x) {
      float d[kRows / 8][4] = {};
      walk.Run(d);
      const PlainTile tile(p, index, kRows, tokens);
      StoreTile<kRows>(p, tile.token_begin + warp * 16, tile.row_begin, d);
    }
  }
}

StorePart PartOf(const PlainParameters& p) {
  const auto is_multiple = [](const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  return p.y != nullptr && p.out_features % 8 == 0 && is_multiple(p.y, 16) &&
                 is_multiple(p.bias, 4) && is_multiple(p.residual, 4)
             ? StorePart::kEight
             : StorePart::kOne;
}

// Slots of x and of weights; what the products of absent tokens read lies in them, too.
template <int kRows, int kBoxes>
size_t CutPlainMemory(const PlainPlan& plan, PlainParameters* p) {
  constexpr int kWeightBytes = kBoxes * kRows * kBoxRowBytes;
  const int x_bytes = kBoxes * p->box_rows * kBoxRowBytes;
  const int room = kSharedBudget - kBarrierBytes;
  p->x_slots = std::min(room / (x_bytes + kWeightBytes), kMostSlots);
  p->weight_slots = std::min((room - p->x_slots * x_bytes) / kWeightBytes, kMostSlots);
  QT_CHECK(p->x_slots >= 2 && p->weight_slots >= 2, "no room for {} rows", kRows);
  p->weights_at = kBarrierBytes + p->x_slots * x_bytes;
  const int tokens_end = static_cast<int>(p->weights_at) +
                         (plan.num_warpgroups * kTokensOfGroup - p->box_rows) * kBoxRowBytes;
  return std::max(tokens_end, static_cast<int>(p->weights_at) + p->weight_slots * kWeightBytes);
}

template <int kRows, int kBoxes>
void Launch(const LinearDecodeArgs& args, const PlainPlan& plan, cudaStream_t stream,
            LaunchOrder order) {
  const int64_t n = args.shape.out_features;
  const int64_t k = args.shape.in_features;
  const int tokens = plan.num_warpgroups * kTokensOfGroup;
  PlainParameters p = {};
  p.bias = args.bias;
  p.residual = args.residual;
  p.y = args.y;
  p.y_float = args.y_float;
  p.out_features = static_cast<int>(n);
  p.num_tokens = static_cast<int>(args.num_tokens);
  p.part = PartOf(p);
  p.is_in_row = k % kBoxColumns == 0 && kBoxes > 1 ? 1 : 0;
  p.num_boxes = static_cast<int>((k + kBoxColumns - 1) / kBoxColumns);
  p.token_tiles = (p.num_tokens + tokens - 1) / tokens;
  p.num_tiles = static_cast<int>((n + kRows - 1) / kRows) * p.token_tiles;
  p.box_rows = std::min(tokens, (p.num_tokens + 7) / 8 * 8);
  const size_t shared_bytes = CutPlainMemory<kRows, kBoxes>(plan, &p);
  const int most = plan.ctas > 0 ? plan.ctas : NumMultiprocessors();
  const int64_t x_stride = args.x_stride == 0 ? k : args.x_stride;
  const int in_copy = p.is_in_row ? kBoxes : 1;
  const PlainMaps maps = {
      .weight = BoxesInRow({static_cast<const BFloat16*>(args.weight), n, k, k}, kRows, in_copy),
      .x = BoxesInRow({args.x, args.num_tokens, k, x_stride}, p.box_rows, in_copy)};
  const auto kernel = PlainKernel<kRows, kBoxes>;
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory of linear_plain");
  LaunchKernel({.grid = dim3(static_cast<unsigned>(std::min(p.num_tiles, most))),
                .block = dim3(static_cast<unsigned>(128 * plan.num_warpgroups + kCopyingThreads)),
                .shared_bytes = shared_bytes,
                .stream = stream,
                .order = order},
               kernel, p, maps);
}

// Boxes of a copy: long ones, of which some find room; longer where a CTA reads weights alone, by
// many rows.
int BoxesFor(const LinearDecodeArgs& args, const PlainPlan& plan) {
  const int64_t tokens = std::min<int64_t>(plan.num_warpgroups * kTokensOfGroup, args.num_tokens);
  const bool is_alone = tokens == args.num_tokens && plan.rows > kTokensOfGroup;
  const int64_t most_bytes = (is_alone ? 64 : 40) << 10;
  const int64_t box_bytes = (plan.rows + (tokens + 7) / 8 * 8) * kBoxRowBytes;
  for (const int boxes : {4, 2}) {
    if (boxes * box_bytes <= most_bytes) return boxes;
  }
  return 1;
}

template <int kRows>
void LaunchRows(const LinearDecodeArgs& args, const PlainPlan& plan, cudaStream_t stream,
                LaunchOrder order) {
  constexpr int kMostBoxes = kRows <= 64 ? 4 : 2;
  const int boxes = plan.boxes > 0 ? plan.boxes : BoxesFor(args, plan);
  if (boxes >= kMostBoxes) return Launch<kRows, kMostBoxes>(args, plan, stream, order);
  if (boxes == 2) return Launch<kRows, 2>(args, plan, stream, order);
  Launch<kRows, 1>(args, plan, stream, order);
}

}  // namespace

// Measured on an H100 (bench/cuda/bench_linear_decode.cu plain).
PlainPlan PlanLinearPlain(const LinearDecodeArgs& args, int num_multiprocessors) {
  const int64_t n = args.shape.out_features;
  const int64_t m = args.num_tokens;
  PlainPlan plan;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int groups = 1; groups <= (m > kTokensOfGroup ? kMostWarpgroups : 1); ++groups) {
    const int64_t tokens = groups * kTokensOfGroup;
    const int64_t token_tiles = (m + tokens - 1) / tokens;
    const int64_t present = std::min(m, tokens);
    for (const int rows : kPlainRows) {
      if (rows > kTokensOfGroup && present < kTokensOfGroup) continue;
      // What a tile reads, with weights that several read counted 1.6 times.
      const int64_t weight_cost = token_tiles > 1 ? 8 * rows : 5 * rows;
      const int64_t tiles = (n + rows - 1) / rows * token_tiles;
      const int64_t waves = (tiles + num_multiprocessors - 1) / num_multiprocessors;
      const int64_t cost = waves * (weight_cost + 5 * present);
      if (cost >= least) continue;
      least = cost;
      plan.rows = rows;
      plan.num_warpgroups = groups;
    }
  }
  return plan;
}

bool IsPlain(const LinearDecodeArgs& args) {
  return args.type == WeightType::kBFloat16 &&
         NumSegments(args.shape.out_features, args.shape.in_features) == 1;
}

// Measured on an H100 (bench/cuda/bench_linear_decode.cu plain).
bool IsFasterPlain(const LinearDecodeArgs& args, int num_multiprocessors) {
  return IsPlain(args) &&
         (args.num_tokens > 8 || args.shape.out_features > int64_t{16} * num_multiprocessors);
}

void LinearPlain(const LinearDecodeArgs& args, const PlainPlan& plan, cudaStream_t stream,
                 LaunchOrder order) {
  QT_CHECK(IsPlain(args), "BF16 weights in one chain");
  if (args.num_tokens == 0) return;
  switch (plan.rows) {
    case 16:
      return LaunchRows<16>(args, plan, stream, order);
    case 24:
      return LaunchRows<24>(args, plan, stream, order);
    case 32:
      return LaunchRows<32>(args, plan, stream, order);
    case 40:
      return LaunchRows<40>(args, plan, stream, order);
    case 48:
      return LaunchRows<48>(args, plan, stream, order);
    case 64:
      return LaunchRows<64>(args, plan, stream, order);
    case 96:
      return LaunchRows<96>(args, plan, stream, order);
    default:
      QT_CHECK(plan.rows == 128, "{} rows", plan.rows);
      return LaunchRows<128>(args, plan, stream, order);
  }
}

}  // namespace quatrain::cuda
