#include "quant/consistency.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace quatrain {
namespace {

void AddQuantized(TensorTable* table, const std::string& module, int64_t n, int64_t k) {
  (*table)[module + ".weight_packed"] = {"I32", {n, k / 8}};
  (*table)[module + ".weight_scale"] = {"BF16", {n, k / 32}};
  (*table)[module + ".weight_shape"] = {"I64", {2}, {n, k}};
}

void AddDense(TensorTable* table, const std::string& module, int64_t n, int64_t k) {
  (*table)[module + ".weight"] = {"BF16", {n, k}};
}

QuantScheme Scheme() { return {.ignore = {"lm_head", "re:.*mlp.gate$"}}; }

// Two layers of a MoE model, everything but router and lm_head quantised.
TensorTable Good() {
  TensorTable table;
  AddDense(&table, "model.embed_tokens", 256, 64);
  AddDense(&table, "lm_head", 256, 64);
  table["model.norm.weight"] = {"BF16", {64}};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      AddQuantized(&table, prefix + "self_attn." + name, 64, 64);
    }
    AddDense(&table, prefix + "mlp.gate", 4, 64);
    for (int expert = 0; expert < 2; ++expert) {
      for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
        AddQuantized(&table, fmt::format("{}mlp.experts.{}.{}", prefix, expert, name), 64, 64);
      }
    }
  }
  return table;
}

// True if some problem holds all parts.
bool Reports(const QuantScheme& scheme, const TensorTable& table,
             const std::vector<std::string>& parts) {
  for (const std::string& problem : FindInconsistencies(scheme, table, "config.json")) {
    bool has_all = true;
    for (const std::string& part : parts) {
      has_all = has_all && problem.find(part) != std::string::npos;
    }
    if (has_all) return true;
  }
  return false;
}

const std::string kQ = "model.layers.1.self_attn.q_proj";

TEST(FindInconsistencies, FindsNoneInAGoodTable) {
  const std::vector<std::string> problems = FindInconsistencies(Scheme(), Good(), "config.json");
  EXPECT_TRUE(problems.empty()) << problems.front();
  EXPECT_NO_THROW(ThrowIfInconsistent(problems, "dir"));
}

TEST(FindInconsistencies, QuantisedModulesAreTheLinearsMinusTheIgnored) {
  TensorTable table = Good();
  for (const LinearModule& module : LinearModulesOf(table)) {
    const bool is_ignored = module.module == "lm_head" || module.module.ends_with("mlp.gate");
    EXPECT_EQ(module.is_quantized, !is_ignored) << module.module;
    EXPECT_NE(module.module, "model.embed_tokens");
  }
  EXPECT_TRUE(Reports({.ignore = {"lm_head", "re:.*mlp.gate$", kQ}}, table,
                      {kQ, "is quantised, but config.json ignores it"}));
  EXPECT_TRUE(Reports({.ignore = {"lm_head"}}, table,
                      {"model.layers.0.mlp.gate is not quantised", "config.json says so"}));
}

TEST(FindInconsistencies, ReportsMissingAndLeftOverCompanions) {
  TensorTable table = Good();
  table.erase(kQ + ".weight_scale");
  EXPECT_TRUE(Reports(Scheme(), table, {kQ + ".weight_scale is missing"}));
  table = Good();
  table.erase(kQ + ".weight_shape");
  EXPECT_TRUE(Reports(Scheme(), table, {kQ + ".weight_shape is missing"}));
  table = Good();
  table.erase(kQ + ".weight_packed");
  EXPECT_TRUE(Reports(Scheme(), table, {kQ + ".weight_scale", "present without"}));
}

TEST(FindInconsistencies, ReportsAWeightInBothForms) {
  TensorTable table = Good();
  AddDense(&table, kQ, 64, 64);
  EXPECT_TRUE(Reports(Scheme(), table, {kQ + ".weight", "both present"}));
}

TEST(FindInconsistencies, ReportsWrongShapesAndTypes) {
  TensorTable table = Good();
  table[kQ + ".weight_packed"].shape = {64, 9};
  EXPECT_TRUE(
      Reports(Scheme(), table, {kQ + ".weight_packed is I32 [64, 9], expected I32 [64, 8]"}));
  table = Good();
  table[kQ + ".weight_scale"].dtype = "F16";
  EXPECT_TRUE(Reports(Scheme(), table, {kQ + ".weight_scale is F16", "expected BF16 [64, 2]"}));
  table = Good();
  table[kQ + ".weight_shape"].values = {64};
  EXPECT_TRUE(Reports(Scheme(), table, {kQ + ".weight_shape"}));
  table = Good();
  table[kQ + ".weight_shape"] = {"I32", {2}, {64, 64}};
  EXPECT_TRUE(FindInconsistencies(Scheme(), table, "c").empty());
  table[kQ + ".weight_shape"].values = {64, 72};
  EXPECT_TRUE(Reports(Scheme(), table, {kQ, "K = 72 is not whole groups of 32"}));
}

TEST(FindInconsistencies, ReportsZeroPointsTheSchemeDoesNotHave) {
  TensorTable table = Good();
  table[kQ + ".weight_zero_point"] = {"I32", {8, 2}};
  EXPECT_TRUE(Reports(Scheme(), table, {kQ + ".weight_zero_point is present"}));
  QuantScheme asymmetric = Scheme();
  asymmetric.symmetric = false;
  EXPECT_FALSE(Reports(asymmetric, table, {kQ}));
  EXPECT_TRUE(Reports(asymmetric, table, {"k_proj.weight_zero_point is missing"}));
}

TEST(FindInconsistencies, ReportsFusedModulesThatDisagree) {
  const auto make_dense = [](const std::string& module) {
    TensorTable table = Good();
    for (const char* suffix : {".weight_packed", ".weight_scale", ".weight_shape"}) {
      table.erase(module + suffix);
    }
    AddDense(&table, module, 64, 64);
    return table;
  };
  QuantScheme scheme = Scheme();
  scheme.ignore.push_back(kQ);
  EXPECT_TRUE(
      Reports(scheme, make_dense(kQ), {"engines fuse model.layers.1.self_attn.{q,k,v}_proj"}));
  const std::string expert = "model.layers.0.mlp.experts.1.down_proj";
  scheme.ignore.push_back(expert);
  EXPECT_TRUE(Reports(scheme, make_dense(expert), {"engines fuse model.layers.0.mlp.experts"}));
  // An output projection is fused with nothing.
  const std::string o_proj = "model.layers.0.self_attn.o_proj";
  scheme.ignore = {"lm_head", "re:.*mlp.gate$", o_proj};
  EXPECT_TRUE(FindInconsistencies(scheme, make_dense(o_proj), "c").empty());
}

TEST(FindInconsistencies, CountsFused3DExpertsAsLinears) {
  TensorTable table;
  table["model.layers.0.mlp.experts.gate_up_proj"] = {"BF16", {4, 64, 32}};
  EXPECT_TRUE(Reports(Scheme(), table, {"experts.gate_up_proj is not quantised"}));
  EXPECT_TRUE(FindInconsistencies({.ignore = {"re:.*experts"}}, table, "c").empty());
}

TEST(FindUnannounced, ReportsCodesWithoutAConfiguration) {
  const std::vector<std::string> problems = FindUnannounced(Good());
  EXPECT_EQ(problems.size(), 2u * (4 + 6));
  TensorTable dense;
  AddDense(&dense, "lm_head", 8, 8);
  EXPECT_TRUE(FindUnannounced(dense).empty());
}

TEST(ThrowIfInconsistent, NamesTheFirstAndCountsTheRest) {
  try {
    ThrowIfInconsistent({"a.weight_scale is missing", "b", "c"}, "models/int4");
    FAIL() << "problems must be thrown";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("models/int4"), std::string::npos);
    EXPECT_NE(message.find("a.weight_scale is missing (and 2 more)"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace quatrain
