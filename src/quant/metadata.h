// quatrain.json: what the public format has no field for, in a file of our own beside config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/json.h"
#include "quant/scheme.h"

namespace quatrain {

inline constexpr const char* kMetadataFile = "quatrain.json";

struct QuantMetadata {
  ScaleRule scale_rule = ScaleRule::kAbsmax7;
  CodeGrid grid = {};            // bounds of the codes in the file
  uint64_t seed = 0;             // of the calibration sample or the training run
  Json report = Json::object();  // what made the file, for people and for `quatrain report`
};

// {"format_version": 1, "scale_rule", "num_bits", "code_min", "code_max", "seed", "report"}.
Json MakeMetadata(const QuantMetadata& metadata);

// Error kData naming `where` and the field; a later format_version is refused, unknown fields are
// too.
QuantMetadata ParseMetadata(const Json& json, const std::string& where);

// The scheme of config.json with the rule and the bounds that the metadata adds. Error kData naming
// `where` if the two disagree on the number of bits.
QuantScheme WithMetadata(QuantScheme scheme, const QuantMetadata& metadata,
                         const std::string& where);

}  // namespace quatrain
