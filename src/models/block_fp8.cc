#include "models/block_fp8.h"

#include <cmath>
#include <limits>

#include "base/error.h"

namespace quatrain {
namespace {

const Json* QuantizationConfig(const Json& config) {
  const auto own = config.find("quantization_config");
  if (own != config.end() && own->is_object()) return &*own;
  const auto text = config.find("text_config");
  return text != config.end() && text->is_object() ? QuantizationConfig(*text) : nullptr;
}

[[noreturn]] void Refuse(const std::string& where, const std::string& field,
                         const std::string& expected, const Json& found) {
  throw Error(ErrorCode::kData, {.where = where + ": quantization_config." + field,
                                 .what = "FP8 of this kind cannot be read",
                                 .expected = expected,
                                 .found = DumpJson(found),
                                 .todo = "Take the BF16 directory of the model."});
}

}  // namespace

std::optional<BlockFp8> FindBlockFp8(const Json& config, const std::string& where) {
  const Json* const format = config.is_object() ? QuantizationConfig(config) : nullptr;
  if (format == nullptr || format->value("quant_method", Json()) != "fp8") return std::nullopt;
  const Json fmt_field = format->value("fmt", Json("e4m3"));
  if (fmt_field != "e4m3") Refuse(where, "fmt", "\"e4m3\"", fmt_field);
  const Json size = format->value("weight_block_size", Json());
  const auto is_size = [](const Json& value) {
    return value.is_number_integer() && value.get<int64_t>() > 0;
  };
  if (!size.is_array() || size.size() != 2 || !is_size(size[0]) || !is_size(size[1])) {
    Refuse(where, "weight_block_size", "two positive integers, as DeepSeek-V3's [128, 128]", size);
  }
  return BlockFp8{size[0].get<int64_t>(), size[1].get<int64_t>()};
}

float Fp8E4M3ToFloat(uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const int whole = exponent == 0 ? mantissa : 8 + mantissa;
  return sign * std::ldexp(static_cast<float>(whole), (exponent == 0 ? 1 : exponent) - 10);
}

std::vector<BFloat16> DequantizeBlockFp8(std::span<const std::byte> codes_OI, int64_t in_features,
                                         std::span<const float> factors, const BlockFp8& format) {
  const auto rows = static_cast<int64_t>(codes_OI.size()) / in_features;
  const int64_t blocks = (in_features + format.block_columns - 1) / format.block_columns;
  QT_CHECK(static_cast<int64_t>(factors.size()) ==
           (rows + format.block_rows - 1) / format.block_rows * blocks);
  std::vector<BFloat16> weight_OI;
  weight_OI.reserve(codes_OI.size());
  for (int64_t row = 0; row < rows; ++row) {
    const float* const factors_of_row = factors.data() + row / format.block_rows * blocks;
    for (int64_t i = 0; i < in_features; ++i) {
      const auto code = static_cast<uint8_t>(codes_OI[static_cast<size_t>(row * in_features + i)]);
      weight_OI.push_back(
          ToBFloat16(Fp8E4M3ToFloat(code) * factors_of_row[i / format.block_columns]));
    }
  }
  return weight_OI;
}

}  // namespace quatrain
