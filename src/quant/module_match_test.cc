#include "quant/module_match.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "quant/scheme.h"

namespace quatrain {
namespace {

bool Matches(const std::string& entry, const std::string& module) {
  return ModuleMatcher({entry}, "test").Matches(module);
}

TEST(ModuleMatcher, ARouterExpressionMeansRoutersOnly) {
  EXPECT_TRUE(Matches("re:.*mlp.gate$", "model.layers.3.mlp.gate"));
  EXPECT_FALSE(Matches("re:.*mlp.gate$", "model.layers.3.mlp.gate_proj"));
  EXPECT_FALSE(Matches("re:.*mlp.gate$", "model.layers.3.mlp.experts.3.gate_proj"));
}

TEST(ModuleMatcher, ExpressionsAreAnchoredAtTheStartOnly) {
  EXPECT_TRUE(Matches("re:.*self_attn.*", "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(Matches("re:.*self_attn", "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(Matches("re:lm_head", "lm_head"));
  EXPECT_TRUE(Matches("re:lm_head", "lm_head_2"));
  EXPECT_FALSE(Matches("re:lm_head", "model.lm_head"));
}

TEST(ModuleMatcher, AnAlternativeIsAnchoredInEachBranch) {
  EXPECT_FALSE(Matches("re:lm_head|gate", "model.gate"));
  EXPECT_TRUE(Matches("re:lm_head|.*gate", "model.gate"));
}

TEST(ModuleMatcher, ANameMeansThatModuleAlone) {
  EXPECT_TRUE(Matches("lm_head", "lm_head"));
  EXPECT_FALSE(Matches("self_attn", "model.layers.0.self_attn.q_proj"));
  EXPECT_FALSE(Matches("lm_head", "model.lm_head"));
}

TEST(ModuleMatcher, TheClassNameMeansEveryLinear) {
  EXPECT_TRUE(Matches("Linear", "anything"));
  EXPECT_FALSE(Matches("Embedding", "model.embed_tokens"));
}

TEST(ModuleMatcher, NamesAMalformedExpression) {
  try {
    ModuleMatcher({"lm_head", "re:.*mlp.(gate"}, "config.json: ignore");
    FAIL() << "an unclosed group must be refused";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("config.json: ignore"), std::string::npos) << message;
    EXPECT_NE(message.find(".*mlp.(gate"), std::string::npos) << message;
  }
}

TEST(QuantizedModules, AreTargetedAndNotIgnored) {
  const QuantScheme scheme{.ignore = {"lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                                      "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
                                      "re:.*mlp.gate$"}};
  const QuantizedModules modules(scheme, "config.json");
  EXPECT_TRUE(modules.Contains("model.layers.5.mlp.experts.17.up_proj"));
  EXPECT_FALSE(modules.Contains("model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(modules.Contains("model.layers.5.mlp.shared_experts.up_proj"));
  EXPECT_FALSE(modules.Contains("model.layers.5.self_attn.o_proj"));
  EXPECT_FALSE(modules.Contains("model.layers.5.mlp.gate"));
  EXPECT_FALSE(modules.Contains("lm_head"));
  const QuantScheme experts_only{.ignore = {}, .targets = {"re:.*experts\\.\\d+\\..*"}};
  EXPECT_TRUE(QuantizedModules(experts_only, "x").Contains("model.layers.0.mlp.experts.1.up_proj"));
  EXPECT_FALSE(QuantizedModules(experts_only, "x").Contains("model.layers.0.self_attn.q_proj"));
}

}  // namespace
}  // namespace quatrain
