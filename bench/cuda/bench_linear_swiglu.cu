// gate_up of a dense MLP with SwiGLU in the linear's epilogue against the linear and the SwiGLU
// kernel, INT4 g128.
//
//   nvcc -std=c++20 -O3 --fmad=false -gencode arch=compute_90a,code=sm_90a -DFMT_CONSTEVAL=
//   -DFMT_USE_CONSTEXPR=1 -DFMT_HEADER_ONLY -Isrc -I. -o bench_linear_swiglu
//   bench/cuda/bench_linear_swiglu.cu src/kernels/cuda/linear_*.cu src/kernels/cuda/pack.cu
//   src/kernels/cuda/moe_wide.cu src/kernels/cuda/tensor_map.cu src/kernels/cuda/elementwise.cu
//   src/base/error.cc -lcublas
//   ./bench_linear_swiglu > rows.jsonl
//
// A row: n, k, m, microseconds of one kernel and of two, outputs that differ. CUDA graphs of
// launches in a chain over weights rotated past the L2, interleaved, random-normal activations.
#include <cstdio>

#include "bench/cuda/bench_support.cuh"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear_decode.h"

namespace quatrain::bench {
namespace {

using cuda::LaunchOrder;
using cuda::LinearDecodeArgs;
using cuda::LinearEpilogue;

// Any codes, scales of BF16 near 2^-7: kernel layout, chunk by chunk.
__global__ void FillPackedKernel(uint16_t* packed, int64_t count, int chunk_halves,
                                 int code_halves) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint64_t random = (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull;
  const bool is_code = i % chunk_halves < code_halves;
  packed[i] = is_code ? static_cast<uint16_t>(random >> 40)
                      : static_cast<uint16_t>(0x3C00u + (random >> 57));
}

__global__ void CountDifferentKernel(const BFloat16* a, const BFloat16* b, int64_t count,
                                     int* num_different) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count && a[i].bits != b[i].bits) atomicAdd(num_different, 1);
}

void Measure(cudaStream_t stream, const cuda::PackedShape& shape, int64_t m) {
  const int64_t bytes = cuda::PackedBytes(shape);
  const int copies = static_cast<int>((int64_t{250} << 20) / bytes + 1);
  const int64_t half = shape.out_features / 2;
  DeviceBuffer weight(bytes * copies), x(2 * m * shape.in_features), sums(4 * m * half),
      one(2 * m * half), two(2 * m * half), counter(4);
  const int64_t halves = bytes * copies / 2;
  FillPackedKernel<<<static_cast<unsigned>((halves + 255) / 256), 256>>>(
      weight.as<uint16_t>(), halves, static_cast<int>(cuda::ChunkBytes(shape) / 2),
      static_cast<int>(cuda::CodeBytes(shape) / 2));
  FillNormal(x.as<BFloat16>(), m * shape.in_features, 1.0f, 2);
  CUDA_CHECK(cudaMemset(counter.as<void>(), 0, 4));
  const auto args = [&](int copy, BFloat16* y, LinearEpilogue epilogue) {
    return LinearDecodeArgs{.type = WeightType::kInt4,
                            .shape = shape,
                            .weight = weight.as<void>(copy % copies * bytes),
                            .x = x.as<BFloat16>(),
                            .num_tokens = m,
                            .y = y,
                            .epilogue = epilogue};
  };
  Graph fused(stream, 2 * copies, [&](int i) {
    cuda::LinearDecode(args(i, one.as<BFloat16>(), LinearEpilogue::kSwiGlu), stream,
                       LaunchOrder::kOverlap);
  });
  BFloat16* const gate = sums.as<BFloat16>();
  Graph apart(stream, 2 * copies, [&](int i) {
    cuda::LinearDecode(args(i, gate, LinearEpilogue::kSums), stream, LaunchOrder::kOverlap);
    cuda::SwiGlu({gate, gate + half, m, half, 2 * half, two.as<BFloat16>()}, stream,
                 LaunchOrder::kOverlap);
  });
  const std::vector<double> us = MeasureInterleaved({&fused, &apart}, 7);
  CountDifferentKernel<<<static_cast<unsigned>((m * half + 255) / 256), 256>>>(
      one.as<BFloat16>(), two.as<BFloat16>(), m * half, counter.as<int>());
  int different = 0;
  CUDA_CHECK(cudaMemcpy(&different, counter.as<int>(), 4, cudaMemcpyDeviceToHost));
  std::printf(
      "{\"kernel\": \"linear w4a16 with SwiGLU\", \"n\": %lld, \"k\": %lld, \"m\": %lld, \"g\": "
      "%lld, \"us\": %.2f, \"us_of_two_kernels\": %.2f, \"differ\": %d}\n",
      static_cast<long long>(shape.out_features), static_cast<long long>(shape.in_features),
      static_cast<long long>(m), static_cast<long long>(shape.group_size), us[0], us[1], different);
}

}  // namespace
}  // namespace quatrain::bench

int main() {
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreate(&stream));
  for (const int64_t m : {1, 8, 16, 64, 128, 512, 2048}) {
    quatrain::bench::Measure(stream, {24576, 4096, 128, 4}, m);
  }
  return 0;
}
