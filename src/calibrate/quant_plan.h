// Which weights of a model are quantised, and what config.json says about those that are not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/families.h"
#include "quant/scheme.h"

namespace quatrain {

enum class QuantScope {
  kExperts,    // routed experts only
  kAllLinear,  // every linear but the router and lm_head
};

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

// `scheme` gives bits, group size and rule. Errors: kUsage if the scope holds nothing to quantise;
// kShape naming the first weight that the group size does not divide and the sizes that divide all
// of them.
QuantPlan MakeQuantPlan(const std::vector<WeightSpec>& table, const QuantScheme& scheme,
                        QuantScope scope, Indivisible indivisible);

}  // namespace quatrain
