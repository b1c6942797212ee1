#include "quant/metadata.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace quatrain {
namespace {

QuantMetadata Sample() {
  return {.scale_rule = ScaleRule::kSearched,
          .grid = {4, -8, 7},
          .seed = 18446744073709551615ull,
          .report = {{"tokens", 131072}}};
}

TEST(Metadata, ComesBackThroughItsText) {
  const Json json = ParseJson(DumpJson(MakeMetadata(Sample())), "quatrain.json");
  const QuantMetadata read = ParseMetadata(json, "quatrain.json");
  EXPECT_EQ(read.scale_rule, ScaleRule::kSearched);
  EXPECT_EQ(read.grid.num_bits, 4);
  EXPECT_EQ(read.grid.lo, -8);
  EXPECT_EQ(read.grid.hi, 7);
  EXPECT_EQ(read.seed, 18446744073709551615ull);
  EXPECT_EQ(read.report.at("tokens"), 131072);
}

TEST(Metadata, AddsRuleAndBoundsToTheScheme) {
  const QuantScheme scheme = WithMetadata(QuantScheme{}, Sample(), "quatrain.json");
  EXPECT_EQ(scheme.scale_rule, ScaleRule::kSearched);
  EXPECT_EQ(scheme.grid().lo, -8);
  EXPECT_THROW(WithMetadata(QuantScheme{.num_bits = 8}, Sample(), "quatrain.json"), Error);
}

TEST(Metadata, RefusesEveryFieldThatIsWrongByName) {
  const std::pair<const char*, Json> cases[] = {
      {"format_version", 2}, {"scale_rule", "max"}, {"scale_rule", 7},
      {"num_bits", 5},       {"code_min", -9},      {"code_max", 8},
      {"seed", -1},          {"seed", "x"},         {"unknown_field", true}};
  for (const auto& [key, value] : cases) {
    Json json = MakeMetadata(Sample());
    json[key] = value;
    try {
      ParseMetadata(json, "int4/quatrain.json");
      ADD_FAILURE() << key << " " << value;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("int4/quatrain.json"), std::string::npos) << message;
      const std::string name = std::string(key) == "code_max" ? "code_min" : key;
      EXPECT_NE(message.find(name), std::string::npos) << message;
    }
  }
  for (const char* key : {"format_version", "scale_rule", "num_bits", "code_min", "report"}) {
    Json json = MakeMetadata(Sample());
    json.erase(key);
    EXPECT_THROW(ParseMetadata(json, "quatrain.json"), Error) << key;
  }
  EXPECT_THROW(ParseMetadata(Json::array(), "quatrain.json"), Error);
}

}  // namespace
}  // namespace quatrain
