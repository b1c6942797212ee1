// What the CUDA benchmarks share: errors, random-normal data, interleaved timing in CUDA graphs,
// rows.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "cuda_check.cuh"
#include "kernels/bfloat16.h"

namespace quatrain::bench {

// Device memory that lives as long as the object.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t bytes) { CUDA_CHECK(cudaMalloc(&data_, bytes)); }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  template <class T>
  T* as(int64_t offset_bytes = 0) {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(data_) + offset_bytes);
  }

 private:
  void* data_ = nullptr;
};

// Normal deviates from a counter: splitmix64, then Box-Muller.
__device__ inline float NormalAt(uint64_t seed, uint64_t index) {
  uint64_t z = seed * 0x9E3779B97F4A7C15ull + index * 0xBF58476D1CE4E5B9ull + 1;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  const float u = (static_cast<uint32_t>(z) + 1.0f) * 0x1p-32f;
  const float v = static_cast<uint32_t>(z >> 32) * 0x1p-32f;
  return sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
}

static __global__ void NormalKernel(BFloat16* out, int64_t count, float deviation, uint64_t seed) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = ToBFloat16(deviation * NormalAt(seed, i));
}

inline void FillNormal(BFloat16* out, int64_t count, float deviation, uint64_t seed) {
  NormalKernel<<<static_cast<unsigned>((count + 255) / 256), 256>>>(out, count, deviation, seed);
  CUDA_CHECK(cudaGetLastError());
}

// A recorded chain of launches.
class Graph {
 public:
  Graph(cudaStream_t stream, int count, const std::function<void(int)>& launch)
      : stream_(stream), count_(count) {
    cudaGraph_t graph;
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < count; ++i) launch(i);
    CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec_, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    CUDA_CHECK(cudaEventCreate(&begin_));
    CUDA_CHECK(cudaEventCreate(&end_));
  }
  ~Graph() {
    cudaGraphExecDestroy(exec_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  // Microseconds per launch of one replay.
  double Replay() {
    CUDA_CHECK(cudaEventRecord(begin_, stream_));
    CUDA_CHECK(cudaGraphLaunch(exec_, stream_));
    CUDA_CHECK(cudaEventRecord(end_, stream_));
    CUDA_CHECK(cudaEventSynchronize(end_));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return 1000.0 * milliseconds / count_;
  }

 private:
  cudaStream_t stream_;
  int count_;
  cudaGraphExec_t exec_;
  cudaEvent_t begin_, end_;
};

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Medians of `repeats` replays of each graph, taken in turn (a, b, ..., a, b, ...), first round
// dropped.
inline std::vector<double> MeasureInterleaved(const std::vector<Graph*>& graphs, int repeats) {
  std::vector<std::vector<double>> times(graphs.size());
  for (int r = 0; r <= repeats; ++r) {
    for (size_t g = 0; g < graphs.size(); ++g) {
      const double us = graphs[g]->Replay();
      if (r > 0) times[g].push_back(us);
    }
  }
  std::vector<double> medians;
  for (auto& t : times) medians.push_back(Median(t));
  return medians;
}

static __global__ void StreamingReadKernel(const uint4* data, int64_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += 4 * stride) {
    uint4 v[4] = {};
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (i + u * stride < count) {
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v[u].x), "=r"(v[u].y), "=r"(v[u].z), "=r"(v[u].w)
                     : "l"(data + i + u * stride));
      }
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

// TB/s of a plain read of 1 GiB: the ceiling of this run.
inline double StreamingReadRate(cudaStream_t stream) {
  const int64_t bytes = int64_t{1} << 30;
  DeviceBuffer data(bytes);
  DeviceBuffer sink(4);
  CUDA_CHECK(cudaMemset(data.as<uint8_t>(), 0x5A, bytes));
  CUDA_CHECK(cudaDeviceSynchronize());
  Graph graph(stream, 4, [&](int) {
    StreamingReadKernel<<<132 * 8, 512, 0, stream>>>(data.as<uint4>(), bytes / 16,
                                                     sink.as<uint32_t>());
  });
  return bytes / MeasureInterleaved({&graph}, 5)[0] / 1e6;
}

}  // namespace quatrain::bench
