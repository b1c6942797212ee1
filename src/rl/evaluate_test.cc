#include "rl/evaluate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "models/test_support.h"

namespace quatrain {
namespace {

// Rewards by label alone, so that the expected numbers are known whatever is sampled: "1" is always
// right, "0" never.
class LabelReward : public Reward {
 public:
  RewardResult Score(const RewardInput& input) const override {
    const bool is_right = input.label == "1";
    return {is_right ? 1.0 : 0.0, is_right ? RewardVerdict::kCorrect : RewardVerdict::kWrong, ""};
  }
};

class Evaluation : public FolderTest {
 protected:
  Evaluation()
      : directory_(std::string(QT_SOURCE_DIR) + "/examples/models/tiny-llama"),
        checkpoint_(directory_),
        weights_(LoadWeights(checkpoint_, at::kBFloat16)),
        decoder_(checkpoint_.config(), weights_),
        tokenizer_(Tokenizer::Load(directory_)) {}

  static EvalSet SetOf(const std::vector<std::string>& labels) {
    EvalSet set{"set", {}};
    for (const std::string& label : labels) {
      Prompt prompt;
      prompt.id = static_cast<int64_t>(set.prompts.size());
      prompt.messages = fmt::format("What is {} + 1?", set.prompts.size());
      prompt.label = label;
      set.prompts.push_back(std::move(prompt));
    }
    return set;
  }
  static RolloutOptions Options(int64_t n) {
    RolloutOptions options;
    options.sampling.temperature = 1.0f;
    options.sampling.max_new_tokens = 3;
    options.n_samples_per_prompt = n;
    return options;
  }
  EvalResult Run(const EvalSet& set, const RolloutOptions& options, int num_threads = 1) const {
    ThreadPool pool(num_threads);
    Engine engine({pool}, decoder_, {});
    return Evaluate(engine, {tokenizer_, nullptr}, LabelReward(), set, options, nullptr);
  }

  std::string directory_;
  Checkpoint checkpoint_;
  ModelWeights weights_;
  Decoder decoder_;
  Tokenizer tokenizer_;
};

TEST_F(Evaluation, AccuracyAndItsErrorAreOverPrompts) {
  const EvalResult result = Run(SetOf({"1", "0", "1", "1"}), Options(2));
  EXPECT_EQ(result.num_prompts, 4);
  EXPECT_EQ(result.num_samples, 8);
  EXPECT_DOUBLE_EQ(result.accuracy, 0.75);
  // Variance of {1, 0, 1, 1} is 0.25; two samples of one prompt are no two prompts.
  EXPECT_DOUBLE_EQ(result.standard_error, std::sqrt(0.25 / 4.0));
  EXPECT_DOUBLE_EQ(result.truncated_ratio, 1.0) << "no answer ends within three tokens";
  EXPECT_DOUBLE_EQ(result.response_len_mean, 3.0);
}

TEST(PassAtK, IsTheShareOfDrawsThatHoldARightSample) {
  EXPECT_DOUBLE_EQ(PassAtK(4, 1, 1), 0.25);
  EXPECT_DOUBLE_EQ(PassAtK(4, 1, 2), 0.5);  // 3 of the 6 pairs hold it
  EXPECT_DOUBLE_EQ(PassAtK(5, 2, 2), 0.7);  // 1 - 3 / 10
  EXPECT_DOUBLE_EQ(PassAtK(4, 1, 4), 1.0);
  EXPECT_DOUBLE_EQ(PassAtK(4, 0, 4), 0.0);
  EXPECT_DOUBLE_EQ(PassAtK(4, 4, 1), 1.0);
}

TEST_F(Evaluation, PassRatesGoUpToTheSamplesOfAPrompt) {
  const EvalResult result = Run(SetOf({"1", "0"}), Options(3));
  ASSERT_EQ(result.pass_at_k.size(), 3u);
  const int64_t expected[] = {1, 2, 3};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(result.pass_at_k[i].first, expected[i]);
    EXPECT_DOUBLE_EQ(result.pass_at_k[i].second, 0.5);
  }
}

TEST_F(Evaluation, OnePromptHasNoError) {
  EXPECT_EQ(Run(SetOf({"1"}), Options(1)).standard_error, 0.0);
  EXPECT_TRUE(Run(SetOf({"1"}), Options(1)).pass_at_k.empty());
}

TEST_F(Evaluation, SamplesDependOnSeedAndStreamAlone) {
  ThreadPool pool(2);
  const RolloutText text{tokenizer_, nullptr};
  const LabelReward reward;
  const auto sample = [&](uint64_t seed, int64_t stream, ThreadPool& threads) {
    Engine engine({threads}, decoder_, {});
    RolloutOptions options = Options(3);
    options.seed = seed;
    options.sampling.temperature = 8.0f;  // the model is sure of its words
    std::vector<std::vector<int32_t>> ids;
    for (const Sample& one :
         GenerateSamples(engine, text, reward, SetOf({"1", "0"}).prompts, options, stream, nullptr))
      ids.push_back(one.completion.token_ids);
    return ids;
  };
  ThreadPool one(1);
  const auto ids = sample(7, 0, pool);
  ASSERT_EQ(ids.size(), 6u);
  EXPECT_EQ(ids, sample(7, 0, one));
  EXPECT_NE(ids, sample(8, 0, one));
  EXPECT_NE(ids, sample(7, 1, one));
  EXPECT_NE(ids[0], ids[1]) << "samples of a group differ";
}

TEST_F(Evaluation, ANumberThatIsNotFiniteNamesItsSampleAndBringsAll) {
  EvalSet set = SetOf({"1", "0", "1"});
  const std::vector<int32_t> ids = tokenizer_.Encode("What is 1 + 1?");
  const std::vector<int32_t> first = tokenizer_.Encode("What is 0 + 1?");
  // A token of the second prompt alone; it has no row in the output, which stays finite.
  set.prompts[1].messages = "What is 1 * 1?";
  int32_t token = -1;
  for (const int32_t id : tokenizer_.Encode("What is 1 * 1?")) {
    if (std::count(ids.begin(), ids.end(), id) + std::count(first.begin(), first.end(), id) == 0)
      token = id;
  }
  ASSERT_GE(token, 0);
  ModelConfig config = checkpoint_.config();
  config.tie_word_embeddings = false;
  const auto embedding = static_cast<size_t>(weights_.Find("model.embed_tokens.weight"));
  std::vector<Weight> untied;
  for (size_t i = 0; i < weights_.size(); ++i) untied.push_back(weights_[i]);
  if (weights_.Find("lm_head.weight") < 0) {
    untied.push_back(weights_[embedding]);
    untied.back().spec.name = "lm_head.weight";
  }
  untied[embedding].dense = weights_[embedding].dense.clone();
  untied[embedding].dense[token].fill_(std::numeric_limits<float>::quiet_NaN());
  const ModelWeights poisoned(std::move(untied));
  const Decoder decoder(config, poisoned);
  ThreadPool pool(2);
  Engine engine({pool}, decoder, {});
  try {
    Evaluate(engine, {tokenizer_, nullptr}, LabelReward(), set, Options(2), nullptr);
    FAIL() << "the model has a NaN";
  } catch (const FailedGeneration& failure) {
    EXPECT_EQ(failure.code(), ErrorCode::kData);
    EXPECT_TRUE(Contains(failure.what(), "row 2 of the prompts, sample 0, token 0 of the response"))
        << failure.what();
    EXPECT_TRUE(Contains(failure.what(), "found nan")) << failure.what();
    ASSERT_EQ(failure.samples().size(), 6u);
    EXPECT_EQ(failure.samples()[5].prompt.id, 2);
    EXPECT_EQ(failure.samples()[2].completion.finish_reason, FinishReason::kAbort);
  }
}

TEST_F(Evaluation, AListOfMessagesNeedsTheTemplate) {
  Prompt prompt;
  prompt.messages = Json::array({{{"role", "user"}, {"content", "x"}}});
  EXPECT_TRUE(Contains(MessageOf([&] {
                         PromptIds({tokenizer_, nullptr}, prompt, {});
                       }),
                       "--apply-chat-template"));
  prompt.messages = "x";
  EXPECT_EQ(PromptIds({tokenizer_, nullptr}, prompt, {}), tokenizer_.Encode("x"));
  const ChatTemplate chat_template = ChatTemplate::Load(directory_);
  RolloutOptions options;
  options.apply_chat_template = true;
  EXPECT_GT(PromptIds({tokenizer_, &chat_template}, prompt, options).size(), 1u);
}

TEST_F(Evaluation, SetsComeAsOnePathOrInPairs) {
  const std::string path = Put("a.jsonl", "{\"prompt\": \"x\", \"label\": \"1\"}\n").string();
  const PromptDatasetOptions data{.input_key = "prompt", .label_key = "label"};
  EXPECT_EQ(ReadEvalSets({path}, data)[0].name, "a");
  const auto sets = ReadEvalSets({"one", path, "two", path}, data);
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_EQ(sets[1].name, "two");
  EXPECT_TRUE(ReadEvalSets({}, data).empty());
  EXPECT_TRUE(Contains(MessageOf([&] { ReadEvalSets({"one", path, "two"}, data); }), "pair"));
}

}  // namespace
}  // namespace quatrain
