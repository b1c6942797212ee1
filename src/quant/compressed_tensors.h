// The quantization_config of config.json in the pack-quantized format of compressed-tensors, read
// and written.
//
// Written is the minimal form, which every reader since 0.9 accepts. Read is what llm-compressor
// and others write; anything that would change a weight and that we do not compute is refused by
// its field and value. Source: neuralmagic/compressed-tensors; docs/int4_format.md.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "quant/scheme.h"

namespace quatrain {

// Names of a quantised linear's tensors are its module's name and one of these.
inline constexpr std::string_view kWeightSuffix = ".weight";
inline constexpr std::string_view kPackedSuffix = ".weight_packed";
inline constexpr std::string_view kScaleSuffix = ".weight_scale";
inline constexpr std::string_view kShapeSuffix = ".weight_shape";
inline constexpr std::string_view kZeroPointSuffix = ".weight_zero_point";
inline constexpr std::string_view kGroupIndexSuffix = ".weight_g_idx";

// The scheme of a model's config.json: its quantization_config, or that of a nested text_config;
// nullopt for a model that is not quantised. The scale rule is absmax/7, since the format has no
// field for it (quant/metadata.h has). Error kData naming `where` (the file), the field, what is
// accepted and what stood there.
std::optional<QuantScheme> FindQuantScheme(const Json& config, const std::string& where);

// The scheme of a quantization_config object itself. Errors as above.
QuantScheme ParseQuantizationConfig(const Json& quantization_config, const std::string& where);

// The minimal quantization_config of a symmetric scheme, keys sorted.
Json MakeQuantizationConfig(const QuantScheme& scheme);

}  // namespace quatrain
