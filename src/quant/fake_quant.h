// Stand-alone fake quantisation with a straight-through gradient: the reference for everything that
// trains on codes directly, and the operation that other trainers can call.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quant/quantized_weight.h"

namespace quatrain {

// w' [O, I] of a weight: Dequantize(Quantize(matrix)) bit for bit, without the packed codes
// between. Same errors. Under absmax/7 applying it twice changes nothing.
std::vector<BFloat16> FakeQuant(ThreadPool& pool, const NamedMatrix& matrix,
                                const QuantScheme& scheme);

// The same under given scales [O, G]: Dequantize(QuantizeWithScales(...)).
std::vector<BFloat16> FakeQuantWithScales(ThreadPool& pool, const NamedMatrix& matrix,
                                          const QuantScheme& scheme,
                                          std::span<const BFloat16> scale_OG);

// Gradient of the weight under given scales, in place: zero where the weight was clipped (its
// nearest code lies outside the grid), else unchanged (Bengio et al., arXiv:1308.3432). The absmax
// rules need no mask: their scale follows the extremum, nothing that training should push back is
// clipped, and the gradient of w' is that of w.
//   grad_OI  FP32 [O, I]
void MaskClippedGradient(std::span<const BFloat16> weight_OI, std::span<const BFloat16> scale_OG,
                         int64_t in_features, const QuantScheme& scheme, std::span<float> grad_OI);

}  // namespace quatrain
