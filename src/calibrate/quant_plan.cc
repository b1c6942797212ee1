#include "calibrate/quant_plan.h"

#include <array>
#include <map>
#include <set>

#include "base/error.h"
#include "quant/module_match.h"

namespace quatrain {
namespace {

using Rows = std::vector<const WeightSpec*>;

// Weights with one key are one weight in the engines, so all of them are quantised or none.
std::string FusedKey(const WeightSpec& spec) {
  const std::string module = spec.module();
  const size_t dot = module.rfind('.');
  const std::string parent = module.substr(0, dot + 1);
  if (spec.role == WeightRole::kExpert)
    return parent.substr(0, parent.find(".experts.")) + " experts";
  const std::string last = module.substr(dot + 1);
  const auto is_one_of = [&](std::initializer_list<const char*> names) {
    return std::find(names.begin(), names.end(), last) != names.end();
  };
  if (is_one_of({"q_proj", "k_proj", "v_proj"})) return parent + "{q,k,v}_proj";
  if (is_one_of({"gate_proj", "up_proj"})) return parent + "{gate,up}_proj";
  if (is_one_of({"w1", "w3"})) return parent + "{w1,w3}";
  if (is_one_of({"q_a_proj", "kv_a_proj_with_mqa"})) return parent + "{q_a,kv_a}_proj";
  return module;
}

// By row of the table: is it in scope?
std::vector<bool> InScope(const std::vector<WeightSpec>& table, const QuantScope& scope) {
  const ModuleMatcher modules(scope.modules, "--scope");
  std::vector<bool> in_scope;
  for (const WeightSpec& spec : table) {
    const bool is_in = scope.kind == QuantScope::kModules   ? modules.Matches(spec.module())
                       : scope.kind == QuantScope::kExperts ? spec.role == WeightRole::kExpert
                                                            : true;
    in_scope.push_back(spec.is_quantisable() && is_in);
  }
  return in_scope;
}

// Each entry of a list of modules must mean one, and none may cut what engines fuse.
void CheckModules(const std::vector<WeightSpec>& table, const QuantScope& scope,
                  const std::vector<bool>& in_scope) {
  for (const std::string& entry : scope.modules) {
    const ModuleMatcher matcher({entry}, "--scope");
    const bool means_one = std::any_of(table.begin(), table.end(), [&](const WeightSpec& spec) {
      return spec.is_quantisable() && matcher.Matches(spec.module());
    });
    if (means_one) continue;
    throw Error(ErrorCode::kUsage,
                {.where = "--scope " + entry,
                 .what = "no linear of the model is meant by it",
                 .expected = "experts, all-linear, names of modules, or re: and an expression that "
                             "matches from the start of a name",
                 .todo = "'quatrain inspect DIR' lists the names, e.g. re:.*self_attn.*"});
  }
  std::map<std::string, std::array<const WeightSpec*, 2>> groups;  // one outside the scope, one in
  for (size_t i = 0; i < table.size(); ++i) {
    if (table[i].is_quantisable()) groups[FusedKey(table[i])][in_scope[i] ? 1 : 0] = &table[i];
  }
  for (const auto& [key, examples] : groups) {
    if (examples[0] == nullptr || examples[1] == nullptr) continue;
    throw Error(ErrorCode::kUsage,
                {.where = "--scope",
                 .what = fmt::format("it takes {} but not {}, which engines fuse",
                                     examples[1]->module(), examples[0]->module()),
                 .todo = "Take both or neither."});
  }
}

// Rows in scope that the group size does not divide.
Rows FindIndivisible(const Rows& in_scope, const QuantScheme& scheme) {
  Rows rows;
  for (const WeightSpec* spec : in_scope) {
    if (spec->shape[1] % scheme.GroupSizeFor(spec->shape[1]) != 0) rows.push_back(spec);
  }
  return rows;
}

// "32, 64 or channel": the sizes that divide every weight in scope.
std::string SizesThatFitAll(const Rows& in_scope) {
  std::string text;
  for (const int64_t size : {32, 64, 128}) {
    const bool fits = std::all_of(in_scope.begin(), in_scope.end(), [&](const WeightSpec* spec) {
      return spec->shape[1] % size == 0;
    });
    if (fits) text += fmt::format("{}, ", size);
  }
  return text.empty() ? "only channel" : text.substr(0, text.size() - 2) + " or channel";
}

void RefuseIndivisible(const Rows& rows, const Rows& in_scope, const QuantScheme& scheme) {
  const WeightSpec& first = *rows.front();
  const std::string more =
      rows.size() == 1 ? "" : fmt::format(" (and {} more weights)", rows.size() - 1);
  throw Error(ErrorCode::kShape,
              {.where = first.name,
               .what = fmt::format("K = {} input features cannot be cut into groups of {}{}",
                                   first.shape[1], scheme.group_size, more),
               .expected = "a group size that divides every weight: " + SizesThatFitAll(in_scope),
               .found = fmt::format("{}", scheme.group_size),
               .todo = "Choose one with --quant-group-size, or pass --keep-indivisible to leave "
                       "such weights, and those that engines fuse with them, in BF16."});
}

// The expression that means a module and those that differ from it in numbers only.
std::string PatternOf(const std::string& module) {
  std::string pattern = "re:";
  for (size_t i = 0; i < module.size(); ++i) {
    const bool starts_number = std::isdigit(static_cast<unsigned char>(module[i])) != 0 &&
                               (i == 0 || module[i - 1] == '.');
    if (starts_number) {
      pattern += "[0-9]+";
      while (i + 1 < module.size() && module[i + 1] != '.') ++i;
    } else if (module[i] == '.') {
      pattern += "[.]";
    } else {
      pattern += module[i];
    }
  }
  return pattern + "$";
}

// Adds what `ignore` does not yet mean: one expression for modules of which none is quantised, else
// each name.
void AddMissing(const std::vector<WeightSpec>& table, const std::vector<bool>& is_quantized,
                std::vector<std::string>& ignore) {
  std::set<std::string> quantized_patterns, added;
  for (size_t i = 0; i < table.size(); ++i) {
    if (is_quantized[i]) quantized_patterns.insert(PatternOf(table[i].module()));
  }
  const ModuleMatcher known(ignore, "ignore");
  for (size_t i = 0; i < table.size(); ++i) {
    const bool is_linear = table[i].is_quantisable() || table[i].role == WeightRole::kRouter;
    const std::string module = table[i].module();
    if (!is_linear || is_quantized[i] || known.Matches(module)) continue;
    const std::string pattern = PatternOf(module);
    const std::string& entry = quantized_patterns.contains(pattern) ? module : pattern;
    if (added.insert(entry).second) ignore.push_back(entry);
  }
}

// What config.json must list so that engines expect those modules in BF16.
std::vector<std::string> IgnoreList(const std::vector<WeightSpec>& table, const QuantScope& scope,
                                    const QuantPlan& plan) {
  bool has_router = false, has_dense_mlp = false;
  for (const WeightSpec& spec : table) {
    has_router = has_router || spec.module().ends_with("mlp.gate");
    has_dense_mlp = has_dense_mlp || spec.module().ends_with("mlp.gate_proj");
  }
  std::vector<std::string> ignore = {"lm_head"};
  if (has_router) ignore.push_back("re:.*mlp.gate$");
  if (scope.kind == QuantScope::kExperts) {
    ignore.push_back("re:.*self_attn.*");
    if (has_dense_mlp) ignore.push_back("re:.*mlp.(gate|up|down)_proj$");
  }
  ignore.insert(ignore.end(), plan.kept.begin(), plan.kept.end());
  AddMissing(table, plan.is_quantized, ignore);
  return ignore;
}

[[noreturn]] void ThrowNothingLeft(const QuantPlan& plan, const QuantScope& scope) {
  const bool has_kept = !plan.kept.empty();
  throw Error(
      ErrorCode::kUsage,
      {.where = has_kept ? "--keep-indivisible" : "--scope " + scope.Name(),
       .what = has_kept ? "nothing is left to quantise: the group size divides no weight"
               : scope.kind == QuantScope::kExperts
                   ? "nothing to quantise: the model has no routed experts"
                   : "nothing to quantise: no linear layer is recognised by its name",
       .todo = has_kept ? "Choose another --quant-group-size." : "Use --scope all-linear."});
}

}  // namespace

std::string QuantScope::Name() const {
  if (kind == kExperts) return "experts";
  return kind == kAllLinear ? "all-linear" : fmt::format("{}", fmt::join(modules, ","));
}

QuantScope ParseQuantScope(const std::vector<std::string>& entries) {
  if (entries.size() == 1 && entries[0] == "experts") return QuantScope::kExperts;
  if (entries.size() == 1 && entries[0] == "all-linear") return QuantScope::kAllLinear;
  QuantScope scope(QuantScope::kModules);
  scope.modules = entries;
  return scope;
}

QuantPlan MakeQuantPlan(const std::vector<WeightSpec>& table, const QuantScheme& scheme,
                        const QuantScope& scope, Indivisible indivisible) {
  const std::vector<bool> in_scope = InScope(table, scope);
  if (scope.kind == QuantScope::kModules) CheckModules(table, scope, in_scope);
  Rows rows;
  for (size_t i = 0; i < table.size(); ++i) {
    if (in_scope[i]) rows.push_back(&table[i]);
  }
  const Rows bad = FindIndivisible(rows, scheme);
  if (!bad.empty() && indivisible == Indivisible::kRefuse) RefuseIndivisible(bad, rows, scheme);
  std::set<std::string> kept_keys;
  for (const WeightSpec* spec : bad) kept_keys.insert(FusedKey(*spec));
  QuantPlan plan;
  plan.scheme = scheme;
  for (size_t i = 0; i < table.size(); ++i) {
    const bool is_kept = in_scope[i] && kept_keys.count(FusedKey(table[i])) != 0;
    if (is_kept) plan.kept.push_back(table[i].module());
    plan.is_quantized.push_back(in_scope[i] && !is_kept);
    plan.num_quantized += plan.is_quantized.back();
  }
  if (plan.num_quantized == 0) ThrowNothingLeft(plan, scope);
  plan.scheme.ignore = IgnoreList(table, scope, plan);
  return plan;
}

}  // namespace quatrain
