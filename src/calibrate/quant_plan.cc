#include "calibrate/quant_plan.h"

#include <set>

#include "base/error.h"

namespace quatrain {
namespace {

bool IsInScope(const WeightSpec& spec, QuantScope scope) {
  return scope == QuantScope::kAllLinear ? spec.is_quantisable() : spec.role == WeightRole::kExpert;
}

// Weights with one key are one weight in the engines, so all of them are quantised or none.
std::string FusedKey(const WeightSpec& spec) {
  if (spec.role == WeightRole::kExpert) return fmt::format("{} experts", spec.layer);
  const std::string module = spec.module();
  const std::string last = module.substr(module.rfind('.') + 1);
  if (last == "q_proj" || last == "k_proj" || last == "v_proj") {
    return fmt::format("{} qkv", spec.layer);
  }
  if (last == "gate_proj" || last == "up_proj") return fmt::format("{} gate_up", spec.layer);
  return module;
}

// Rows in scope that the group size does not divide.
std::vector<const WeightSpec*> FindIndivisible(const std::vector<WeightSpec>& table,
                                               QuantScope scope, const QuantScheme& scheme) {
  std::vector<const WeightSpec*> rows;
  for (const WeightSpec& spec : table) {
    if (IsInScope(spec, scope) && spec.shape[1] % scheme.GroupSizeFor(spec.shape[1]) != 0) {
      rows.push_back(&spec);
    }
  }
  return rows;
}

// "32, 64 or channel": the sizes that divide every weight in scope.
std::string SizesThatFitAll(const std::vector<WeightSpec>& table, QuantScope scope) {
  std::string text;
  for (const int64_t size : {32, 64, 128}) {
    bool fits = true;
    for (const WeightSpec& spec : table) {
      fits = fits && (!IsInScope(spec, scope) || spec.shape[1] % size == 0);
    }
    if (fits) text += fmt::format("{}, ", size);
  }
  return text.empty() ? "only channel" : text.substr(0, text.size() - 2) + " or channel";
}

void RefuseIndivisible(const std::vector<const WeightSpec*>& rows,
                       const std::vector<WeightSpec>& table, QuantScope scope,
                       const QuantScheme& scheme) {
  const WeightSpec& first = *rows.front();
  const std::string more =
      rows.size() == 1 ? "" : fmt::format(" (and {} more weights)", rows.size() - 1);
  throw Error(
      ErrorCode::kShape,
      {.where = first.name,
       .what = fmt::format("K = {} input features cannot be cut into groups of {}{}",
                           first.shape[1], scheme.group_size, more),
       .expected = "a group size that divides every weight: " + SizesThatFitAll(table, scope),
       .found = fmt::format("{}", scheme.group_size),
       .todo = "Choose one with --quant-group-size, or pass --keep-indivisible to leave such "
               "weights, and those that engines fuse with them, in BF16."});
}

// What config.json must list so that engines expect those modules in BF16.
std::vector<std::string> IgnoreList(const std::vector<WeightSpec>& table, QuantScope scope,
                                    const std::vector<std::string>& kept) {
  bool has_router = false, has_dense_mlp = false;
  for (const WeightSpec& spec : table) {
    has_router = has_router || spec.role == WeightRole::kRouter;
    has_dense_mlp = has_dense_mlp || spec.role == WeightRole::kMlp;
  }
  std::vector<std::string> ignore = {"lm_head"};
  if (has_router) ignore.push_back("re:.*mlp.gate$");
  if (scope == QuantScope::kExperts) {
    ignore.push_back("re:.*self_attn.*");
    if (has_dense_mlp) ignore.push_back("re:.*mlp.(gate|up|down)_proj$");
  }
  ignore.insert(ignore.end(), kept.begin(), kept.end());
  return ignore;
}

}  // namespace

QuantPlan MakeQuantPlan(const std::vector<WeightSpec>& table, const QuantScheme& scheme,
                        QuantScope scope, Indivisible indivisible) {
  const std::vector<const WeightSpec*> bad = FindIndivisible(table, scope, scheme);
  if (!bad.empty() && indivisible == Indivisible::kRefuse) {
    RefuseIndivisible(bad, table, scope, scheme);
  }
  std::set<std::string> kept_keys;
  for (const WeightSpec* spec : bad) kept_keys.insert(FusedKey(*spec));
  QuantPlan plan;
  plan.scheme = scheme;
  for (const WeightSpec& spec : table) {
    const bool is_in_scope = IsInScope(spec, scope);
    const bool is_kept = is_in_scope && kept_keys.count(FusedKey(spec)) != 0;
    if (is_kept) plan.kept.push_back(spec.module());
    plan.is_quantized.push_back(is_in_scope && !is_kept);
    plan.num_quantized += plan.is_quantized.back();
  }
  if (plan.num_quantized == 0) {
    const bool has_kept = !plan.kept.empty();
    throw Error(
        ErrorCode::kUsage,
        {.where = has_kept ? "--keep-indivisible" : "--scope experts",
         .what = has_kept ? "nothing is left to quantise: the group size divides no weight"
                          : "nothing to quantise: the model has no routed experts",
         .todo = has_kept ? "Choose another --quant-group-size." : "Use --scope all-linear."});
  }
  plan.scheme.ignore = IgnoreList(table, scope, plan.kept);
  return plan;
}

}  // namespace quatrain
