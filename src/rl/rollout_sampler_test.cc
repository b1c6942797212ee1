#include "rl/rollout_sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "models/loader.h"

namespace quatrain {
namespace {

// 1 for an odd number of characters.
class LengthReward : public Reward {
 public:
  RewardResult Score(const RewardInput& input) const override {
    return {static_cast<double>(input.response.size() % 2), RewardVerdict::kWrong, ""};
  }
};

class ConstantReward : public Reward {
 public:
  RewardResult Score(const RewardInput&) const override { return {1, RewardVerdict::kCorrect, ""}; }
};

class RolloutSamplerTest : public testing::Test {
 protected:
  RolloutSamplerTest()
      : folder_(std::string(QT_SOURCE_DIR) + "/examples/models/tiny-qwen3-moe"),
        checkpoint_(folder_),
        weights_(LoadWeights(checkpoint_, at::kBFloat16)),
        decoder_(checkpoint_.config(), weights_),
        tokenizer_(Tokenizer::Load(folder_)) {
    options_.rollout.n_samples_per_prompt = 3;
    options_.rollout.sampling.max_new_tokens = 24;
    options_.rollout.sampling.temperature = 1.2f;
    // Common tokens, so that lengths differ.
    for (int32_t id = 0; id < 200; ++id) options_.rollout.sampling.stop_token_ids.push_back(id * 7);
    options_.rollout.record_routing = true;
    options_.rollout_batch_size = 4;
    options_.over_sampling_batch_size = 4;
  }

  static PromptDataset Data() {
    PromptDatasetOptions options;
    std::vector<Json> rows;
    for (int i = 0; i < 9; ++i) rows.push_back({{"input", fmt::format("What is {} + 2?", i)}});
    options.order = PromptOrder::kShuffled;
    return PromptDataset(PromptsOfRows(rows, "rows", options), options);
  }

  struct Machine {
    Machine(RolloutSamplerTest& test, int num_threads, const Reward& reward)
        : Machine(test, num_threads, reward, test.decoder_) {}
    Machine(RolloutSamplerTest& test, int num_threads, const Reward& reward, const Decoder& decoder)
        : pool(num_threads),
          engine({pool}, decoder, {}),
          dataset(Data()),
          sampler(engine, {test.tokenizer_}, reward, test.options_) {}
    std::vector<Sample> Next(int64_t rollout) {
      std::vector<Sample> samples = sampler.Next(dataset, rollout, nullptr);
      engine.UpdateWeights(rollout + 1);
      return samples;
    }
    ThreadPool pool;
    Engine engine;
    PromptDataset dataset;
    RolloutSampler sampler;
  };

  // The model with an LM head of its own, and NaN where `token` is read.
  ModelWeights NanFor(int32_t token) const {
    const auto embedding = static_cast<size_t>(weights_.Find("model.embed_tokens.weight"));
    std::vector<Weight> untied;
    for (size_t i = 0; i < weights_.size(); ++i) untied.push_back(weights_[i]);
    untied.push_back(weights_[embedding]);
    untied.back().spec.name = "lm_head.weight";
    untied[embedding].dense = weights_[embedding].dense.clone();
    untied[embedding].dense[token].fill_(std::numeric_limits<float>::quiet_NaN());
    return ModelWeights(std::move(untied));
  }

  static void ExpectEqual(const std::vector<Sample>& a, const std::vector<Sample>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].prompt.id, b[i].prompt.id) << i;
      EXPECT_EQ(a[i].completion.token_ids, b[i].completion.token_ids) << i;
      EXPECT_EQ(a[i].completion.rollout_logprobs, b[i].completion.rollout_logprobs) << i;
      EXPECT_EQ(a[i].completion.routed_experts.ids_TLK, b[i].completion.routed_experts.ids_TLK);
      EXPECT_EQ(a[i].completion.num_offpolicy_tokens, b[i].completion.num_offpolicy_tokens) << i;
      EXPECT_EQ(a[i].reward.reward, b[i].reward.reward) << i;
      EXPECT_EQ(a[i].response_text, b[i].response_text) << i;
    }
  }

  std::string folder_;
  Checkpoint checkpoint_;
  ModelWeights weights_;
  Decoder decoder_;
  Tokenizer tokenizer_;
  SamplerOptions options_;
  LengthReward length_reward_;
};

TEST_F(RolloutSamplerTest, WithoutOverSamplingItIsGenerateSamples) {
  Machine machine(*this, 2, length_reward_);
  PromptDataset data = Data();
  for (int64_t rollout = 0; rollout < 3; ++rollout) {
    const std::vector<Sample> plain =
        GenerateSamples(machine.engine, {tokenizer_}, length_reward_, data.Next(4),
                        options_.rollout, rollout, nullptr);
    ExpectEqual(machine.Next(rollout), plain);
    EXPECT_EQ(machine.dataset.State(), data.State());
  }
}

TEST_F(RolloutSamplerTest, TheFilterKeepsGroupsThatTeachSomething) {
  options_.filter = GroupFilter::kNonzeroRewardStd;
  const std::unique_ptr<Reward> reward = MakeReward({.rm_type = "random"});
  Machine machine(*this, 2, *reward);
  int64_t num_filtered = 0;
  for (int64_t rollout = 0; rollout < 4; ++rollout) {
    const std::vector<Sample> samples = machine.Next(rollout);
    ASSERT_EQ(samples.size(), 12u);
    for (const std::span<const Sample> group : Groups(samples)) {
      std::set<double> rewards;
      for (const Sample& sample : group) rewards.insert(sample.reward.reward);
      EXPECT_EQ(rewards.size(), 2u);
    }
    num_filtered += machine.sampler.stats().num_groups_filtered;
  }
  EXPECT_GT(num_filtered, 0);
}

TEST_F(RolloutSamplerTest, AFilterThatDropsEverythingIsAnErrorAndNoEndlessLoop) {
  options_.filter = GroupFilter::kNonzeroRewardStd;
  options_.rollout.sampling.max_new_tokens = 1;
  const ConstantReward reward;
  Machine machine(*this, 2, reward);
  EXPECT_THROW(machine.Next(0), Error);
}

TEST_F(RolloutSamplerTest, WithoutPartialRolloutsTheUnfinishedAreDropped) {
  options_.over_sampling_batch_size = 7;
  Machine machine(*this, 2, length_reward_);
  const std::vector<Sample> samples = machine.Next(0);
  EXPECT_EQ(samples.size(), 12u);
  EXPECT_GT(machine.sampler.stats().num_samples_stopped, 0);
  EXPECT_EQ(machine.sampler.num_kept(), 0);
  EXPECT_FALSE(machine.engine.HasUnfinished());
  EXPECT_EQ(machine.dataset.position(), 7);
}

TEST_F(RolloutSamplerTest, PartialRolloutsLoseNothingAndResumeBitForBit) {
  options_.over_sampling_batch_size = 7;
  options_.stopped = StoppedGroups::kResume;
  Machine machine(*this, 2, length_reward_);
  std::vector<std::vector<Sample>> rollouts;
  std::vector<Json> states, cursors;
  std::multiset<int64_t> prompts;
  int64_t num_offpolicy = 0, num_resumed = 0;
  for (int64_t rollout = 0; rollout < 5; ++rollout) {
    rollouts.push_back(machine.Next(rollout));
    states.push_back(Json::from_cbor(Json::to_cbor(machine.sampler.State())));
    cursors.push_back(machine.dataset.State());
    num_offpolicy += machine.sampler.stats().num_offpolicy_tokens;
    num_resumed += machine.sampler.stats().num_groups_resumed;
    for (const Sample& sample : rollouts.back()) {
      EXPECT_NE(sample.completion.finish_reason, FinishReason::kAbort);
      EXPECT_LE(sample.completion.num_offpolicy_tokens, sample.response_length());
      EXPECT_EQ(sample.completion.routed_experts.num_tokens, sample.num_tokens() - 1);
    }
    for (size_t i = 0; i < rollouts.back().size(); i += 3)
      prompts.insert(rollouts.back()[i].prompt.id);
  }
  EXPECT_GT(num_offpolicy, 0);
  EXPECT_GT(num_resumed, 0);
  // What was taken from the data was returned or is kept.
  EXPECT_EQ(machine.dataset.epoch() * 9 + machine.dataset.position(),
            static_cast<int64_t>(prompts.size()) + machine.sampler.num_kept());
  // From the state of any rollout, with another number of threads, the rest is the same.
  for (const size_t from : {0u, 2u}) {
    Machine resumed(*this, 1, length_reward_);
    resumed.dataset.Restore(cursors[from]);
    resumed.sampler.Restore(states[from], resumed.dataset);
    for (size_t rollout = from + 1; rollout < rollouts.size(); ++rollout)
      ExpectEqual(resumed.Next(static_cast<int64_t>(rollout)), rollouts[rollout]);
  }
}

TEST_F(RolloutSamplerTest, ANumberThatIsNotFiniteNamesItsSampleAndKeepsWhatThereWas) {
  Machine whole(*this, 2, length_reward_);
  const std::vector<Sample> expected = whole.Next(0);
  // A token that one sample draws, and no prompt has: NaN as it is read.
  const Sample* culprit = nullptr;
  size_t place = 0;
  const auto drawn_by_others = [&](int32_t id) {
    for (const Sample& sample : expected) {
      const auto& ids = sample.completion.token_ids;
      if (std::count(sample.prompt_ids.begin(), sample.prompt_ids.end(), id) > 0) return true;
      if (&sample != culprit && std::count(ids.begin(), ids.end(), id) > 0) return true;
    }
    return false;
  };
  for (const Sample& sample : expected) {
    const auto& ids = sample.completion.token_ids;
    culprit = &sample;
    for (place = 1; place + 1 < ids.size() && drawn_by_others(ids[place]); ++place) continue;
    if (place + 1 < ids.size()) break;
  }
  ASSERT_LT(place + 1, culprit->completion.token_ids.size()) << "no sample draws a token alone";
  const int32_t token = culprit->completion.token_ids[place];
  ModelConfig config = checkpoint_.config();
  config.tie_word_embeddings = false;
  const ModelWeights poisoned = NanFor(token);
  const Decoder decoder(config, poisoned);
  Machine machine(*this, 2, length_reward_, decoder);
  std::string message;
  try {
    machine.Next(0);
  } catch (const Error& error) {
    message = error.what();
    EXPECT_EQ(error.code(), ErrorCode::kData);
  }
  const std::string name = fmt::format("row {} of the prompts, sample {}, token {} of the response",
                                       culprit->prompt.id + 1, culprit->id % 3, place + 1);
  EXPECT_NE(message.find(name), std::string::npos) << name << "\n" << message;
  EXPECT_NE(message.find("the logit is not finite"), std::string::npos) << message;
  const std::vector<Sample> kept = machine.sampler.TakeFailed();
  ASSERT_EQ(kept.size(), 12u);
  EXPECT_TRUE(machine.sampler.TakeFailed().empty());
  for (const Sample& sample : kept) {
    const bool is_culprit = sample.draw_key == culprit->draw_key;
    const auto original = std::find_if(expected.begin(), expected.end(), [&](const Sample& other) {
      return other.draw_key == sample.draw_key;
    });
    ASSERT_NE(original, expected.end());
    const auto& ids = sample.completion.token_ids;
    ASSERT_LE(ids.size(), original->completion.token_ids.size());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), original->completion.token_ids.begin()));
    if (is_culprit) {
      EXPECT_EQ(ids.size(), place + 1);
      EXPECT_EQ(sample.completion.finish_reason, FinishReason::kAbort);
    }
  }
}

TEST_F(RolloutSamplerTest, RefusesADamagedState) {
  options_.over_sampling_batch_size = 7;
  options_.stopped = StoppedGroups::kResume;
  Machine machine(*this, 2, length_reward_);
  machine.Next(0);
  Json state = machine.sampler.State();
  ASSERT_FALSE(state["groups"].empty());
  EXPECT_THROW(machine.sampler.Restore(Json::object(), machine.dataset), Error);
  Json other = state;
  other["groups"][0]["prompt"] = 9;
  EXPECT_THROW(machine.sampler.Restore(other, machine.dataset), Error);
  other = state;
  other["groups"][0]["samples"].erase(0);
  EXPECT_THROW(machine.sampler.Restore(other, machine.dataset), Error);
  machine.sampler.Restore(state, machine.dataset);
}

}  // namespace
}  // namespace quatrain
