#include "calibrate/quant_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "quant/module_match.h"

namespace quatrain {
namespace {

// One dense and one MoE layer; the experts' intermediate size is `expert_size`.
std::vector<WeightSpec> SmallTable(int64_t expert_size) {
  ModelConfig config;
  config.vocab_size = 64;
  config.hidden_size = 128;
  config.intermediate_size = 256;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 32;
  config.num_experts = 2;
  config.num_experts_per_tok = 1;
  config.moe_intermediate_size = expert_size;
  config.is_moe_layer = {false, true};
  return WeightTableOf(config);
}

QuantScheme Scheme(int64_t group_size) { return {.num_bits = 4, .group_size = group_size}; }

std::vector<std::string> QuantizedModulesOf(const std::vector<WeightSpec>& table,
                                            const QuantPlan& plan) {
  std::vector<std::string> modules;
  for (size_t i = 0; i < table.size(); ++i) {
    if (plan.is_quantized[i]) modules.push_back(table[i].module());
  }
  return modules;
}

// What config.json announces must be what is quantised.
void ExpectIgnoreListIsExact(const std::vector<WeightSpec>& table, const QuantPlan& plan) {
  const QuantizedModules announced(plan.scheme, "test");
  for (size_t i = 0; i < table.size(); ++i) {
    const bool is_linear = table[i].is_quantisable() || table[i].role == WeightRole::kRouter ||
                           table[i].role == WeightRole::kLmHead;
    if (is_linear) {
      EXPECT_EQ(announced.Contains(table[i].module()), plan.is_quantized[i]) << table[i].name;
    }
  }
}

std::string MessageOf(const std::vector<WeightSpec>& table, const QuantScheme& scheme,
                      const QuantScope& scope) {
  try {
    MakeQuantPlan(table, scheme, scope, Indivisible::kRefuse);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(QuantPlan, AllLinearTakesEveryLinearButRouterAndHead) {
  const std::vector<WeightSpec> table = SmallTable(64);
  const QuantPlan plan =
      MakeQuantPlan(table, Scheme(32), QuantScope::kAllLinear, Indivisible::kRefuse);
  EXPECT_EQ(plan.num_quantized, 2 * 4 + 3 + 2 * 3);
  EXPECT_EQ(plan.scheme.ignore, (std::vector<std::string>{"lm_head", "re:.*mlp.gate$"}));
  ExpectIgnoreListIsExact(table, plan);
}

TEST(QuantPlan, ExpertsScopeLeavesAttentionAndDenseLayers) {
  const std::vector<WeightSpec> table = SmallTable(64);
  const QuantPlan plan =
      MakeQuantPlan(table, Scheme(32), QuantScope::kExperts, Indivisible::kRefuse);
  for (const std::string& module : QuantizedModulesOf(table, plan)) {
    EXPECT_NE(module.find(".experts."), std::string::npos) << module;
  }
  EXPECT_EQ(plan.num_quantized, 6);
  ExpectIgnoreListIsExact(table, plan);
}

TEST(QuantPlan, IndivisibleWeightIsRefusedWithTheSizesThatFit) {
  const std::string message = MessageOf(SmallTable(96), Scheme(64), QuantScope::kAllLinear);
  EXPECT_NE(message.find("model.layers.1.mlp.experts.0.down_proj.weight"), std::string::npos)
      << message;
  EXPECT_NE(message.find("K = 96"), std::string::npos) << message;
  EXPECT_NE(message.find("32 or channel"), std::string::npos) << message;
  EXPECT_NE(message.find("--keep-indivisible"), std::string::npos) << message;
}

TEST(QuantPlan, KeepIndivisibleLeavesTheWholeFusedGroup) {
  const std::vector<WeightSpec> table = SmallTable(96);
  const QuantPlan plan =
      MakeQuantPlan(table, Scheme(64), QuantScope::kAllLinear, Indivisible::kKeep);
  EXPECT_EQ(plan.kept.size(), 6u);  // gate, up and down of both experts
  EXPECT_EQ(plan.num_quantized, 2 * 4 + 3);
  ExpectIgnoreListIsExact(table, plan);
}

TEST(QuantPlan, PerChannelDividesEverything) {
  const QuantPlan plan =
      MakeQuantPlan(SmallTable(90), Scheme(0), QuantScope::kAllLinear, Indivisible::kRefuse);
  EXPECT_TRUE(plan.kept.empty());
}

TEST(QuantPlan, NothingToQuantiseIsRefused) {
  std::vector<WeightSpec> dense = SmallTable(64);
  std::erase_if(dense, [](const WeightSpec& spec) { return spec.role == WeightRole::kExpert; });
  EXPECT_NE(MessageOf(dense, Scheme(32), QuantScope::kExperts).find("--scope all-linear"),
            std::string::npos);
  EXPECT_THROW(MakeQuantPlan(SmallTable(96), Scheme(64), QuantScope::kExperts, Indivisible::kKeep),
               Error);
}

TEST(QuantPlan, ListOfModulesIsAScope) {
  const std::vector<WeightSpec> table = SmallTable(96);
  const QuantPlan plan = MakeQuantPlan(
      table, Scheme(32), ParseQuantScope({"re:.*self_attn", "model.layers.0.mlp.down_proj"}),
      Indivisible::kRefuse);
  EXPECT_EQ(plan.num_quantized, 2 * 4 + 1);
  ExpectIgnoreListIsExact(table, plan);
  // What stays is told by few expressions, not by the name of every expert.
  EXPECT_LT(plan.scheme.ignore.size(), 8u);
}

TEST(QuantPlan, EntryThatMeansNoLinearIsRefused) {
  for (const char* entry : {"self_attn", "re:.*w1$", "lm_head"}) {
    const std::string message = MessageOf(SmallTable(96), Scheme(32), ParseQuantScope({entry}));
    EXPECT_NE(message.find(entry), std::string::npos) << message;
    EXPECT_NE(message.find("no linear"), std::string::npos) << message;
  }
}

TEST(QuantPlan, ScopeThatCutsWhatEnginesFuseIsRefused) {
  const std::string message =
      MessageOf(SmallTable(96), Scheme(32), ParseQuantScope({"re:.*q_proj"}));
  EXPECT_NE(message.find("engines fuse"), std::string::npos) << message;
  EXPECT_NE(message.find("q_proj"), std::string::npos) << message;
}

}  // namespace
}  // namespace quatrain
