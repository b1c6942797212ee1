// What tests of training share: the small model, loaded, and a table with codes for its experts.
#pragma once

#include <optional>

#include "models/test_support.h"

namespace quatrain {

class SmallMoeTest : public ModelFolderTest {
 protected:
  void SetUp() override {
    ModelFolderTest::SetUp();
    checkpoint_.emplace(PutSmallMoe("model"));
    start_.emplace(LoadWeights(*checkpoint_, at::kBFloat16));
  }
  void TearDown() override {
    start_.reset();
    checkpoint_.reset();
    ModelFolderTest::TearDown();
  }

  // Uninitialised, W4A16 in groups of 32 where a weight is an expert's.
  ModelWeights TableWithExpertCodes() const {
    std::vector<Weight> format;
    for (size_t i = 0; i < start_->size(); ++i) {
      Weight weight{(*start_)[i].spec, {}, {}};
      if (weight.spec.role == WeightRole::kExpert) {
        weight.codes.num_bits = 4;
        weight.codes.out_features = weight.spec.shape[0];
        weight.codes.in_features = weight.spec.shape[1];
      }
      format.push_back(std::move(weight));
    }
    return AllocateLike(ModelWeights(std::move(format)), 32);
  }

  std::optional<Checkpoint> checkpoint_;
  std::optional<ModelWeights> start_;
};

}  // namespace quatrain
