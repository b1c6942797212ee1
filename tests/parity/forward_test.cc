// Our forward against Hugging Face transformers (tests/goldens/oracles/forward): log-probabilities,
// experts, BF16 error.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "ops/logprob_ops.h"
#include "tests/parity/oracle_models.h"

namespace quatrain {
namespace {

class Forward : public testing::TestWithParam<std::string> {
 protected:
  TensorSet Oracle() const {
    return TensorSet(SourcePath("tests/goldens/oracles/forward/" + GetParam() + ".safetensors"));
  }
  ThreadPool pool_{2};
  OpContext ctx_{pool_};
};

std::vector<float> Logprobs(const OpContext& ctx, const OracleModel& model,
                            const std::vector<int32_t>& ids, RoutedExperts* record = nullptr) {
  ForwardBatch batch = MakeVarlenBatch({ids});
  batch.record = record;
  const at::Tensor hidden = model.decoder.Forward(ctx, batch);
  return LmHeadLogprobs(ctx, hidden.narrow(0, 0, hidden.size(0) - 1), model.decoder.LmHead(),
                        std::span<const int32_t>(ids).subspan(1), 1.0f, Entropy::kSkip)
      .logprobs;
}

TEST_P(Forward, LogprobsInFloat32AreWithin2e4OfTheReference) {
  const TensorSet oracle = Oracle();
  const OracleModel model(GetParam(), at::kFloat);
  double largest = 0.0;
  for (int s = 0; s < 3; ++s) {
    const std::string seq = "seq" + std::to_string(s);
    const std::vector<float> ours =
        Logprobs(ctx_, model, ReadVector<int32_t>(oracle, seq + ".input_ids"));
    const std::vector<float> theirs = ReadVector<float>(oracle, seq + ".logprobs");
    ASSERT_EQ(ours.size(), theirs.size());
    for (size_t t = 0; t < ours.size(); ++t)
      largest = std::max(largest, std::abs(double{ours[t]} - theirs[t]));
  }
  RecordProperty("largest_difference", std::to_string(largest));
  std::printf("%s: largest FP32 difference %.2e\n", GetParam().c_str(), largest);
  EXPECT_LT(largest, 2e-4);
}

TEST_P(Forward, Bfloat16IsAsCloseToFloat32AsTheReferencesOwn) {
  const TensorSet oracle = Oracle();
  const OracleModel model(GetParam(), at::kBFloat16);
  double ours_sum = 0.0, theirs_sum = 0.0;
  size_t count = 0;
  for (int s = 0; s < 3; ++s) {
    const std::string seq = "seq" + std::to_string(s);
    const std::vector<float> exact = ReadVector<float>(oracle, seq + ".logprobs");
    const std::vector<float> theirs = ReadVector<float>(oracle, seq + ".logprobs_bf16");
    const std::vector<float> ours =
        Logprobs(ctx_, model, ReadVector<int32_t>(oracle, seq + ".input_ids"));
    for (size_t t = 0; t < exact.size(); ++t) {
      ours_sum += std::abs(ours[t] - exact[t]);
      theirs_sum += std::abs(theirs[t] - exact[t]);
    }
    count += exact.size();
  }
  const auto n = static_cast<double>(count);
  std::printf("%s: mean BF16 difference %.5f, reference %.5f\n", GetParam().c_str(), ours_sum / n,
              theirs_sum / n);
  EXPECT_LE(ours_sum, 1.2 * theirs_sum);
}

TEST_P(Forward, ExpertsAreEqualWhereTheMarginSettlesThem) {
  const TensorSet oracle = Oracle();
  const OracleModel model(GetParam(), at::kFloat);
  if (model.checkpoint.config().num_experts == 0) GTEST_SKIP() << "no experts";
  int64_t num_compared = 0;
  for (int s = 0; s < 3; ++s) {
    const std::string seq = "seq" + std::to_string(s);
    RoutedExperts record;
    Logprobs(ctx_, model, ReadVector<int32_t>(oracle, seq + ".input_ids"), &record);
    const std::vector<int32_t> ids = ReadVector<int32_t>(oracle, seq + ".experts");
    const std::vector<float> margin = ReadVector<float>(oracle, seq + ".margin");
    ASSERT_EQ(ids.size(), record.ids_TLK.size());
    const auto k = static_cast<size_t>(record.num_experts_per_tok);
    for (size_t row = 0; row < margin.size(); ++row) {
      if (margin[row] <= 1e-4f) continue;
      const std::set<int32_t> theirs(&ids[row * k], &ids[row * k] + k);
      const std::set<int32_t> ours(&record.ids_TLK[row * k], &record.ids_TLK[row * k] + k);
      EXPECT_EQ(ours, theirs) << seq << " row " << row;
      ++num_compared;
    }
  }
  EXPECT_GT(num_compared, 100);
}

INSTANTIATE_TEST_SUITE_P(Models, Forward,
                         testing::Values("tiny-qwen3-moe", "tiny-llama", "small-qwen3-moe"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace quatrain
