#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;

__device__ bool IsExactScale(BFloat16 scale) {
  const float magnitude = fabsf(ToFloat(scale));
  return magnitude == 0.0f || (magnitude >= 0x1p-100f && magnitude <= 0x1p10f);
}

__device__ __forceinline__ void SwapIf(bool swaps, uint32_t* a, uint32_t* b) {
  const uint32_t old = *a;
  *a = swaps ? *b : old;
  *b = swaps ? old : *b;
}
// v[i] <- v[i ^ t] for t in 0..3.
__device__ __forceinline__ void ExchangeIndex(uint32_t (&v)[4], int t) {
  SwapIf((t & 1) != 0, &v[0], &v[1]);
  SwapIf((t & 1) != 0, &v[2], &v[3]);
  SwapIf((t & 2) != 0, &v[0], &v[2]);
  SwapIf((t & 2) != 0, &v[1], &v[3]);
}

// INT4: lane t of four has words 4 t .. 4 t + 3 of a row's K128; it gets byte t of all sixteen,
// four words of bytes in order.
__device__ __forceinline__ void GatherBytes(uint32_t (&v)[4], int t) {
  const uint32_t low[2] = {__byte_perm(v[0], v[1], 0x5140), __byte_perm(v[2], v[3], 0x5140)};
  const uint32_t high[2] = {__byte_perm(v[0], v[1], 0x7362), __byte_perm(v[2], v[3], 0x7362)};
  v[0] = __byte_perm(low[0], low[1], 0x5410);
  v[1] = __byte_perm(low[0], low[1], 0x7632);
  v[2] = __byte_perm(high[0], high[1], 0x5410);
  v[3] = __byte_perm(high[0], high[1], 0x7632);
  ExchangeIndex(v, t);
#pragma unroll
  for (int i = 1; i < 4; ++i) v[i] = __shfl_xor_sync(0xFFFFFFFFu, v[i], i);
  ExchangeIndex(v, t);
}

// The lower nibbles of four bytes side by side.
__device__ __forceinline__ uint32_t LowerNibbles(uint32_t bytes) {
  uint32_t n = bytes & 0x0F0F0F0Fu;
  n = (n | n >> 4) & 0x00FF00FFu;
  return (n | n >> 8) & 0xFFFFu;
}

// INT4 codes of a lane in a chunk: words 4 t .. 4 t + 3 of its row's sixteen, 8 (zero) past the
// end.
__device__ __forceinline__ uint4 LoadWords(const PackedShape& shape, const uint32_t* codes,
                                           int64_t row, int64_t at) {
  constexpr uint32_t kZero = 0x88888888u;
  const int64_t row_words = shape.in_features / 8;
  uint4 v = make_uint4(kZero, kZero, kZero, kZero);
  if (row >= shape.out_features || at >= row_words) return v;
  const uint32_t* source = codes + row * row_words + at;
  if (row_words % 4 == 0 && reinterpret_cast<uintptr_t>(codes) % 16 == 0) {
    return __ldcs(reinterpret_cast<const uint4*>(source));
  }
  v.x = source[0];
  if (at + 1 < row_words) v.y = source[1];
  if (at + 2 < row_words) v.z = source[2];
  if (at + 3 < row_words) v.w = source[3];
  return v;
}

// Codes of a chunk in the kernel layout's order: four words (INT4), from LoadWords'.
__device__ __forceinline__ void StoreWords(uint4 v, int lane, uint8_t* out) {
  uint32_t words[4] = {v.x, v.y, v.z, v.w};
  GatherBytes(words, lane % 4);
  uint32_t result[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    result[w] = LowerNibbles(words[w]) | LowerNibbles(words[w] >> 4) << 16;
  }
  *reinterpret_cast<uint4*>(out + lane * 16) =
      make_uint4(result[0], result[1], result[2], result[3]);
}

// INT8: lane 4 r + t gathers half-word t of each 8 inputs of row r.
__device__ __forceinline__ void PackBytes(const PackedShape& shape, const uint32_t* codes,
                                          int64_t row, int64_t chunk, int lane, uint8_t* out) {
  constexpr int kWords = 32;  // of one row in a chunk
  const int64_t row_words = shape.in_features / 4;
  const int t = lane % 4;
  uint32_t words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const int64_t at = chunk * kWords + i;
    words[i] =
        row < shape.out_features && at < row_words ? codes[row * row_words + at] : 0x80808080u;
  }
  uint32_t result[8] = {};
#pragma unroll
  for (int w = 0; w < 8; ++w) {
    // Eight inputs are two words; inputs 2t and 2t + 1 lie in word t / 2.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t both = t < 2 ? words[4 * w + 2 * i] : words[4 * w + 2 * i + 1];
      const uint32_t pair = both >> (16 * (t % 2));
      result[w] |= (pair & 255u) << (8 * i) | (pair >> 8 & 255u) << (16 + 8 * i);
    }
  }
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    *reinterpret_cast<uint4*>(out + part * 512 + lane * 16) = make_uint4(
        result[4 * part], result[4 * part + 1], result[4 * part + 2], result[4 * part + 3]);
  }
}

// Chunks that a warp writes: four of INT4, whose loads are all under way at once, one of INT8.
template <int kBits>
constexpr int kChunksOfWarp = kBits == 4 ? 4 : 1;

// Eight rows and K128 as one number and another, without a division of 64 bits.
struct ChunkPlace {
  int64_t unit;
  int64_t chunk;
};
__device__ __forceinline__ ChunkPlace PlaceOfChunk(int64_t index, int64_t num_chunks) {
  if (index < int64_t{1} << 32) {
    const auto unit = static_cast<uint32_t>(index) / static_cast<uint32_t>(num_chunks);
    return {unit, static_cast<uint32_t>(index) - unit * static_cast<uint32_t>(num_chunks)};
  }
  return {index / num_chunks, index % num_chunks};
}

// A warp writes kChunksOfWarp chunks.
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    PackKernel(PackedShape shape, const uint32_t* codes, const BFloat16* scale, uint8_t* packed,
               int32_t* num_bad_scales) {
  constexpr int kEach = kChunksOfWarp<kBits>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32 * kEach;
  const int64_t num_chunks = NumChunks(shape);
  const int64_t end = min(NumUnits(shape) * num_chunks, first + kEach);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int scales = static_cast<int>(ScalesPerChunk(shape));
  uint4 words[kEach];
  BFloat16 values[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (first + i >= end) break;
    const ChunkPlace place = PlaceOfChunk(first + i, num_chunks);
    if constexpr (kBits == 4) {
      words[i] = LoadWords(shape, codes, place.unit * kUnitRows + lane / 4,
                           place.chunk * 16 + 4 * (lane % 4));
    }
    const int64_t row = place.unit * kUnitRows + lane / scales;
    const int64_t input = place.chunk * kChunkInputs + lane % scales * (kChunkInputs / scales);
    values[i] = {};
    if (lane < kUnitRows * scales && row < shape.out_features && input < shape.in_features) {
      values[i] = scale[row * (shape.in_features / shape.group_size) + input / shape.group_size];
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (first + i >= end) break;
    uint8_t* out = packed + (first + i) * ChunkBytes(shape);
    if constexpr (kBits == 4) {
      StoreWords(words[i], lane, out);
    } else {
      const ChunkPlace place = PlaceOfChunk(first + i, num_chunks);
      PackBytes(shape, codes, place.unit * kUnitRows + lane / 4, place.chunk, lane, out);
    }
    if (lane < kUnitRows * scales) {
      if (num_bad_scales != nullptr && !IsExactScale(values[i])) atomicAdd(num_bad_scales, 1);
      reinterpret_cast<BFloat16*>(out + CodeBytes(shape))[lane] = values[i];
    }
  }
}

// A thread restores one word of codes; the first thread of a group its scale.
__global__ void UnpackKernel(PackedShape shape, const uint8_t* packed, uint32_t* codes,
                             BFloat16* scale) {
  const int bits = shape.num_bits;
  const int64_t row_words = shape.in_features * bits / 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= shape.out_features * row_words) return;
  const int64_t row = index / row_words;
  const int per_word = 32 / bits;
  const int64_t first = index % row_words * per_word;
  const uint8_t* chunk =
      packed + row / kUnitRows * UnitBytes(shape) + first / kChunkInputs * ChunkBytes(shape);
  uint32_t word = 0;
  for (int i = 0; i < per_word; ++i) {
    const CodePlace place = PlaceOfCode(static_cast<int>(row % kUnitRows),
                                        static_cast<int>(first % kChunkInputs) + i, bits);
    const uint32_t u = reinterpret_cast<const uint32_t*>(chunk)[place.word] >> place.shift;
    word |= (u & ((1u << bits) - 1u)) << (bits * i);
  }
  codes[index] = word;
  if (first % shape.group_size == 0) {
    const int64_t scales = ScalesPerChunk(shape);
    const int64_t at = row % kUnitRows * scales + first % kChunkInputs * scales / kChunkInputs;
    scale[row * (shape.in_features / shape.group_size) + first / shape.group_size] =
        reinterpret_cast<const BFloat16*>(chunk + CodeBytes(shape))[at];
  }
}

// Four words of codes a thread, all loads first. float(q) comes from the bits of 2^23 + u.
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(PackedShape shape, const uint32_t* codes, const BFloat16* scale,
                     BFloat16* weight) {
  constexpr int kWords = 4;
  constexpr int kPerWord = 32 / kBits;
  const auto row_words = static_cast<uint32_t>(shape.in_features / kPerWord);
  const auto group_size = static_cast<uint32_t>(shape.group_size);
  const auto row_scales = static_cast<uint32_t>(shape.in_features / shape.group_size);
  const int64_t total = shape.out_features * row_words;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kWords) + threadIdx.x;
  uint32_t words[kWords] = {};
  float scales[kWords] = {};
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= total) continue;
    words[i] = __ldcs(codes + at);
    const uint32_t row = static_cast<uint32_t>(at) / row_words;
    const uint32_t input = (static_cast<uint32_t>(at) - row * row_words) * kPerWord;
    scales[i] = ToFloat(scale[static_cast<int64_t>(row) * row_scales + input / group_size]);
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const int64_t at = first + i * kThreads;
    if (at >= total) continue;
    uint32_t pairs[kPerWord / 2];
#pragma unroll
    for (int j = 0; j < kPerWord; j += 2) {
      float w[2];
      for (int side = 0; side < 2; ++side) {
        const uint32_t u = words[i] >> (kBits * (j + side)) & ((1u << kBits) - 1);
        const float q = FloatFromBits(0x4B000000u | u) - (8388608.0f + (1 << (kBits - 1)));
        w[side] = __fmul_rn(q, scales[i]);
      }
      pairs[j / 2] = RoundPair(w[0], w[1]);
    }
    if constexpr (kBits == 4) {
      reinterpret_cast<uint4*>(weight)[at] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    } else {
      reinterpret_cast<uint2*>(weight)[at] = make_uint2(pairs[0], pairs[1]);
    }
  }
}

// A pair of codes, at bits 3..0 and 19..16, times their scale.
__device__ __forceinline__ uint32_t WeightsOfPair(uint32_t bits, float scale) {
  const float low = FloatFromBits(0x4B000000u | (bits & 15u)) - 8388616.0f;
  const float high = FloatFromBits(0x4B000000u | (bits >> 16 & 15u)) - 8388616.0f;
  return RoundPair(__fmul_rn(low, scale), __fmul_rn(high, scale));
}

// INT4: a warp writes a chunk. Lane 4 r + t has inputs 2 t, 2 t + 1 of each eight of row r; four
// lanes exchange them for sixteen bytes each.
__global__ void __launch_bounds__(kThreads)
    DequantizePackedKernel(PackedShape shape, const uint8_t* packed, BFloat16* weight) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int64_t num_chunks = NumChunks(shape);
  if (index >= NumUnits(shape) * num_chunks) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int t = lane % 4;
  const int scales = static_cast<int>(ScalesPerChunk(shape));
  const uint8_t* chunk = packed + index * ChunkBytes(shape);
  const uint4 codes = __ldcs(reinterpret_cast<const uint4*>(chunk + lane * 16));
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  const auto* scale =
      reinterpret_cast<const BFloat16*>(chunk + CodeBytes(shape)) + lane / 4 * scales;
  const ChunkPlace place = PlaceOfChunk(index, num_chunks);
  const int64_t row = place.unit * kUnitRows + lane / 4;
  BFloat16* const out = weight + row * shape.in_features;
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const float s = ToFloat(scale[p * scales / 4]);
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = WeightsOfPair(words[p] >> (4 * i), s);
    ExchangeIndex(v, t);
#pragma unroll
    for (int i = 1; i < 4; ++i) v[i] = __shfl_xor_sync(0xFFFFFFFFu, v[i], i);
    ExchangeIndex(v, t);
    const int64_t input = place.chunk * kChunkInputs + p * 32 + t * 8;
    if (row < shape.out_features && input < shape.in_features) {
      *reinterpret_cast<uint4*>(out + input) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

LaunchShape ShapeFor(int64_t threads, cudaStream_t stream) {
  return {.grid = dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)),
          .block = dim3(kThreads),
          .stream = stream};
}

}  // namespace

void CheckPackedShape(const PackedShape& shape) {
  const int64_t g = shape.group_size;
  const int64_t k = shape.in_features;
  const bool is_group = g == 32 || g == 64 || (g > 0 && g % 128 == 0) || (g > 0 && g == k);
  if ((shape.num_bits != 4 && shape.num_bits != 8) || shape.out_features <= 0 || k <= 0 ||
      k % 8 != 0 || !is_group || k % g != 0) {
    throw Error(
        ErrorCode::kShape,
        ErrorParts{.where = "kernel layout of a weight",
                   .expected =
                       "4 or 8 bits, K a multiple of 8 and of the group size, group size 32, "
                       "64, a multiple of 128, or K",
                   .found = fmt::format("{} bits, N {}, K {}, group size {}", shape.num_bits,
                                        shape.out_features, k, g)});
  }
}

void PackWeights(const PackedShape& shape, const CodeTensors& tensors, uint8_t* packed,
                 int32_t* num_bad_scales, cudaStream_t stream) {
  CheckPackedShape(shape);
  const int64_t chunks = NumUnits(shape) * NumChunks(shape);
  const int each = shape.num_bits == 4 ? kChunksOfWarp<4> : kChunksOfWarp<8>;
  LaunchKernel(ShapeFor((chunks + each - 1) / each * 32, stream),
               shape.num_bits == 4 ? PackKernel<4> : PackKernel<8>, shape,
               reinterpret_cast<const uint32_t*>(tensors.codes), tensors.scale, packed,
               num_bad_scales);
}

void UnpackWeights(const PackedShape& shape, const uint8_t* packed, const CodeTensors& tensors,
                   cudaStream_t stream) {
  CheckPackedShape(shape);
  LaunchKernel(ShapeFor(shape.out_features * (shape.in_features * shape.num_bits / 32), stream),
               UnpackKernel, shape, packed, reinterpret_cast<uint32_t*>(tensors.codes),
               tensors.scale);
}

void DequantizeWeights(const PackedShape& shape, const CodeTensors& tensors, BFloat16* weight_NK,
                       cudaStream_t stream) {
  CheckPackedShape(shape);
  const int64_t words = shape.out_features * shape.in_features * shape.num_bits / 32;
  QT_CHECK(words < int64_t{1} << 32, "{} words of codes", words);
  LaunchKernel(ShapeFor((words + 3) / 4, stream),
               shape.num_bits == 4 ? DequantizeKernel<4> : DequantizeKernel<8>, shape,
               reinterpret_cast<const uint32_t*>(tensors.codes), tensors.scale, weight_NK);
}

void DequantizePacked(const PackedShape& shape, const uint8_t* packed, BFloat16* weight_NK,
                      cudaStream_t stream) {
  CheckPackedShape(shape);
  if (shape.num_bits != 4) {
    throw Error(ErrorCode::kShape, ErrorParts{.where = "kernel layout of a weight",
                                              .expected = "INT4",
                                              .found = fmt::format("{} bits", shape.num_bits)});
  }
  LaunchKernel(ShapeFor(NumUnits(shape) * NumChunks(shape) * 32, stream), DequantizePackedKernel,
               shape, packed, weight_NK);
}

}  // namespace quatrain::cuda
