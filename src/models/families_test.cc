#include "models/families.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "models/test_support.h"

namespace quatrain {
namespace {

std::vector<std::string> NamesOf(const Json& config) {
  std::vector<std::string> names;
  for (const WeightSpec& spec : WeightTableOf(ParseModelConfig(config, "c"))) {
    names.push_back(spec.name);
  }
  return names;
}

bool Has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Json Family(const std::string& type) {
  Json config = SmallMoeConfig();
  config["model_type"] = type;
  return config;
}

TEST(Families, ADenseLayerAmongMoeOnesHasNoExperts) {
  const std::vector<std::string> names = NamesOf(SmallMoeConfig());
  EXPECT_TRUE(Has(names, "model.layers.0.mlp.experts.3.down_proj.weight"));
  EXPECT_TRUE(Has(names, "model.layers.0.mlp.gate.weight"));
  EXPECT_TRUE(Has(names, "model.layers.1.mlp.down_proj.weight"));
  EXPECT_FALSE(Has(names, "model.layers.1.mlp.gate.weight"));
  EXPECT_FALSE(Has(names, "model.layers.1.mlp.experts.0.down_proj.weight"));
}

TEST(Families, EveryNameStandsOnceAndATiedHeadNowhere) {
  std::vector<std::string> names = NamesOf(SmallMoeConfig());
  EXPECT_TRUE(Has(names, "lm_head.weight"));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
  Json tied = SmallMoeConfig();
  tied["tie_word_embeddings"] = true;
  EXPECT_FALSE(Has(NamesOf(tied), "lm_head.weight"));
}

TEST(Families, EachFamilyHasItsBiasesAndNorms) {
  const auto has = [](const Json& config, const std::string& module) {
    return Has(NamesOf(config), "model.layers.0.self_attn." + module);
  };
  EXPECT_TRUE(has(Family("qwen2"), "q_proj.bias"));
  EXPECT_FALSE(has(Family("qwen2"), "o_proj.bias"));
  EXPECT_FALSE(has(Family("qwen2"), "q_norm.weight"));
  EXPECT_TRUE(has(Family("qwen3"), "q_norm.weight"));
  EXPECT_FALSE(has(Family("qwen3"), "q_proj.bias"));
  EXPECT_FALSE(has(Family("llama"), "q_norm.weight"));
  Json biased = Family("llama");
  biased["attention_bias"] = true;
  biased["mlp_bias"] = true;
  EXPECT_TRUE(has(biased, "q_proj.bias") && has(biased, "o_proj.bias"));
  EXPECT_TRUE(Has(NamesOf(biased), "model.layers.0.mlp.down_proj.bias"));
}

TEST(Families, RolesSayWhatMayBeQuantised) {
  for (const WeightSpec& spec : WeightTableOf(ParseModelConfig(SmallMoeConfig(), "c"))) {
    const bool is_projection = spec.name.ends_with("_proj.weight");
    EXPECT_EQ(spec.is_quantisable(), is_projection) << spec.name;
    EXPECT_EQ(spec.expert >= 0, spec.name.find(".experts.") != std::string::npos) << spec.name;
    EXPECT_EQ(spec.module() + ".weight", spec.name);
  }
}

TEST(Families, ShapesAreOutByIn) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const WeightSpec& spec : WeightTableOf(ParseModelConfig(SmallMoeConfig(), "c"))) {
    shapes[spec.name] = spec.shape;
  }
  const std::vector<int64_t> k = {32, 64}, down = {64, 32}, gate = {96, 64};
  EXPECT_EQ(shapes.at("model.layers.0.self_attn.k_proj.weight"), k);
  EXPECT_EQ(shapes.at("model.layers.0.mlp.experts.0.down_proj.weight"), down);
  EXPECT_EQ(shapes.at("model.layers.1.mlp.gate_proj.weight"), gate);
}

}  // namespace
}  // namespace quatrain
