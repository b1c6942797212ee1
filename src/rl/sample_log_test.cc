#include "rl/sample_log.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

Tokenizer ExampleTokenizer() {
  return Tokenizer::Load(QT_SOURCE_DIR "/examples/models/tiny-qwen3-moe");
}

std::string Joined(const std::vector<std::string>& texts) {
  std::string joined;
  for (const std::string& text : texts) joined += text;
  return joined;
}

TEST(TokenTexts, JoinedAreTheTextAndEachIsValid) {
  const Tokenizer tokenizer = ExampleTokenizer();
  // The example tokenizer has no tokens for these characters: their bytes are spread over several.
  const std::string text = "12+30 = \xE2\x82\xAC \xF0\x9F\x98\x80.";
  const std::vector<int32_t> ids = tokenizer.Encode(text);
  const std::vector<std::string> texts = TokenTexts(tokenizer, ids);
  ASSERT_EQ(texts.size(), ids.size());
  EXPECT_EQ(Joined(texts), text);
  for (const std::string& piece : texts) EXPECT_EQ(piece.find("\xEF\xBF\xBD"), std::string::npos);
}

TEST(TokenTexts, ACutCharacterAtTheEndShows) {
  const Tokenizer tokenizer = ExampleTokenizer();
  std::vector<int32_t> ids = tokenizer.Encode("\xF0\x9F\x98\x80");
  ASSERT_GT(ids.size(), 1u);
  ids.pop_back();
  EXPECT_EQ(Joined(TokenTexts(tokenizer, ids)), tokenizer.Decode(ids));
}

// Two samples in one batch: 2 prompt tokens and 3 of response, then 1 and 2.
std::vector<std::vector<TrainBatch>> Steps() {
  TrainBatch batch;
  batch.cu_seqlens = {0, 5, 8};
  batch.sample_ids_S = {4, 7};
  batch.old_logprobs_T = {0, 0, -1, -2, -3, 0, -4, -5};
  batch.advantages_T = {0, 0, 1, 1, 1, 0, 2, 3};
  return {{TrainBatch{}}, {batch}};
}

TEST(TrainedTokensOf, FindsTheResponseOfASample) {
  const TrainedTokens trained = TrainedTokensOf(Steps(), 7, 1);
  EXPECT_EQ(trained.old_logprobs, (std::vector<float>{-4, -5}));
  EXPECT_EQ(trained.advantages, (std::vector<float>{2, 3}));
  EXPECT_TRUE(TrainedTokensOf(Steps(), 5, 1).old_logprobs.empty());
}

Sample MakeSample() {
  Sample sample;
  sample.completion.token_ids = {1, 2, 3};
  sample.completion.rollout_logprobs = {-1, -2.0000002384185791015625f, -3.5f};
  sample.advantage = 1;
  return sample;
}

TEST(SampleRow, SaysTheDifferenceExactly) {
  const Sample sample = MakeSample();
  const Json row = SampleRow(9, sample, ExampleTokenizer(), TrainedTokensOf(Steps(), 4, 2));
  EXPECT_EQ(row["rollout"], 9);
  EXPECT_EQ(row["tokens"].size(), 3u);
  EXPECT_EQ(row["rollout_logprobs"], Json::parse("[-1.0, -2.0, -3.5]"));
  EXPECT_EQ(row["logprob_differences"], Json::parse("[0.0, 2.384185791015625e-07, 0.5]"));
  EXPECT_FALSE(row.contains("advantages"));  // the same for every token
  EXPECT_EQ(row["truncated"], false);
}

TEST(SampleRow, LeavesOutWhatTheTrainerDidNotScoreAndSaysWhatIsMasked) {
  Sample sample = MakeSample();
  EXPECT_FALSE(SampleRow(1, sample, ExampleTokenizer(), {}).contains("logprob_differences"));
  sample.num_masked_tokens = 1;
  const Json row = SampleRow(1, sample, ExampleTokenizer(), {{0, -2, -3}, {0, 2, 3}});
  EXPECT_EQ(row["logprob_differences"][0], 0.0);
  EXPECT_EQ(row["logprob_differences"][2], 0.5);
  EXPECT_EQ(row["num_masked_tokens"], 1);
  EXPECT_EQ(row["advantages"], Json::parse("[0.0, 2.0, 3.0]"));
}

}  // namespace
}  // namespace quatrain
