// What the tests of device kernels share: arrays in device memory, launches in a graph, and a skip
// where there is no device.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/cuda/launch.h"

namespace quatrain::cuda {

inline bool HasDevice() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// A vector in device memory.
template <class T>
class DeviceVector {
 public:
  explicit DeviceVector(size_t size) : size_(size) {
    CheckCuda(cudaMalloc(&data_, size * sizeof(T) + 16), "cudaMalloc");
    // Poison: a kernel that leaves an element out is seen.
    CheckCuda(cudaMemset(data_, 0xA5, size * sizeof(T)), "cudaMemset");
  }
  explicit DeviceVector(const std::vector<T>& values) : DeviceVector(values.size()) {
    CheckCuda(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              "upload");
  }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;
  ~DeviceVector() { cudaFree(data_); }

  T* data() { return data_; }
  size_t size() const { return size_; }
  // Waits for the device.
  std::vector<T> Download() const {
    std::vector<T> values(size_);
    CheckCuda(cudaDeviceSynchronize(), "kernel");
    CheckCuda(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              "download");
    return values;
  }
  void Zero() { CheckCuda(cudaMemset(data_, 0, size_ * sizeof(T)), "cudaMemset"); }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

// Launches recorded in a stream of its own, to be replayed there.
class DeviceGraph {
 public:
  // launch(stream) launches what the graph is to hold.
  template <class Launch>
  explicit DeviceGraph(const Launch& launch) {
    CheckCuda(cudaStreamCreate(&stream_), "stream");
    CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), "capture");
    launch(stream_);
    CheckCuda(cudaStreamEndCapture(stream_, &graph_), "capture");
    CheckCuda(cudaGraphInstantiate(&exec_, graph_, 0), "graph");
  }
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;
  ~DeviceGraph() {
    cudaGraphExecDestroy(exec_);
    cudaGraphDestroy(graph_);
    cudaStreamDestroy(stream_);
  }

  cudaStream_t stream() const { return stream_; }
  // Does not wait for the device.
  void Replay() { CheckCuda(cudaGraphLaunch(exec_, stream_), "replay"); }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

// Elements whose bytes differ.
template <class T>
int64_t CountDifferences(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return -1;
  int64_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += std::memcmp(&a[i], &b[i], sizeof(T)) != 0;
  return count;
}

}  // namespace quatrain::cuda

#define QT_NEEDS_DEVICE()                                             \
  if (!::quatrain::cuda::HasDevice()) {                               \
    GTEST_SKIP() << "no CUDA device here: run on a machine with one"; \
  }
