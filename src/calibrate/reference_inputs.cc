#include "calibrate/reference_inputs.h"

#include <numeric>
#include <span>

namespace quatrain {
namespace {

// Tokens of an expert's rows, ascending.
std::span<const int32_t> TokensOf(const MoePermutation& permutation, int64_t expert) {
  const auto begin = static_cast<size_t>(permutation.expert_begin[static_cast<size_t>(expert)]);
  const auto end = static_cast<size_t>(permutation.expert_begin[static_cast<size_t>(expert) + 1]);
  return std::span<const int32_t>(permutation.row_token).subspan(begin, end - begin);
}

}  // namespace

LinearObserver ReferenceInputs::Observer() {
  return [this](const Weight& weight, const at::Tensor& x_TI) {
    if (weight.spec.role == WeightRole::kRouter) router_TD_ = x_TI;
    inputs_[weight.spec.name] = x_TI;
  };
}

void ReferenceInputs::SetPermutations(const MoePermutation* reference,
                                      const MoePermutation* quantized) {
  reference_ = reference;
  quantized_ = quantized;
}

ReferenceRows ReferenceInputs::RowsFor(const Weight& weight, const at::Tensor& x_TI) const {
  const auto found = inputs_.find(weight.spec.name);
  if (found == inputs_.end()) return {};
  if (weight.spec.role != WeightRole::kExpert) {
    ReferenceRows rows{found->second, std::vector<int32_t>(static_cast<size_t>(x_TI.size(0)))};
    std::iota(rows.row_T.begin(), rows.row_T.end(), 0);
    return rows;
  }
  if (weight.spec.name.find(".down_proj.") != std::string::npos) {
    return {found->second, ExpertRows(weight.spec.expert)};
  }
  // Every token has an input of gate and up, whichever expert it went to.
  const std::span<const int32_t> tokens = TokensOf(*quantized_, weight.spec.expert);
  return {router_TD_, {tokens.begin(), tokens.end()}};
}

// Rows of what the expert read in the unquantised model.
std::vector<int32_t> ReferenceInputs::ExpertRows(int64_t expert) const {
  const std::span<const int32_t> wanted = TokensOf(*quantized_, expert);
  const std::span<const int32_t> present = TokensOf(*reference_, expert);
  std::vector<int32_t> rows(wanted.size(), ReferenceRows::kOwnRow);
  for (size_t i = 0, j = 0; i < wanted.size(); ++i) {
    while (j < present.size() && present[j] < wanted[i]) ++j;
    if (j < present.size() && present[j] == wanted[i]) rows[i] = static_cast<int32_t>(j);
  }
  return rows;
}

}  // namespace quatrain
