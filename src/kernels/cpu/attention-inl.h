// The two products of attention over FP32 tiles, and the softmax of a row. Compiled once per
// instruction set; include simd_targets.h before Highway.
#if defined(QUATRAIN_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUATRAIN_KERNELS_CPU_ATTENTION_INL_H_
#undef QUATRAIN_KERNELS_CPU_ATTENTION_INL_H_
#else
#define QUATRAIN_KERNELS_CPU_ATTENTION_INL_H_
#endif

#include <cstdint>
#include <limits>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {

// A row of head_dim elements as FP32, padded with zeros to `dim`.
template <class T>
HWY_INLINE void LoadRow(const T* from, int64_t head_dim, int64_t dim, float* to) {
  for (int64_t d = 0; d < dim; d += kF16Lanes) Store16(LoadAt16(from, d, head_dim), to + d);
}

// Four dot products with rows `stride` apart, each in 16 partial sums (lane d % 16).
struct FourSums {
  F16 sum[4];
};
HWY_INLINE FourSums DotFour(const float* q, const float* keys, int64_t stride, int64_t dim) {
  FourSums sums{{Zero16(), Zero16(), Zero16(), Zero16()}};
  for (int64_t d = 0; d < dim; d += kF16Lanes) {
    const F16 x = Load16(q + d);
    sums.sum[0] = Fma(x, Load16(keys + d), sums.sum[0]);
    sums.sum[1] = Fma(x, Load16(keys + stride + d), sums.sum[1]);
    sums.sum[2] = Fma(x, Load16(keys + 2 * stride + d), sums.sum[2]);
    sums.sum[3] = Fma(x, Load16(keys + 3 * stride + d), sums.sum[3]);
  }
  return sums;
}

// Dot products of q with kCount keys, kStride rows apart: lane i of the result belongs to key i.
// The sum trees of a register full of keys are added together, level by level.
template <int kCount, int kStride>
HWY_INLINE Part KeyDots(const float* q, const float* keys, int64_t dim) {
#if HWY_NATIVE_FMA
  constexpr int kDistance = static_cast<int>(kPartLanes) / kCount;
  if constexpr (kCount == 4) {
    const FourSums sums = DotFour(q, keys, kStride * dim, dim);
    const Part even = AddPairs<2 * kDistance>(FoldParts(sums.sum[0]), FoldParts(sums.sum[2]));
    const Part odd = AddPairs<2 * kDistance>(FoldParts(sums.sum[1]), FoldParts(sums.sum[3]));
    return AddPairs<kDistance>(even, odd);
  } else {
    const Part even = KeyDots<kCount / 2, kStride * 2>(q, keys, dim);
    const Part odd = KeyDots<kCount / 2, kStride * 2>(q, keys + kStride * dim, dim);
    return AddPairs<kDistance>(even, odd);
  }
#else
  F16 sum = Zero16();
  for (int64_t d = 0; d < dim; d += kF16Lanes) sum = Fma(Load16(q + d), Load16(keys + d), sum);
  return FoldParts(sum);
#endif
}

// scores[j] = dot(q, keys_j), j < num_keys rounded up to 16; the caller drops those past the end.
HWY_INLINE void ScoreRow(const float* q, const float* keys, int64_t num_keys, int64_t dim,
                         float* scores) {
  for (int64_t j = 0; j < num_keys; j += kF16Lanes) {
    for (int64_t lane = 0; lane < kF16Lanes; lane += kPartLanes) {
      PartStore(KeyDots<kPartLanes, 1>(q, keys + (j + lane) * dim, dim), scores + j + lane);
    }
  }
}

// out_r += sum over j of weight(r, j) * values_j: one fma chain over j ascending per element.
struct WeightedSum {
  const float* weights;  // weight(r, j) at r * row_stride + j * key_stride
  int64_t row_stride, key_stride;
  const float* values;  // rows of dim
  int64_t count;        // number of j
  int64_t dim;          // a multiple of 16
  float* out;           // rows of dim
};

template <int kRows, int kSteps>
HWY_INLINE void AddWeightedColumns(const WeightedSum& args, int64_t d) {
  F16 sums[kRows][kSteps];
  QUATRAIN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    QUATRAIN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      sums[r][s] = Load16(args.out + r * args.dim + d + s * kF16Lanes);
    }
  }
  const float* weights = args.weights;
  const float* values = args.values + d;
  for (int64_t j = 0; j < args.count; ++j) {
    F16 value[kSteps];
    QUATRAIN_UNROLL
    for (int s = 0; s < kSteps; ++s) value[s] = Load16(values + s * kF16Lanes);
    QUATRAIN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const F16 weight = Set16(weights[r * args.row_stride]);
      QUATRAIN_UNROLL
      for (int s = 0; s < kSteps; ++s) sums[r][s] = Fma(weight, value[s], sums[r][s]);
    }
    weights += args.key_stride;
    values += args.dim;
  }
  QUATRAIN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    QUATRAIN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      Store16(sums[r][s], args.out + r * args.dim + d + s * kF16Lanes);
    }
  }
}

// As many columns at once as the registers of the machine hold.
template <int kRows>
HWY_INLINE void AddWeighted(const WeightedSum& args) {
  int64_t d = 0;
  if constexpr (kParts == 1 || kRows == 1) {
    for (; d + 4 * kF16Lanes <= args.dim; d += 4 * kF16Lanes) AddWeightedColumns<kRows, 4>(args, d);
  }
  if constexpr (kParts == 1 || kRows <= 2) {
    for (; d + 2 * kF16Lanes <= args.dim; d += 2 * kF16Lanes) AddWeightedColumns<kRows, 2>(args, d);
  }
  for (; d < args.dim; d += kF16Lanes) AddWeightedColumns<kRows, 1>(args, d);
}

// Turns dot products into exp(s - max s), s = dot * scale > 0, and returns their sum (16 partial
// sums, lane j % 16, and the tree). Entries up to the next multiple of 16 become 0.
HWY_INLINE float SoftmaxInPlace(float* scores, int64_t num_keys, float scale) {
  const int64_t padded = (num_keys + kF16Lanes - 1) / kF16Lanes * kF16Lanes;
  for (int64_t j = num_keys; j < padded; ++j) scores[j] = -std::numeric_limits<float>::infinity();
  F16 largest = Load16(scores);
  for (int64_t j = kF16Lanes; j < padded; j += kF16Lanes) {
    largest = Max16(largest, Load16(scores + j));
  }
  // Rounding keeps order, so the scaled maximum is the maximum of the scaled.
  const F16 factor = Set16(scale);
  const F16 shift = Set16(LargestLane(largest) * scale);
  F16 sums = Zero16();
  for (int64_t j = 0; j < padded; j += kF16Lanes) {
    const F16 p = Exp16(Load16(scores + j) * factor - shift);
    Store16(p, scores + j);
    sums = sums + p;
  }
  return SumLanes(sums);
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
