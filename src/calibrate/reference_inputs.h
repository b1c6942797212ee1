// What the linears of the unquantised model read in one step of a layer, row by row beside what
// those of the half-quantised model read for the same tokens.
#pragma once

#include <string>
#include <unordered_map>

#include "models/layer.h"

namespace quatrain {

class ReferenceInputs {
 public:
  // For the unquantised model's step.
  LinearObserver Observer();

  // How both models sorted their tokens by expert; borrowed, null for a dense MLP. Call before
  // RowsFor an expert.
  void SetPermutations(const MoePermutation* reference, const MoePermutation* quantized);

  // The unquantised model's rows for the tokens of x_TI, which `weight` is about to read. For
  // down_proj of an expert that only the quantised model chose for a token, the row of x_TI itself.
  // Undefined: nothing was observed.
  at::Tensor RowsFor(const Weight& weight, const at::Tensor& x_TI) const;

 private:
  at::Tensor ExpertRows(int64_t expert) const;
  at::Tensor ExpertActivations(int64_t expert, const at::Tensor& reference_TI,
                               const at::Tensor& x_TI) const;

  std::unordered_map<std::string, at::Tensor> inputs_;  // by name of the weight
  at::Tensor router_TD_;
  const MoePermutation* reference_ = nullptr;
  const MoePermutation* quantized_ = nullptr;
};

}  // namespace quatrain
