// How kernels are started: a stream, an error check that throws Error, programmatic dependent
// launch.
//
// With kOverlap a kernel may start while the one before it in the stream still runs: our kernels
// read nothing that an earlier kernel writes before griddepcontrol.wait, except weights, in the
// decode kernels of attention the sequences and block tables, and in the experts' what moe.h says.
// So the first linear after a kernel that writes weights (pack, AdamW, a copy), and the first
// attention after one that writes sequences or block tables, is launched with kAfterPrevious.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "base/error.h"

namespace quatrain::cuda {

enum class LaunchOrder { kAfterPrevious, kOverlap };

// Throws Error(kResource) with the runtime's message.
inline void CheckCuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw Error(ErrorCode::kResource,
                ErrorParts{.where = what, .what = cudaGetErrorString(status)});
  }
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  LaunchOrder order = LaunchOrder::kAfterPrevious;
  unsigned cluster = 1;  // CTAs of a cluster, along x
};

template <class... Parameters, class... Args>
void LaunchKernel(const LaunchShape& shape, void (*kernel)(Parameters...), Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (shape.order == LaunchOrder::kOverlap) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = shape.cluster;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  CheckCuda(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), "kernel launch");
}

// Multiprocessors of the current device.
inline int NumMultiprocessors() {
  int device = 0;
  int count = 0;
  CheckCuda(cudaGetDevice(&device), "cudaGetDevice");
  CheckCuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
            "multiprocessor count");
  return count;
}

}  // namespace quatrain::cuda
