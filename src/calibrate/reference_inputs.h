// What the linears of the unquantised model read in one step of a layer, row by row beside what
// those of the half-quantised model read for the same tokens.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "models/layer.h"

namespace quatrain {

// Which row the unquantised model's linear read for each row of ours: a row of `source_SI`, or our
// own (kOwnRow).
struct ReferenceRows {
  static constexpr int32_t kOwnRow = -1;
  at::Tensor source_SI;  // undefined: nothing was observed
  std::vector<int32_t> row_T;
};

class ReferenceInputs {
 public:
  // For the unquantised model's step.
  LinearObserver Observer();

  // How both models sorted their tokens by expert; borrowed, null for a dense MLP. Call before
  // RowsFor an expert.
  void SetPermutations(const MoePermutation* reference, const MoePermutation* quantized);

  // The unquantised model's rows for the tokens of x_TI, which `weight` is about to read. For
  // down_proj of an expert that only the quantised model chose for a token, our own row. Nothing is
  // copied.
  ReferenceRows RowsFor(const Weight& weight, const at::Tensor& x_TI) const;

 private:
  std::vector<int32_t> ExpertRows(int64_t expert) const;

  std::unordered_map<std::string, at::Tensor> inputs_;  // by name of the weight
  at::Tensor router_TD_;
  const MoePermutation* reference_ = nullptr;
  const MoePermutation* quantized_ = nullptr;
};

}  // namespace quatrain
