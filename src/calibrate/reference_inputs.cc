#include "calibrate/reference_inputs.h"

#include <span>

namespace quatrain {
namespace {

// Tokens of an expert's rows, ascending.
std::span<const int32_t> TokensOf(const MoePermutation& permutation, int64_t expert) {
  const auto begin = static_cast<size_t>(permutation.expert_begin[static_cast<size_t>(expert)]);
  const auto end = static_cast<size_t>(permutation.expert_begin[static_cast<size_t>(expert) + 1]);
  return std::span<const int32_t>(permutation.row_token).subspan(begin, end - begin);
}

at::Tensor IndexTensor(const std::vector<int64_t>& index) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(index.size())}, at::kLong);
  std::copy(index.begin(), index.end(), tensor.data_ptr<int64_t>());
  return tensor;
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

at::Tensor ReferenceInputs::RowsFor(const Weight& weight, const at::Tensor& x_TI) const {
  const auto found = inputs_.find(weight.spec.name);
  if (found == inputs_.end()) return {};
  if (weight.spec.role != WeightRole::kExpert) return found->second;
  const bool is_down = weight.spec.name.find(".down_proj.") != std::string::npos;
  return is_down ? ExpertActivations(weight.spec.expert, found->second, x_TI)
                 : ExpertRows(weight.spec.expert);
}

// Every token has an input, whichever expert it went to.
at::Tensor ReferenceInputs::ExpertRows(int64_t expert) const {
  const std::span<const int32_t> tokens = TokensOf(*quantized_, expert);
  return router_TD_.index_select(0, IndexTensor({tokens.begin(), tokens.end()}));
}

at::Tensor ReferenceInputs::ExpertActivations(int64_t expert, const at::Tensor& reference_TI,
                                              const at::Tensor& x_TI) const {
  const std::span<const int32_t> wanted = TokensOf(*quantized_, expert);
  const std::span<const int32_t> present = TokensOf(*reference_, expert);
  std::vector<int64_t> from, to;  // rows of both that are of one token
  for (size_t i = 0, j = 0; i < wanted.size(); ++i) {
    while (j < present.size() && present[j] < wanted[i]) ++j;
    if (j == present.size() || present[j] != wanted[i]) continue;
    from.push_back(static_cast<int64_t>(j));
    to.push_back(static_cast<int64_t>(i));
  }
  at::Tensor rows_TI = x_TI.clone();
  rows_TI.index_copy_(0, IndexTensor(to), reference_TI.index_select(0, IndexTensor(from)));
  return rows_TI;
}

}  // namespace quatrain
