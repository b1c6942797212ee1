// Whole matrices of BF16 weights to packed codes and scales, and back. Shapes: O out_features, I
// in_features, g group size, G = I / g groups, P = PackedWords(I, num_bits).
#pragma once

#include <cstdint>
#include <optional>

#include "base/threads.h"
#include "kernels/bfloat16.h"
#include "kernels/int4.h"

namespace quatrain {

struct QuantizeSpec {
  ScaleRule rule = ScaleRule::kAbsmax7;
  CodeGrid grid;
  int64_t group_size = 32;  // divides I
};

// First weight that has no codes: NaN, Inf, or |w| of 0x7F7F whose w' would overflow.
struct BadWeight {
  int64_t row = 0, column = 0;
  float value = 0.0f;
};
std::optional<BadWeight> FindBadWeight(const BFloat16* weight_OI, int64_t out_features,
                                       int64_t in_features);

// Fills packed_OP and scale_OG. Rule kFrozen (or kSearched) reads scale_OG instead of writing it.
// Weights must be finite (callers name the tensor after FindBadWeight). Same bits for any thread
// count.
void QuantizeMatrix(ThreadPool& pool, const BFloat16* weight_OI, int64_t out_features,
                    int64_t in_features, const QuantizeSpec& spec, int32_t* packed_OP,
                    BFloat16* scale_OG);

// Sets grad_OI to 0 where the weight rn_bf16(master_OI) lies beyond the outermost codes under
// scale_OG, so that a smaller step would not bring it back: the straight-through estimator of a
// clipped weight (arXiv:1805.06085 section 3). With absmax scales nothing is clipped.
void ZeroClippedGradient(ThreadPool& pool, const float* master_OI, int64_t out_features,
                         int64_t in_features, const QuantizeSpec& spec, const BFloat16* scale_OG,
                         float* grad_OI);

// Codes and scales of a matrix, borrowed.
struct PackedMatrix {
  const int32_t* packed_OP = nullptr;
  const BFloat16* scale_OG = nullptr;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int num_bits = 4;
  int64_t group_size = 32;
};

// weight_OI = w'.
void DequantizeMatrix(ThreadPool& pool, const PackedMatrix& matrix, BFloat16* weight_OI);

// packed_OP from signed codes int8 [O, I] and back.
void PackCodes(const int8_t* codes_OI, int64_t out_features, int64_t in_features, int num_bits,
               int32_t* packed_OP);
void UnpackCodes(const int32_t* packed_OP, int64_t out_features, int64_t in_features, int num_bits,
                 int8_t* codes_OI);

}  // namespace quatrain
