// Codes and scales between the checkpoint's form and the kernel layout (packed_layout.h), and plain
// BF16 weights w' = rn_bf16(q * s) from either.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/packed_layout.h"

namespace quatrain::cuda {

// The checkpoint's form (compressed-tensors), device memory.
struct CodeTensors {
  int32_t* codes = nullptr;   // [N, K * bits / 32], little-endian along K; K a multiple of 8
  BFloat16* scale = nullptr;  // [N, K / group_size]
};

// Throws Error(kShape) unless bits are 4 or 8, K a multiple of 8 and of group_size, and group_size
// 32, 64, a multiple of 128 or K.
void CheckPackedShape(const PackedShape& shape);

// tensors -> packed [PackedBytes]. Scales outside [2^-100, 2^10] other than 0, which the kernels
// cannot multiply exactly, are counted in *num_bad_scales (device, added to; may be null).
void PackWeights(const PackedShape& shape, const CodeTensors& tensors, uint8_t* packed,
                 int32_t* num_bad_scales, cudaStream_t stream);
// The inverse: every bit of codes and scale is restored.
void UnpackWeights(const PackedShape& shape, const uint8_t* packed, const CodeTensors& tensors,
                   cudaStream_t stream);
// weight_NK = rn_bf16(q * s), row-major.
void DequantizeWeights(const PackedShape& shape, const CodeTensors& tensors, BFloat16* weight_NK,
                       cudaStream_t stream);
// The same from the kernel layout; INT4 only.
void DequantizePacked(const PackedShape& shape, const uint8_t* packed, BFloat16* weight_NK,
                      cudaStream_t stream);

}  // namespace quatrain::cuda
