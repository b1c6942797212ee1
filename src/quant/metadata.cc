#include "quant/metadata.h"

#include <array>
#include <string_view>

#include "base/error.h"

namespace quatrain {
namespace {

constexpr int kFormatVersion = 1;
constexpr std::array<std::string_view, 7> kFields = {
    "format_version", "scale_rule", "num_bits", "code_min", "code_max", "seed", "report"};

[[noreturn]] void Refuse(const std::string& where, const std::string& key,
                         const std::string& expected, const std::string& found) {
  throw Error(ErrorCode::kData,
              {.where = where + ": " + key,
               .what = "unreadable field",
               .expected = expected,
               .found = found,
               .todo = "Remove the file to go on without it: inference then uses the stored scales "
                       "and training absmax/7"});
}

const Json& Field(const Json& json, const char* key, const std::string& where) {
  const auto found = json.find(key);
  if (found == json.end()) Refuse(where, key, "a value", "nothing");
  return *found;
}

int64_t Integer(const Json& json, const char* key, const std::string& where) {
  const Json& value = Field(json, key, where);
  if (!value.is_number_integer()) Refuse(where, key, "an integer", DumpJson(value));
  return value.get<int64_t>();
}

}  // namespace

Json MakeMetadata(const QuantMetadata& metadata) {
  return {{"format_version", kFormatVersion},   {"scale_rule", ScaleRuleName(metadata.scale_rule)},
          {"num_bits", metadata.grid.num_bits}, {"code_min", metadata.grid.lo},
          {"code_max", metadata.grid.hi},       {"seed", metadata.seed},
          {"report", metadata.report}};
}

QuantMetadata ParseMetadata(const Json& json, const std::string& where) {
  if (!json.is_object()) Refuse(where, "quatrain.json", "an object", DumpJson(json));
  const int64_t version = Integer(json, "format_version", where);
  if (version != kFormatVersion) {
    Refuse(where, "format_version", fmt::format("{}", kFormatVersion), fmt::format("{}", version));
  }
  for (const auto& [key, value] : json.items()) {
    bool is_known = false;
    for (std::string_view field : kFields) is_known = is_known || key == field;
    if (!is_known) Refuse(where, key, "no such field", DumpJson(value));
  }
  const Json& rule = Field(json, "scale_rule", where);
  if (!rule.is_string()) Refuse(where, "scale_rule", "a string", DumpJson(rule));
  QuantMetadata metadata;
  metadata.scale_rule = ParseScaleRule(rule.get<std::string>(), where + ": scale_rule");
  const int64_t num_bits = Integer(json, "num_bits", where);
  const int64_t lo = Integer(json, "code_min", where), hi = Integer(json, "code_max", where);
  if (num_bits != 4 && num_bits != 8)
    Refuse(where, "num_bits", "4 or 8", fmt::format("{}", num_bits));
  const int64_t half = int64_t{1} << (num_bits - 1);
  if (lo < -half || lo >= 0 || hi <= 0 || hi >= half) {
    Refuse(where, "code_min", fmt::format("bounds within {}..{}", -half, half - 1),
           fmt::format("{}..{}", lo, hi));
  }
  metadata.grid = {static_cast<int>(num_bits), static_cast<int>(lo), static_cast<int>(hi)};
  const Json& seed = Field(json, "seed", where);
  if (!seed.is_number_unsigned()) Refuse(where, "seed", "a number from 0", DumpJson(seed));
  metadata.seed = seed.get<uint64_t>();
  metadata.report = Field(json, "report", where);
  return metadata;
}

QuantScheme WithMetadata(QuantScheme scheme, const QuantMetadata& metadata,
                         const std::string& where) {
  if (metadata.grid.num_bits != scheme.num_bits) {
    Refuse(where, "num_bits", fmt::format("{} as in config.json", scheme.num_bits),
           fmt::format("{}", metadata.grid.num_bits));
  }
  scheme.scale_rule = metadata.scale_rule;
  scheme.frozen_grid = metadata.grid;
  return scheme;
}

}  // namespace quatrain
