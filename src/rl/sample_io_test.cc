#include "rl/sample_io.h"

#include <gtest/gtest.h>

#include "base/file.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

Sample MakeSample(int64_t id) {
  Sample sample;
  sample.id = id;
  sample.group_id = id / 2;
  sample.prompt = {.id = 7,
                   .messages = "What is 2 + 2?",
                   .label = "4",
                   .metadata = {{"level", 3}},
                   .tools = nullptr};
  sample.prompt_ids = {5, 6};
  sample.draw_key = 0xFFFFFFFFFFFFFFF0u + static_cast<uint64_t>(id);
  Completion& completion = sample.completion;
  completion.token_ids = {100, 101, 102};
  completion.rollout_logprobs = {-0.1f, -1e-30f, -7.25f};
  completion.routed_experts = {4, 1, 2, 1, {1, 2, 3, 4, 5, 6, 7, 255}};
  completion.finish_reason = FinishReason::kLength;
  completion.policy_version_min = 3;
  completion.policy_version_max = 4;
  completion.num_offpolicy_tokens = 1;
  sample.reward = {0.5, RewardVerdict::kWrong, "five \xC3\xA9"};
  return sample;
}

class SampleIo : public testing::Test {
 protected:
  SampleIo()
      : path_(fs::path(testing::TempDir()) / "quatrain_sample_io" / "rollout.cbor"),
        tokenizer_(Tokenizer::Load(std::string(QT_SOURCE_DIR) + "/examples/models/tiny-llama")) {}
  ~SampleIo() override { fs::remove_all(path_.parent_path()); }

  fs::path path_;
  Tokenizer tokenizer_;
};

TEST_F(SampleIo, ADumpHoldsAllThatTrainingReads) {
  const std::vector<Sample> samples = {MakeSample(0), MakeSample(1), MakeSample(2)};
  SaveRolloutData(path_, 12, samples);
  const std::vector<Sample> loaded = LoadRolloutData(path_, {tokenizer_});
  ASSERT_EQ(loaded.size(), 3u);
  for (size_t i = 0; i < loaded.size(); ++i) {
    const Sample &a = samples[i], &b = loaded[i];
    EXPECT_EQ(a.id, b.id);
    EXPECT_EQ(a.group_id, b.group_id);
    EXPECT_EQ(a.prompt.messages, b.prompt.messages);
    EXPECT_EQ(a.prompt.label, b.prompt.label);
    EXPECT_EQ(a.prompt.metadata, b.prompt.metadata);
    EXPECT_EQ(a.prompt_ids, b.prompt_ids);
    EXPECT_EQ(a.draw_key, b.draw_key);
    EXPECT_EQ(a.completion.token_ids, b.completion.token_ids);
    EXPECT_EQ(a.completion.rollout_logprobs, b.completion.rollout_logprobs);
    EXPECT_EQ(a.completion.routed_experts.ids_TLK, b.completion.routed_experts.ids_TLK);
    EXPECT_EQ(a.completion.routed_experts.num_tokens, b.completion.routed_experts.num_tokens);
    EXPECT_EQ(a.completion.num_offpolicy_tokens, b.completion.num_offpolicy_tokens);
    EXPECT_EQ(a.completion.finish_reason, b.completion.finish_reason);
    EXPECT_EQ(a.completion.policy_version_max, b.completion.policy_version_max);
    EXPECT_EQ(a.reward.reward, b.reward.reward);
    EXPECT_EQ(a.reward.verdict, b.reward.verdict);
    EXPECT_EQ(a.reward.answer, b.reward.answer);
    EXPECT_FALSE(b.response_text.empty());
  }
}

TEST_F(SampleIo, WhatIsNoDumpIsRefusedByName) {
  SaveRolloutData(path_, 1, std::vector<Sample>{MakeSample(0)});
  const std::string good = ReadFile(path_);
  for (const std::string& content :
       {std::string("text"), std::string("\xA0"), good.substr(0, good.size() / 2), std::string()}) {
    WriteFileAtomic(path_, content);
    try {
      LoadRolloutData(path_, {tokenizer_});
      ADD_FAILURE() << content.size();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("rollout.cbor"), std::string::npos);
    }
  }
}

TEST(WithRolloutId, StandsInForTheMark) {
  EXPECT_EQ(WithRolloutId("runs/{rollout_id}.cbor", 12), "runs/12.cbor");
  EXPECT_EQ(WithRolloutId("runs/a.cbor", 12), "runs/a.cbor");
}

}  // namespace
}  // namespace quatrain
