// Which weights of a model are quantised, and what config.json says about those that are not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/families.h"
#include "quant/scheme.h"

namespace quatrain {

// What is to be quantised, before group sizes are looked at.
struct QuantScope {
  enum Kind {
    kExperts,    // routed experts only
    kAllLinear,  // every linear but the router and lm_head
    kModules,    // those that `modules` means, among every linear but the router and lm_head
  };
  Kind kind = kAllLinear;
  std::vector<std::string> modules = {};  // names and re:expressions, as quant/module_match.h reads

  QuantScope(Kind of_kind = kAllLinear) : kind(of_kind) {}  // NOLINT: a kind alone is a scope
  // "experts", "all-linear", or the entries joined by commas.
  std::string Name() const;
};

// The scope of a flag: "experts", "all-linear", or names and re:expressions, one an element.
QuantScope ParseQuantScope(const std::vector<std::string>& entries);

// What happens to a weight whose input features the group size does not divide.
enum class Indivisible {
  kRefuse,
  kKeep,  // stays BF16, with everything that engines fuse with it: q/k/v, gate/up, all experts of a
          // layer
};

struct QuantPlan {
  QuantScheme scheme;              // its ignore list names everything that stays BF16
  std::vector<bool> is_quantized;  // by row of the weight table
  std::vector<std::string> kept;   // modules in scope that Indivisible::kKeep left in BF16
  int64_t num_quantized = 0;
};

// `scheme` gives bits, group size and rule. Errors: kUsage if the scope holds nothing to quantise,
// an entry of it means no linear, or it cuts what engines fuse; kShape naming the first weight that
// the group size does not divide and the sizes that divide all of them.
QuantPlan MakeQuantPlan(const std::vector<WeightSpec>& table, const QuantScheme& scheme,
                        const QuantScope& scope, Indivisible indivisible);

}  // namespace quatrain
