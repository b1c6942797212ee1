#include "rl/batcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace quatrain {
namespace {

Sample MakeSample(int64_t id, size_t prompt_length, size_t response_length) {
  Sample sample;
  sample.id = id;
  sample.advantage = static_cast<float>(id) + 0.5f;
  for (size_t i = 0; i < prompt_length; ++i) {
    sample.prompt_ids.push_back(static_cast<int32_t>(100 * id + static_cast<int64_t>(i)));
  }
  for (size_t i = 0; i < response_length; ++i) {
    sample.completion.token_ids.push_back(
        static_cast<int32_t>(100 * id + 50 + static_cast<int64_t>(i)));
    sample.completion.rollout_logprobs.push_back(-0.25f * static_cast<float>(i + 1));
  }
  return sample;
}

void RecordRouting(Sample& sample) {
  RoutingRecord& record = sample.completion.routed_experts;
  record.num_tokens = sample.num_tokens() - 1;
  record.num_moe_layers = 2;
  record.num_experts_per_tok = 1;
  for (int64_t i = 0; i < record.num_tokens * 2; ++i) {
    record.ids_TLK.push_back(static_cast<uint8_t>(sample.id * 10 + i));
  }
}

TEST(PackByTokens, PutsTheLongestFirstIntoTheFirstBinWithRoom) {
  const std::vector<int64_t> lengths = {3, 7, 5, 5, 2, 8};
  const std::vector<std::vector<int64_t>> bins = PackByTokens(lengths, 10);
  EXPECT_EQ(bins, (std::vector<std::vector<int64_t>>{{4, 5}, {0, 1}, {2, 3}}));
}

TEST(PackByTokens, GivesASampleAboveTheBudgetABinOfItsOwn) {
  const std::vector<int64_t> lengths = {4, 25, 6};
  const std::vector<std::vector<int64_t>> bins = PackByTokens(lengths, 10);
  EXPECT_EQ(bins, (std::vector<std::vector<int64_t>>{{1}, {0, 2}}));
}

TEST(PackByTokens, KeepsEverySampleOnceAndTheBudget) {
  for (uint64_t draw = 0; draw < 50; ++draw) {
    std::vector<int64_t> lengths;
    for (uint64_t i = 0; i < 40; ++i)
      lengths.push_back(static_cast<int64_t>(HashBits(1, draw, i) % 100 + 1));
    std::vector<int64_t> seen;
    for (const std::vector<int64_t>& bin : PackByTokens(lengths, 128)) {
      int64_t sum = 0;
      for (const int64_t i : bin) sum += lengths[static_cast<size_t>(i)];
      EXPECT_LE(sum, 128);
      EXPECT_TRUE(std::is_sorted(bin.begin(), bin.end()));
      seen.insert(seen.end(), bin.begin(), bin.end());
    }
    std::sort(seen.begin(), seen.end());
    std::vector<int64_t> all(lengths.size());
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(seen, all);
  }
}

int64_t Load(const std::vector<int64_t>& bin, const std::vector<int64_t>& lengths) {
  int64_t sum = 0;
  for (const int64_t i : bin) sum += lengths[static_cast<size_t>(i)];
  return sum;
}

TEST(BalanceByTokens, FindsTheEvenCutOfTheTextbook) {
  // Karmarkar and Karp's example for two sets: differences 2 and 6 of {4, 5, 6, 7, 8}: loads
  // 14, 16.
  const std::vector<int64_t> lengths = {4, 5, 6, 7, 8};
  const auto bins = BalanceByTokens(lengths, 20);
  ASSERT_EQ(bins.size(), 2u);
  EXPECT_EQ(std::max(Load(bins[0], lengths), Load(bins[1], lengths)), 16);
}

TEST(BalanceByTokens, KeepsTheBudgetAndTheCountAndIsNoLessEvenThanPacking) {
  for (uint64_t draw = 0; draw < 50; ++draw) {
    std::vector<int64_t> lengths;
    for (uint64_t i = 0; i < 40; ++i)
      lengths.push_back(static_cast<int64_t>(HashBits(2, draw, i) % 60 + 1));
    const auto packed = PackByTokens(lengths, 128), balanced = BalanceByTokens(lengths, 128);
    EXPECT_EQ(balanced.size(), packed.size());
    const auto spread = [&](const std::vector<std::vector<int64_t>>& bins) {
      int64_t least = 128, most = 0;
      for (const auto& bin : bins) {
        least = std::min(least, Load(bin, lengths));
        most = std::max(most, Load(bin, lengths));
      }
      EXPECT_LE(most, 128);
      return most - least;
    };
    EXPECT_LE(spread(balanced), spread(packed));
    std::vector<int64_t> seen;
    for (const auto& bin : balanced) {
      EXPECT_TRUE(std::is_sorted(bin.begin(), bin.end()));
      seen.insert(seen.end(), bin.begin(), bin.end());
    }
    std::sort(seen.begin(), seen.end());
    std::vector<int64_t> all(lengths.size());
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(seen, all);
  }
}

TEST(BalanceByTokens, LeavesALongSampleAlone) {
  const std::vector<int64_t> lengths = {4, 25, 6};
  EXPECT_EQ(BalanceByTokens(lengths, 10), (std::vector<std::vector<int64_t>>{{0, 2}, {1}}));
}

TEST(MakeTrainBatch, AlignsEveryArrayWithThePredictedToken) {
  Sample a = MakeSample(1, 2, 3);
  Sample b = MakeSample(2, 1, 1);
  RecordRouting(a);
  RecordRouting(b);
  const Sample* samples[] = {&a, &b};
  const double weights[] = {0.25, 0.5};
  const TrainBatch batch = MakeTrainBatch(samples, weights, RoutingReplay::kOn);
  EXPECT_EQ(batch.token_ids_T, (std::vector<int32_t>{100, 101, 150, 151, 152, 200, 250}));
  EXPECT_EQ(batch.positions_T, (std::vector<int32_t>{0, 1, 2, 3, 4, 0, 1}));
  EXPECT_EQ(batch.cu_seqlens, (std::vector<int64_t>{0, 5, 7}));
  EXPECT_EQ(batch.loss_mask_T, (std::vector<uint8_t>{0, 0, 1, 1, 1, 0, 1}));
  EXPECT_EQ(batch.advantages_T, (std::vector<float>{0, 0, 1.5f, 1.5f, 1.5f, 0, 2.5f}));
  EXPECT_EQ(batch.rollout_logprobs_T, (std::vector<float>{0, 0, -0.25f, -0.5f, -0.75f, 0, -0.25f}));
  EXPECT_EQ(batch.loss_weights_S, (std::vector<double>{0.25, 0.5}));
  EXPECT_EQ(batch.sample_ids_S, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(batch.routed_experts.num_tokens, 5);
  EXPECT_EQ(batch.routed_experts.ids_TLK,
            (std::vector<uint8_t>{10, 11, 12, 13, 14, 15, 16, 17, 20, 21}));
  EXPECT_TRUE(MakeTrainBatch(samples, weights, RoutingReplay::kOff).routed_experts.empty());
}

TEST(MakeTrainBatch, RefusesARoutingRecordOfAnotherLength) {
  Sample sample = MakeSample(1, 2, 3);
  RecordRouting(sample);
  sample.completion.token_ids.push_back(1);
  sample.completion.rollout_logprobs.push_back(-1);
  const Sample* samples[] = {&sample};
  const double weights[] = {1.0};
  EXPECT_THROW(MakeTrainBatch(samples, weights, RoutingReplay::kOn), Error);
  sample.completion.routed_experts.Clear();
  try {
    MakeTrainBatch(samples, weights, RoutingReplay::kOn);
    ADD_FAILURE() << "a missing record is an error";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("sample 1"), std::string::npos) << message;
    EXPECT_NE(message.find("the experts of 5 tokens"), std::string::npos) << message;
  }
  EXPECT_TRUE(MakeTrainBatch(samples, weights, RoutingReplay::kOff).routed_experts.empty());
}

std::vector<Sample> FourSamples() {
  return {MakeSample(0, 2, 2), MakeSample(1, 2, 4), MakeSample(2, 3, 6), MakeSample(3, 1, 8)};
}

TEST(MakeTrainSteps, CutsARolloutIntoOptimizerStepsInOrder) {
  const auto steps =
      MakeTrainSteps(FourSamples(), {.global_batch_size = 2, .max_tokens_per_gpu = 100});
  ASSERT_EQ(steps.size(), 2u);
  ASSERT_EQ(steps[0].size(), 1u);
  EXPECT_EQ(steps[0][0].sample_ids_S, (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(steps[1][0].sample_ids_S, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(steps[0][0].loss_weights_S, (std::vector<double>{1.0 / 4, 1.0 / 8}));
}

TEST(MakeTrainSteps, WeighsSamplesTheSameHoweverTheStepIsCut) {
  for (const LossReduction reduction : {LossReduction::kSampleMean, LossReduction::kTokenMean}) {
    std::vector<std::vector<double>> weights_of_cut;
    for (const int64_t budget : {9, 18, 1000}) {
      std::vector<double> weights(4, 0.0);
      const auto steps = MakeTrainSteps(
          FourSamples(),
          {.global_batch_size = 4, .max_tokens_per_gpu = budget, .reduction = reduction});
      ASSERT_EQ(steps.size(), 1u);
      for (const TrainBatch& batch : steps[0]) {
        for (size_t s = 0; s < batch.sample_ids_S.size(); ++s) {
          weights[static_cast<size_t>(batch.sample_ids_S[s])] = batch.loss_weights_S[s];
        }
      }
      weights_of_cut.push_back(weights);
    }
    EXPECT_EQ(weights_of_cut[0], weights_of_cut[1]);
    EXPECT_EQ(weights_of_cut[0], weights_of_cut[2]);
    const std::vector<double> expected =
        reduction == LossReduction::kSampleMean
            ? std::vector<double>{1.0 / 8, 1.0 / 16, 1.0 / 24, 1.0 / 32}
            : std::vector<double>(4, 1.0 / 20);
    EXPECT_EQ(weights_of_cut[0], expected);
  }
}

TEST(MakeTrainSteps, ByCountTakesSamplesInTheirOrder) {
  const auto steps = MakeTrainSteps(
      FourSamples(),
      {.global_batch_size = 4, .micro_batching = MicroBatching::kByCount, .micro_batch_size = 3});
  ASSERT_EQ(steps.size(), 1u);
  ASSERT_EQ(steps[0].size(), 2u);
  EXPECT_EQ(steps[0][0].sample_ids_S, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(steps[0][1].sample_ids_S, (std::vector<int64_t>{3}));
  EXPECT_THROW(MakeTrainSteps(FourSamples(), {.global_batch_size = 4,
                                              .micro_batching = MicroBatching::kByCount,
                                              .micro_batch_size = 0}),
               Error);
}

TEST(MakeTrainSteps, MaskedTokensNeitherTrainNorCount) {
  std::vector<Sample> samples = FourSamples();
  samples[1].num_masked_tokens = 3;
  samples[2].num_masked_tokens = 6;  // all
  const auto steps = MakeTrainSteps(
      samples,
      {.global_batch_size = 4, .micro_batching = MicroBatching::kByCount, .micro_batch_size = 4});
  ASSERT_EQ(steps[0].size(), 1u);
  const TrainBatch& batch = steps[0][0];
  EXPECT_EQ(batch.sample_ids_S, (std::vector<int64_t>{0, 1, 3}));
  EXPECT_EQ(batch.loss_weights_S, (std::vector<double>{1.0 / 8, 1.0 / 4, 1.0 / 32}));
  const std::vector<uint8_t> second(batch.loss_mask_T.begin() + 4, batch.loss_mask_T.begin() + 10);
  EXPECT_EQ(second, (std::vector<uint8_t>{0, 0, 0, 0, 0, 1}));
}

TEST(CopyTokens, FollowsSamplesBetweenCuts) {
  auto from = MakeTrainSteps(FourSamples(), {.global_batch_size = 4, .max_tokens_per_gpu = 9});
  auto to = MakeTrainSteps(FourSamples(), {.global_batch_size = 2, .max_tokens_per_gpu = 100});
  for (auto& step : from) {
    for (TrainBatch& batch : step) {
      batch.old_logprobs_T.assign(batch.token_ids_T.begin(), batch.token_ids_T.end());
    }
  }
  CopyTokens(from, to, &TrainBatch::old_logprobs_T);
  for (const auto& step : to) {
    for (const TrainBatch& batch : step) {
      EXPECT_EQ(batch.old_logprobs_T,
                std::vector<float>(batch.token_ids_T.begin(), batch.token_ids_T.end()));
    }
  }
}

TEST(MakeTrainSteps, RefusesARolloutThatIsNoWholeNumberOfSteps) {
  try {
    MakeTrainSteps(FourSamples(), {.global_batch_size = 3, .max_tokens_per_gpu = 100});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("--global-batch-size"), std::string::npos);
  }
  EXPECT_THROW(MakeTrainSteps(FourSamples(), {.global_batch_size = 4, .max_tokens_per_gpu = 0}),
               Error);
  EXPECT_THROW(MakeTrainSteps(FourSamples(), {.global_batch_size = 0, .max_tokens_per_gpu = 9}),
               Error);
}

}  // namespace
}  // namespace quatrain
