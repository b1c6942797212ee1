#include "train/policy_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "base/random.h"

namespace quatrain {
namespace {

// Two samples: prompt of 2 and response of 3 tokens; prompt of 1 and response of 2.
TrainBatch TwoSamples() {
  TrainBatch batch;
  batch.token_ids_T = {1, 2, 3, 4, 5, 1, 2, 3};
  batch.positions_T = {0, 1, 2, 3, 4, 0, 1, 2};
  batch.cu_seqlens = {0, 5, 8};
  batch.loss_mask_T = {0, 0, 1, 1, 1, 0, 1, 1};
  batch.advantages_T = {0, 0, 1.5f, 1.5f, 1.5f, 0, -0.5f, -0.5f};
  batch.rollout_logprobs_T = {0, 0, -1.75f, -1.5f, -1.25f, 0, -1.0f, -2.5f};
  batch.old_logprobs_T = {0, 0, -0.75f, -1.25f, -1.5f, 0, -1.0f, -2.0f};
  batch.ref_logprobs_T = {0, 0, -0.25f, -2.25f, -2.0f, 0, -1.5f, -2.5f};
  batch.loss_weights_S = {1.0 / 6, 1.0 / 4};
  batch.sample_ids_S = {10, 11};
  return batch;
}

const std::vector<float> kNewLogprobs = {0, 0, -0.5f, -1.25f, -2.0f, 0, -0.75f, -3.0f};
const std::vector<float> kEntropy = {0, 0, 0.5f, 1.0f, 1.5f, 0, 0.25f, 2.0f};

PolicyLossConfig EverythingOn() {
  return {.clip_eps_low = 0.2,
          .clip_eps_high = 0.28,
          .tis = TisOptions{},
          .kl_loss = KlLossOptions{KlLossType::kLowVarKl, 0.1},
          .entropy_coef = 0.01};
}

// One sample, one trained token, weight 1.
struct OneToken {
  float new_logprob = -1, old_logprob = -1, rollout_logprob = -1, ref_logprob = -1, advantage = 1;
};

PolicyLossResult LossOf(const OneToken& token, const PolicyLossConfig& config) {
  TrainBatch batch;
  batch.token_ids_T = {1, 2};
  batch.positions_T = {0, 1};
  batch.cu_seqlens = {0, 2};
  batch.loss_mask_T = {0, 1};
  batch.advantages_T = {0, token.advantage};
  batch.rollout_logprobs_T = {0, token.rollout_logprob};
  batch.old_logprobs_T = {0, token.old_logprob};
  batch.ref_logprobs_T = {0, token.ref_logprob};
  batch.loss_weights_S = {1};
  batch.sample_ids_S = {0};
  return PolicyLoss(batch, std::vector<float>{0, token.new_logprob}, {}, config);
}

// The numbers were computed by a separate script from the formulas in the header.
TEST(PolicyLoss, AgreesWithNumbersComputedIndependently) {
  const PolicyLossResult result = PolicyLoss(TwoSamples(), kNewLogprobs, kEntropy, EverythingOn());
  const PolicyLossMetrics metrics = result.sums.Finish();
  EXPECT_NEAR(metrics.loss, -0.7483720783175267, 1e-14);
  EXPECT_NEAR(metrics.pg_loss, -0.7537226882012082, 1e-14);
  EXPECT_NEAR(metrics.pg_clipfrac, 5.0 / 12, 1e-14);
  EXPECT_NEAR(metrics.ppo_kl, 0.22916666666666666, 1e-14);
  EXPECT_NEAR(metrics.ois, 0.894735560531525, 1e-14);
  EXPECT_NEAR(metrics.ess_ratio, 0.8596302629740005, 1e-14);
  EXPECT_NEAR(metrics.tis.value(), 1.4590316557113971, 1e-14);
  EXPECT_NEAR(metrics.tis_clipfrac.value(), 1.0 / 6, 1e-14);
  EXPECT_NEAR(metrics.tis_abs.value(), 0.532764728020929, 1e-14);
  EXPECT_NEAR(metrics.kl_loss.value(), 0.15975609883681635, 1e-14);
  EXPECT_NEAR(metrics.entropy_loss.value(), 1.0625, 1e-14);
  EXPECT_NEAR(metrics.train_rollout_logprob_abs_diff, 0.375, 1e-14);
  EXPECT_NEAR(metrics.train_rollout_kl, 0.1673649890447306, 1e-14);
  const std::vector<float> expected = {0,
                                       0,
                                       -0.00473375694479569f,
                                       -0.31047101152479273f,
                                       -0.11809163818525367f,
                                       0,
                                       0.1736940132674423f,
                                       -0.016218031767503204f};
  ASSERT_EQ(result.dlogprobs_T.size(), expected.size());
  for (size_t t = 0; t < expected.size(); ++t) {
    EXPECT_FLOAT_EQ(result.dlogprobs_T[t], expected[t]) << t;
  }
  EXPECT_FLOAT_EQ(result.dentropy_T[2], -0.01f / 6);
  EXPECT_FLOAT_EQ(result.dentropy_T[7], -0.01f / 4);
  EXPECT_EQ(result.dentropy_T[0], 0.0f);
}

// The same batch under the other objectives; numbers by a separate script from the formulas.
TEST(PolicyLoss, GspoSharesTheMeanRatioOfTheSequence) {
  PolicyLossConfig config{.clip_eps_low = 0.2, .clip_eps_high = 0.28};
  config.ratio_level = RatioLevel::kSequence;
  const PolicyLossResult result = PolicyLoss(TwoSamples(), kNewLogprobs, {}, config);
  EXPECT_NEAR(result.sums.loss, -0.4900333109719925, 1e-14);
  for (const size_t t : {2u, 3u, 4u}) {
    EXPECT_FLOAT_EQ(result.dlogprobs_T[t], -0.23001110365733082f) << t;
  }
  for (const size_t t : {6u, 7u}) EXPECT_EQ(result.dlogprobs_T[t], 0.0f) << "clipped";
}

TEST(PolicyLoss, UnbiasedKlIsWeightedByTheRatio) {
  PolicyLossConfig config{.clip_eps_low = 0.2, .clip_eps_high = 0.28};
  config.kl_loss = KlLossOptions{KlLossType::kLowVarKl, 0.1, true};
  const PolicyLossMetrics metrics =
      PolicyLoss(TwoSamples(), kNewLogprobs, {}, config).sums.Finish();
  EXPECT_NEAR(metrics.loss, -0.4457641104045881, 1e-14);
  EXPECT_NEAR(metrics.kl_loss.value(), 0.15365377437602423, 1e-14);
}

TEST(PolicyLoss, IcePopLeavesOutTokensOutsideTheBounds) {
  PolicyLossConfig config{.clip_eps_low = 0.2, .clip_eps_high = 0.28};
  config.tis = TisOptions{.clip = 2.0, .clip_low = 0.5, .mode = TisMode::kIcePop};
  const PolicyLossResult result = PolicyLoss(TwoSamples(), kNewLogprobs, {}, config);
  EXPECT_NEAR(result.sums.loss, -0.11372268820120854, 1e-14);
  EXPECT_EQ(result.dlogprobs_T[2], 0.0f) << "its weight is e";
  EXPECT_NEAR(result.sums.tis_clipfrac, 1.0 / 6, 1e-14);
}

TEST(PolicyLoss, TheRatioMayStartFromTheRollout) {
  PolicyLossConfig config{.clip_eps_low = 0.2, .clip_eps_high = 0.28};
  config.old_logprobs = OldLogprobs::kRollout;
  const PolicyLossResult result = PolicyLoss(TwoSamples(), kNewLogprobs, {}, config);
  EXPECT_NEAR(result.sums.loss, -0.4975884610992859, 1e-14);
  EXPECT_NEAR(result.sums.train_rollout_logprob_abs_diff, 0.375, 1e-14) << "still the trainer's";
  config.tis = TisOptions{};
  EXPECT_THROW(CheckPolicyLossConfig(config), Error);
}

TEST(PolicyLoss, OpsmMasksBadSequencesThatHaveDrifted) {
  PolicyLossConfig config{.clip_eps_low = 0.2, .clip_eps_high = 0.28};
  config.opsm_delta = 0.1;  // the second sample: advantage -0.5, mean of old - new 0.375
  const PolicyLossResult result = PolicyLoss(TwoSamples(), kNewLogprobs, {}, config);
  EXPECT_NEAR(result.sums.loss, -0.7216326649281584, 1e-14);
  EXPECT_EQ(result.dlogprobs_T[6], 0.0f);
  EXPECT_NEAR(result.sums.Finish().opsm_clipfrac.value(), 0.5, 1e-14);
  config.opsm_delta = 0.5;
  EXPECT_EQ(PolicyLoss(TwoSamples(), kNewLogprobs, {}, config).sums.opsm_clipfrac, 0.0);
}

TEST(PolicyLoss, GradientAgreesWithFiniteDifferences) {
  // Log-probabilities are multiples of 1/64 and the step is 1/1024, so that FP32 holds every one
  // exactly.
  constexpr double kStep = 1.0 / 1024;
  for (const KlLossType type :
       {KlLossType::kK1, KlLossType::kK2, KlLossType::kK3, KlLossType::kLowVarKl}) {
    const TrainBatch batch = TwoSamples();
    for (uint64_t draw = 0; draw < 40; ++draw) {
      PolicyLossConfig config = EverythingOn();
      config.kl_loss = KlLossOptions{type, 0.3, draw % 2 == 1};
      config.clip_eps_c = 3.0;
      if (draw % 4 >= 2) config.ratio_level = RatioLevel::kSequence;
      std::vector<float> logprobs = kNewLogprobs;
      for (size_t t = 0; t < logprobs.size(); ++t) {
        logprobs[t] = -static_cast<float>(HashBits(7, draw, t) % 256 + 1) / 64 - 1.0f / 256;
      }
      const PolicyLossResult result = PolicyLoss(batch, logprobs, kEntropy, config);
      for (const size_t t : {2u, 3u, 4u, 6u, 7u}) {
        auto loss_at = [&](double step) {
          std::vector<float> moved = logprobs;
          moved[t] += static_cast<float>(step);
          return PolicyLoss(batch, moved, kEntropy, config).sums.loss;
        };
        const double slope = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
        const double scale = std::max(1.0, std::abs(slope));
        EXPECT_NEAR(result.dlogprobs_T[t], slope, 1e-5 * scale)
            << "token " << t << " draw " << draw;
      }
    }
  }
}

TEST(PolicyLoss, EntropyGradientAgreesWithFiniteDifferences) {
  const PolicyLossConfig config = EverythingOn();
  const TrainBatch batch = TwoSamples();
  std::vector<float> entropy = kEntropy;
  const PolicyLossResult at = PolicyLoss(batch, kNewLogprobs, entropy, config);
  entropy[6] += 1.0f;
  const PolicyLossResult moved = PolicyLoss(batch, kNewLogprobs, entropy, config);
  EXPECT_NEAR(moved.sums.loss - at.sums.loss, at.dentropy_T[6], 1e-9);
}

TEST(PolicyLoss, IsExactlyOnPolicyWhenOldAndRolloutLogprobsEqualTheNewOnes) {
  TrainBatch batch = TwoSamples();
  batch.old_logprobs_T = kNewLogprobs;
  batch.rollout_logprobs_T = kNewLogprobs;
  PolicyLossConfig config;
  config.tis = TisOptions{};
  const PolicyLossMetrics metrics = PolicyLoss(batch, kNewLogprobs, {}, config).sums.Finish();
  EXPECT_EQ(metrics.ppo_kl, 0.0);
  EXPECT_EQ(metrics.pg_clipfrac, 0.0);
  EXPECT_EQ(metrics.ess_ratio, 1.0);
  EXPECT_EQ(metrics.train_rollout_logprob_abs_diff, 0.0);
  EXPECT_EQ(metrics.train_rollout_kl, 0.0);
  EXPECT_EQ(metrics.tis_abs.value(), 0.0);
  EXPECT_NEAR(metrics.pg_loss, -1.5 * 3 / 6 + 0.5 * 2 / 4, 1e-15);
}

TEST(PolicyLoss, TakesTheNewLogprobsForOldOnesThatWereNotScored) {
  TrainBatch batch = TwoSamples();
  batch.old_logprobs_T = kNewLogprobs;
  const PolicyLossResult scored = PolicyLoss(batch, kNewLogprobs, kEntropy, EverythingOn());
  batch.old_logprobs_T.clear();
  const PolicyLossResult implied = PolicyLoss(batch, kNewLogprobs, kEntropy, EverythingOn());
  EXPECT_EQ(scored.dlogprobs_T, implied.dlogprobs_T);
  EXPECT_EQ(scored.sums.loss, implied.sums.loss);
  EXPECT_EQ(scored.sums.tis, implied.sums.tis);
}

TEST(PolicyLoss, ClipsOnlyTheSideThatTheAdvantageWouldPushFurther) {
  PolicyLossConfig config;
  config.clip_eps_high = 0.28;
  const float up = std::log(1.5f);
  const float down = std::log(0.5f);
  const PolicyLossResult up_good = LossOf({.new_logprob = -1 + up, .advantage = 1}, config);
  EXPECT_NEAR(up_good.sums.pg_loss, -1.28, 1e-6);
  EXPECT_EQ(up_good.dlogprobs_T[1], 0.0f);
  EXPECT_EQ(up_good.sums.pg_clipfrac, 1.0);
  const PolicyLossResult up_bad = LossOf({.new_logprob = -1 + up, .advantage = -1}, config);
  EXPECT_NEAR(up_bad.sums.pg_loss, 1.5, 1e-6);
  EXPECT_NEAR(up_bad.dlogprobs_T[1], 1.5, 1e-6);
  EXPECT_EQ(up_bad.sums.pg_clipfrac, 0.0);
  const PolicyLossResult down_bad = LossOf({.new_logprob = -1 + down, .advantage = -1}, config);
  EXPECT_NEAR(down_bad.sums.pg_loss, 0.8, 1e-6);
  EXPECT_EQ(down_bad.dlogprobs_T[1], 0.0f);
  const PolicyLossResult down_good = LossOf({.new_logprob = -1 + down, .advantage = 1}, config);
  EXPECT_NEAR(down_good.sums.pg_loss, -0.5, 1e-6);
  EXPECT_NEAR(down_good.dlogprobs_T[1], -0.5, 1e-6);
}

TEST(PolicyLoss, DualClipBoundsTheLossOfNegativeAdvantagesOnly) {
  PolicyLossConfig config;
  config.clip_eps_c = 3.0;
  const float large = std::log(8.0f);
  const PolicyLossResult bad =
      LossOf({.new_logprob = -4 + large, .old_logprob = -4, .advantage = -2}, config);
  EXPECT_NEAR(bad.sums.pg_loss, 6.0, 1e-6);
  EXPECT_EQ(bad.dlogprobs_T[1], 0.0f);
  config.clip_eps_c.reset();
  const PolicyLossResult unbounded =
      LossOf({.new_logprob = -4 + large, .old_logprob = -4, .advantage = -2}, config);
  EXPECT_NEAR(unbounded.sums.pg_loss, 16.0, 1e-5);
}

TEST(PolicyLoss, WeighsByTheTruncatedImportanceOfTheRollout) {
  PolicyLossConfig config;
  config.tis = TisOptions{.clip = 2.0, .clip_low = 0.5};
  const PolicyLossResult high = LossOf({.rollout_logprob = -1 - std::log(4.0f)}, config);
  EXPECT_NEAR(high.sums.tis, 4.0, 1e-5);
  EXPECT_EQ(high.sums.tis_clipfrac, 1.0);
  EXPECT_NEAR(high.sums.pg_loss, -2.0, 1e-6);
  EXPECT_NEAR(high.dlogprobs_T[1], -2.0, 1e-6);
  const PolicyLossResult low = LossOf({.rollout_logprob = -1 + std::log(4.0f)}, config);
  EXPECT_NEAR(low.sums.pg_loss, -0.5, 1e-6);
  const PolicyLossResult inside = LossOf({.rollout_logprob = -1 - std::log(1.5f)}, config);
  EXPECT_EQ(inside.sums.tis_clipfrac, 0.0);
  EXPECT_NEAR(inside.sums.pg_loss, -1.5, 1e-6);
}

TEST(PolicyLoss, EstimatesTheKlDivergenceInFourWays) {
  auto kl = [](KlLossType type, float new_logprob) {
    PolicyLossConfig config;
    config.kl_loss = KlLossOptions{type, 1.0};
    const PolicyLossResult result =
        LossOf({.new_logprob = new_logprob, .old_logprob = new_logprob, .advantage = 0}, config);
    return std::pair(result.sums.kl_loss, static_cast<double>(result.dlogprobs_T[1]));
  };
  // ref is -1; d = -0.5.
  EXPECT_EQ(kl(KlLossType::kK1, -1.5f), std::pair(-0.5, 1.0));
  EXPECT_EQ(kl(KlLossType::kK2, -1.5f), std::pair(0.125, -0.5));
  EXPECT_NEAR(kl(KlLossType::kK3, -1.5f).first, 0.14872127070012815, 1e-15);
  EXPECT_NEAR(kl(KlLossType::kK3, -1.5f).second, 1 - std::exp(0.5), 1e-7);
  EXPECT_EQ(kl(KlLossType::kLowVarKl, -1.5f), kl(KlLossType::kK3, -1.5f));
  // d = -3: k3 is e^3 - 4 = 16.1, above the bound of low_var_kl.
  EXPECT_NEAR(kl(KlLossType::kK3, -4.0f).first, 16.085536923187668, 1e-12);
  EXPECT_EQ(kl(KlLossType::kLowVarKl, -4.0f), std::pair(10.0, 0.0));
}

TEST(PolicyLoss, MetricsDoNotDependOnTheCutIntoMicroBatches) {
  const TrainBatch both = TwoSamples();
  const PolicyLossResult whole = PolicyLoss(both, kNewLogprobs, kEntropy, EverythingOn());
  PolicyLossSums parts;
  std::vector<float> gradient;
  for (int64_t s = 0; s < 2; ++s) {
    const auto begin = static_cast<size_t>(both.cu_seqlens[static_cast<size_t>(s)]);
    const auto end = static_cast<size_t>(both.cu_seqlens[static_cast<size_t>(s) + 1]);
    auto cut = [&](const auto& from) {
      using Values = std::decay_t<decltype(from)>;
      return Values(from.begin() + static_cast<std::ptrdiff_t>(begin),
                    from.begin() + static_cast<std::ptrdiff_t>(end));
    };
    TrainBatch part;
    part.token_ids_T = cut(both.token_ids_T);
    part.positions_T = cut(both.positions_T);
    part.cu_seqlens = {0, static_cast<int64_t>(end - begin)};
    part.loss_mask_T = cut(both.loss_mask_T);
    part.advantages_T = cut(both.advantages_T);
    part.rollout_logprobs_T = cut(both.rollout_logprobs_T);
    part.old_logprobs_T = cut(both.old_logprobs_T);
    part.ref_logprobs_T = cut(both.ref_logprobs_T);
    part.loss_weights_S = {both.loss_weights_S[static_cast<size_t>(s)]};
    part.sample_ids_S = {both.sample_ids_S[static_cast<size_t>(s)]};
    const PolicyLossResult result =
        PolicyLoss(part, cut(kNewLogprobs), cut(kEntropy), EverythingOn());
    parts.Add(result.sums);
    gradient.insert(gradient.end(), result.dlogprobs_T.begin(), result.dlogprobs_T.end());
  }
  EXPECT_EQ(gradient, whole.dlogprobs_T);
  Json whole_row, parts_row;
  whole.sums.Finish().AppendTo(whole_row);
  parts.Finish().AppendTo(parts_row);
  ASSERT_EQ(whole_row.size(), 13u);
  for (const auto& item : whole_row.items()) {
    EXPECT_NEAR(item.value().get<double>(), parts_row[item.key()].get<double>(), 1e-14)
        << item.key();
  }
}

TEST(PolicyLoss, LogsOnlyWhatWasAskedFor) {
  Json row;
  PolicyLoss(TwoSamples(), kNewLogprobs, {}, {}).sums.Finish().AppendTo(row);
  EXPECT_TRUE(row.contains("train/pg_loss"));
  EXPECT_TRUE(row.contains("train/train_rollout_logprob_abs_diff"));
  for (const char* key : {"train/kl_loss", "train/tis", "train/tis_abs", "train/entropy_loss"}) {
    EXPECT_FALSE(row.contains(key)) << key;
  }
}

TEST(PolicyLoss, RefusesEveryArrayThatHoldsNoNumberAndNamesSampleAndToken) {
  const float bad_values[] = {std::numeric_limits<float>::quiet_NaN(),
                              -std::numeric_limits<float>::infinity()};
  for (const float bad : bad_values) {
    const std::pair<const char*, std::function<void(TrainBatch&)>> breakages[] = {
        {"old_logprobs", [&](TrainBatch& b) { b.old_logprobs_T[7] = bad; }},
        {"rollout_logprobs", [&](TrainBatch& b) { b.rollout_logprobs_T[7] = bad; }},
        {"ref_logprobs", [&](TrainBatch& b) { b.ref_logprobs_T[7] = bad; }},
        {"advantages", [&](TrainBatch& b) { b.advantages_T[7] = bad; }}};
    for (const auto& [name, breakage] : breakages) {
      TrainBatch batch = TwoSamples();
      breakage(batch);
      try {
        PolicyLoss(batch, kNewLogprobs, kEntropy, EverythingOn());
        FAIL() << name;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kData);
        const std::string message = error.what();
        EXPECT_NE(message.find("sample 11, token 2"), std::string::npos) << message;
        EXPECT_NE(message.find(name), std::string::npos) << message;
      }
    }
    std::vector<float> logprobs = kNewLogprobs;
    logprobs[4] = bad;
    EXPECT_THROW(PolicyLoss(TwoSamples(), logprobs, kEntropy, EverythingOn()), Error);
    std::vector<float> entropy = kEntropy;
    entropy[4] = bad;
    EXPECT_THROW(PolicyLoss(TwoSamples(), kNewLogprobs, entropy, EverythingOn()), Error);
  }
}

TEST(PolicyLoss, DoesNotReadTokensThatAreNotTrained) {
  TrainBatch batch = TwoSamples();
  const PolicyLossResult before = PolicyLoss(batch, kNewLogprobs, kEntropy, EverythingOn());
  std::vector<float> logprobs = kNewLogprobs;
  logprobs[1] = std::numeric_limits<float>::quiet_NaN();
  batch.ref_logprobs_T[5] = -std::numeric_limits<float>::infinity();
  const PolicyLossResult after = PolicyLoss(batch, logprobs, kEntropy, EverythingOn());
  EXPECT_EQ(before.dlogprobs_T, after.dlogprobs_T);
  EXPECT_EQ(before.sums.loss, after.sums.loss);
}

TEST(PolicyLossConfig, OutOfRangeNamesTheFlag) {
  auto message_of = [](const PolicyLossConfig& config) -> std::string {
    try {
      CheckPolicyLossConfig(config);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message_of(EverythingOn()), "");
  EXPECT_NE(message_of({.clip_eps_low = 1.5}).find("--eps-clip"), std::string::npos);
  EXPECT_NE(message_of({.clip_eps_high = -1}).find("--eps-clip-high"), std::string::npos);
  EXPECT_NE(message_of({.clip_eps_c = 0.5}).find("--eps-clip-c"), std::string::npos);
  EXPECT_NE(message_of({.tis = TisOptions{1, 2}}).find("--tis-clip"), std::string::npos);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NE(message_of({.entropy_coef = nan}).find("--entropy-coef"), std::string::npos);
}

TEST(PolicyLossConfig, KlLossTypesHaveTheFieldsNames) {
  EXPECT_EQ(ParseKlLossType("k1"), KlLossType::kK1);
  EXPECT_EQ(ParseKlLossType("k2"), KlLossType::kK2);
  EXPECT_EQ(ParseKlLossType("k3"), KlLossType::kK3);
  EXPECT_EQ(ParseKlLossType("low_var_kl"), KlLossType::kLowVarKl);
  EXPECT_THROW(ParseKlLossType("kl"), Error);
}

}  // namespace
}  // namespace quatrain
