// Weights in the block-scaled FP8 of DeepSeek-V3's files: E4M3 values in <module>.weight, an FP32
// factor for each block of it in <module>.weight_scale_inv. Reading only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "kernels/bfloat16.h"

namespace quatrain {

inline constexpr std::string_view kFp8ScaleSuffix = ".weight_scale_inv";

struct BlockFp8 {
  int64_t block_rows = 128, block_columns = 128;
};

// The format that a config.json announces (quant_method "fp8" with a weight_block_size); nullopt if
// it announces another or none. Error kData naming `where` and the field for FP8 of another kind.
std::optional<BlockFp8> FindBlockFp8(const Json& config, const std::string& where);

// The value of an E4M3 code (the "fn" kind: no infinities, NaN at 0x7F and 0xFF).
float Fp8E4M3ToFloat(uint8_t code);

// rn_bf16(value * factor of its block) [O, I]. `factors` is [ceil(O / block_rows),
// ceil(I / block_columns)].
std::vector<BFloat16> DequantizeBlockFp8(std::span<const std::byte> codes_OI, int64_t in_features,
                                         std::span<const float> factors, const BlockFp8& format);

}  // namespace quatrain
