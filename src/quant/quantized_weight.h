// QuantizedWeight: codes and scales of one linear weight, and the ways in and out of it.
//
// O out_features, I in_features, g inputs per scale, G = I / g, P int32 words a row.
// docs/int4_format.md draws the bits.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/threads.h"
#include "kernels/linear.h"
#include "quant/scheme.h"

namespace quatrain {

struct QuantizedWeight {
  int num_bits = 0;  // 4 or 8; 0 means empty
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;       // I when per channel
  std::vector<int32_t> packed;  // [O, P]
  std::vector<BFloat16> scale;  // [O, G]

  int64_t num_groups() const { return in_features / group_size; }
  // Borrowed: valid while this object is neither moved nor changed.
  WeightView View() const;
};

// A BF16 matrix, borrowed, under the name that errors give it.
struct NamedMatrix {
  std::string tensor;
  std::span<const BFloat16> weight_OI;
  int64_t out_features = 0;
  int64_t in_features = 0;
};

// Errors that name the tensor: kShape if g does not divide I; kData, with row and column, on NaN,
// Inf or a weight so large that its w' would overflow.
void CheckQuantizable(const NamedMatrix& matrix, const QuantScheme& scheme);

// Codes and scales by the scheme's rule (kAbsmax7 or kAbsmax7_5). Errors of CheckQuantizable.
QuantizedWeight Quantize(ThreadPool& pool, const NamedMatrix& matrix, const QuantScheme& scheme);

// Codes under given scales [O, G] (rules kFrozen and kSearched). Errors as above, and kData on a
// scale that CheckScales refuses.
QuantizedWeight QuantizeWithScales(ThreadPool& pool, const NamedMatrix& matrix,
                                   const QuantScheme& scheme, std::span<const BFloat16> scale_OG);

// w' [O, I].
std::vector<BFloat16> Dequantize(ThreadPool& pool, const QuantizedWeight& weight);

// Packs codes [O, I] that a calibration chose, with the scales [O, G] they belong to.
QuantizedWeight PackWeight(std::span<const int8_t> codes_OI, std::span<const BFloat16> scale_OG,
                           int64_t out_features, int64_t in_features, int num_bits);
// Signed codes [O, I].
std::vector<int8_t> UnpackWeight(const QuantizedWeight& weight);

// Bytes of a linear's tensors in a file: packed, scale, and the 16 of weight_shape.
int64_t FileBytes(int64_t out_features, int64_t in_features, int num_bits, int64_t group_size);

// Error kData naming `tensor`, row and group unless every scale is positive, normal, and small
// enough that the code of the largest magnitude has a finite value (grid.lo * scale).
void CheckScales(const std::string& tensor, std::span<const BFloat16> scale_OG, int64_t num_groups,
                 const CodeGrid& grid);

// Tensors as other tools may have written them: with zero points, or with the columns of a group
// scattered.
struct ForeignWeight {
  std::string module;  // for errors
  int num_bits = 4;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_size = 0;           // I when per channel
  std::span<const int32_t> packed;  // [O, P]
  std::span<const BFloat16> scale;  // [O, G]
  std::span<const int32_t> zero_point =
      {};  // [ceil(O * bits / 32), G], packed along O; empty: zeros
  std::span<const int32_t> group_index =
      {};  // weight_g_idx [I]: the group of each column; empty: i / g
};

// w' = rn_bf16((q - z) * s) of such a weight [O, I]: reading only, the result is an ordinary BF16
// weight. Error kShape on a wrong size, kData on a group index outside [0, G).
std::vector<BFloat16> DequantizeForeign(const ForeignWeight& weight);

}  // namespace quatrain
