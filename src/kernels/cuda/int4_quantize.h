// Codes, scales and fake-quantised weights on the device: the bits of kernels/int4.h, for INT4 and
// INT8.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/int4_quantize.h"

namespace quatrain::cuda {

// Device memory, 16-byte aligned. in_features is a multiple of the group size, that of 8. Weights
// must be finite. The outputs that are null are skipped; packed and scale go together.
struct QuantizeArgs {
  const BFloat16* weight = nullptr;  // [O, I], exactly one of weight and master
  const float* master = nullptr;     // [O, I], rounded to BF16 first
  int64_t out_features = 0, in_features = 0;
  QuantizeSpec spec = {};
  BFloat16* fake = nullptr;   // [O, I], w' = rn_bf16(q s); may be weight
  int32_t* packed = nullptr;  // [O, P], compressed-tensors order
  BFloat16* scale = nullptr;  // [O, G]; read, not written, by rules kFrozen and kSearched
};

// Groups that are a power of two up to 256 take one pass; others a CTA each, read twice.
// Error(kShape) for shapes outside the contract.
void Quantize(const QuantizeArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda
