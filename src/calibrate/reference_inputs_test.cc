#include "calibrate/reference_inputs.h"

#include <gtest/gtest.h>

#include <vector>

#include "ops/tensor.h"

namespace quatrain {
namespace {

constexpr int64_t kExperts = 2;

Weight WeightNamed(const std::string& name, WeightRole role, int64_t expert) {
  Weight weight;
  weight.spec.name = name;
  weight.spec.role = role;
  weight.spec.expert = expert;
  return weight;
}

// One feature a row.
at::Tensor Rows(const std::vector<float>& values) {
  at::Tensor rows = at::empty({static_cast<int64_t>(values.size()), 1}, at::kFloat);
  std::copy(values.begin(), values.end(), rows.data_ptr<float>());
  return rows;
}

// The rows in full.
std::vector<float> Values(const ReferenceRows& rows, const at::Tensor& x) {
  std::vector<float> values;
  for (size_t i = 0; i < rows.row_T.size(); ++i) {
    const int32_t row = rows.row_T[i];
    values.push_back(row == ReferenceRows::kOwnRow ? DataOf<float>(x)[i]
                                                   : DataOf<float>(rows.source_SI)[row]);
  }
  return values;
}

// Four tokens: the unquantised model sends them to experts 0, 1, 0, 1, the quantised one to 0, 0,
// 0, 1.
class ReferenceInputsTest : public testing::Test {
 protected:
  ReferenceInputsTest() {
    inputs_.SetPermutations(&reference_, &quantized_);
    const LinearObserver observer = inputs_.Observer();
    observer(WeightNamed("router", WeightRole::kRouter, -1), Rows({10, 11, 12, 13}));
    observer(gate_, Rows({10, 12}));
    observer(down_, Rows({20, 22}));
  }
  const MoePermutation reference_ = PermuteByExpert(std::vector<int32_t>{0, 1, 0, 1}, kExperts, 1);
  const MoePermutation quantized_ = PermuteByExpert(std::vector<int32_t>{0, 0, 0, 1}, kExperts, 1);
  const Weight gate_ = WeightNamed("e.0.gate_proj.weight", WeightRole::kExpert, 0);
  const Weight down_ = WeightNamed("e.0.down_proj.weight", WeightRole::kExpert, 0);
  ReferenceInputs inputs_;
};

TEST_F(ReferenceInputsTest, GateHasARowForEveryTokenOfTheQuantisedModel) {
  const at::Tensor x = Rows({1, 2, 3});
  EXPECT_EQ(Values(inputs_.RowsFor(gate_, x), x), (std::vector<float>{10, 11, 12}));
}

TEST_F(ReferenceInputsTest, DownKeepsItsOwnRowWhereTheOtherModelChoseAnotherExpert) {
  const at::Tensor x = Rows({1, 2, 3});
  EXPECT_EQ(Values(inputs_.RowsFor(down_, x), x), (std::vector<float>{20, 2, 22}));
}

TEST_F(ReferenceInputsTest, OtherLinearsHaveTheRowsThatWereSeen) {
  const Weight o_proj = WeightNamed("o_proj.weight", WeightRole::kAttention, -1);
  const at::Tensor x = Rows({1, 2});
  EXPECT_FALSE(inputs_.RowsFor(o_proj, x).source_SI.defined());
  inputs_.Observer()(o_proj, Rows({7, 8}));
  EXPECT_EQ(Values(inputs_.RowsFor(o_proj, x), x), (std::vector<float>{7, 8}));
}

}  // namespace
}  // namespace quatrain
