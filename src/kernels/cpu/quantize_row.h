// One row of a weight matrix to codes and back: what int4_quantize and adamw share. CPU only; bits
// equal the scalar functions of kernels/int4.h on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/bfloat16.h"
#include "kernels/int4.h"
#include "kernels/int4_quantize.h"

namespace quatrain {

// Signed codes_I (and scale_G, unless the rule keeps or was given its scales) of finite weight_I.
void QuantizeRow(const BFloat16* weight_I, int64_t in_features, const QuantizeSpec& spec,
                 int8_t* codes_I, BFloat16* scale_G);

// weight_I = w' of codes_I.
void DequantizeRow(const int8_t* codes_I, const BFloat16* scale_G, int64_t in_features,
                   int64_t group_size, BFloat16* weight_I);

// First column whose weight has no code (NaN, Inf or |w| = 0x7F7F), or -1.
int64_t FindBadColumn(const BFloat16* weight_I, int64_t in_features);

// Whole words of packed_P, the padding included, from signed codes_I and back.
void PackRow(const int8_t* codes_I, int64_t in_features, int num_bits, int32_t* packed_P);
void UnpackRow(const int32_t* packed_P, int64_t in_features, int num_bits, int8_t* codes_I);

// True if a rule's scales come from the weights; false if the caller brings them.
inline bool RuleDerivesScale(ScaleRule rule) {
  return rule == ScaleRule::kAbsmax7 || rule == ScaleRule::kAbsmax7_5;
}

// Rows that one parallel chunk takes: about 2^16 weights, by the shape alone.
inline int64_t RowsPerChunk(int64_t in_features) {
  constexpr int64_t kWeightsPerChunk = 1 << 16;
  return in_features >= kWeightsPerChunk ? 1 : kWeightsPerChunk / in_features;
}

}  // namespace quatrain
