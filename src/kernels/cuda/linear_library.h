// y = x W^T (+ bias) over BF16 weights by the vendor's library, cublasLt, pinned to algorithms
// whose outputs are one chain over K: no split of K, no reduction after it. Where rule 2 of
// docs/numerics.md, "GPU order", cuts K, one product a segment, added in FP32. The bits are those
// of LinearDecode, which linear_library_gpu_test.cc checks on the device and version at hand. For
// many rows of x by weights that were dequantised once (pack.h).
//
// The library is looked up at run time: nothing here links it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "kernels/bfloat16.h"

namespace quatrain::cuda {

struct LinearLibraryArgs {
  const BFloat16* weight_NK = nullptr;  // row-major; pointers are multiples of 16 bytes
  const BFloat16* x = nullptr;          // [tokens, K]
  int64_t out_features = 0;             // N, K: multiples of 8
  int64_t in_features = 0;
  int64_t num_tokens = 0;
  const BFloat16* bias = nullptr;  // [N] or null: added in FP32 before the rounding
  BFloat16* y = nullptr;           // [tokens, N]
  float* sums = nullptr;           // [LinearLibrarySums(...)], scratch
};
// Elements of FP32 scratch that a product needs: none unless K is cut.
int64_t LinearLibrarySums(int64_t out_features, int64_t in_features, int64_t num_tokens);

// One device and one stream at a time: it owns the workspace of its products.
class LinearLibrary {
 public:
  // Null where the library or its header was not there.
  static std::unique_ptr<LinearLibrary> Open();
  ~LinearLibrary();
  LinearLibrary(const LinearLibrary&) = delete;
  LinearLibrary& operator=(const LinearLibrary&) = delete;

  // Throws Error(kShape) for shapes outside the above, Error(kResource) when the library refuses.
  void Multiply(const LinearLibraryArgs& args, cudaStream_t stream);

 private:
  struct State;
  explicit LinearLibrary(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace quatrain::cuda
