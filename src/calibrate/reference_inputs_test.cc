#include "calibrate/reference_inputs.h"

#include <gtest/gtest.h>

#include <vector>

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

std::vector<float> Values(const at::Tensor& rows) {
  const at::Tensor flat = rows.contiguous();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
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
  EXPECT_EQ(Values(inputs_.RowsFor(gate_, Rows({1, 2, 3}))), (std::vector<float>{10, 11, 12}));
}

TEST_F(ReferenceInputsTest, DownKeepsItsOwnRowWhereTheOtherModelChoseAnotherExpert) {
  EXPECT_EQ(Values(inputs_.RowsFor(down_, Rows({1, 2, 3}))), (std::vector<float>{20, 2, 22}));
}

TEST_F(ReferenceInputsTest, OtherLinearsHaveTheRowsThatWereSeen) {
  const Weight o_proj = WeightNamed("o_proj.weight", WeightRole::kAttention, -1);
  EXPECT_FALSE(inputs_.RowsFor(o_proj, Rows({1})).defined());
  inputs_.Observer()(o_proj, Rows({7}));
  EXPECT_EQ(Values(inputs_.RowsFor(o_proj, Rows({1}))), std::vector<float>{7});
}

}  // namespace
}  // namespace quatrain
