#include "engine/scheduler.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

class SchedulerTest : public testing::Test {
 protected:
  static ModelConfig Config() {
    ModelConfig config;
    config.num_hidden_layers = 1;
    config.num_key_value_heads = 1;
    config.head_dim = 8;
    return config;
  }
  void Make(int64_t num_blocks, const SchedulerConfig& config) {
    cache_.emplace(Config(), at::kBFloat16, num_blocks, 4);
    scheduler_.emplace(config, *cache_);
  }
  void Add(int64_t id, int64_t num_tokens) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request.id = id;
    sequence->request.prompt_ids.assign(static_cast<size_t>(num_tokens), 7);
    sequence->token_ids = sequence->request.prompt_ids;
    scheduler_->Add(std::move(sequence));
  }
  // Runs a step as the engine does: what was scheduled is cached, a complete sequence gets a token.
  std::vector<Sequence*> Step() {
    std::vector<Sequence*> scheduled = scheduler_->Schedule();
    for (Sequence* sequence : scheduled) {
      sequence->num_cached_tokens += sequence->num_scheduled_tokens;
      if (sequence->num_cached_tokens == sequence->num_tokens()) sequence->token_ids.push_back(7);
    }
    return scheduled;
  }
  static std::vector<std::pair<int64_t, int64_t>> Plan(const std::vector<Sequence*>& scheduled) {
    std::vector<std::pair<int64_t, int64_t>> plan;
    for (const Sequence* sequence : scheduled)
      plan.emplace_back(sequence->request.id, sequence->num_scheduled_tokens);
    return plan;
  }
  using Tokens = std::vector<std::pair<int64_t, int64_t>>;  // (id, scheduled tokens)

  std::optional<KvCache> cache_;
  std::optional<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, ALongPromptIsCutAndRunningSequencesComeFirst) {
  Make(20, {.max_num_seqs = 8, .max_num_batched_tokens = 10});
  Add(0, 4);
  Add(1, 9);
  EXPECT_EQ(Plan(Step()), (Tokens{{0, 4}, {1, 6}}));
  EXPECT_EQ(Plan(Step()), (Tokens{{0, 1}, {1, 3}}));
  EXPECT_EQ(Plan(Step()), (Tokens{{0, 1}, {1, 1}}));
}

TEST_F(SchedulerTest, NoMoreThanMaxNumSeqsRunAtOnce) {
  Make(20, {.max_num_seqs = 2, .max_num_batched_tokens = 100});
  for (int64_t id = 0; id < 3; ++id) Add(id, 3);
  std::vector<Sequence*> scheduled = Step();
  EXPECT_EQ(Plan(scheduled), (Tokens{{0, 3}, {1, 3}}));
  EXPECT_EQ(scheduler_->Finish(scheduled[0])->request.id, 0);
  EXPECT_EQ(Plan(Step()), (Tokens{{1, 1}, {2, 3}}));
}

TEST_F(SchedulerTest, TheYoungestIsPreemptedAndComputedAgain) {
  Make(4, {.max_num_seqs = 8, .max_num_batched_tokens = 100});
  Add(0, 8);
  Add(1, 8);
  Step();  // all four blocks are full
  std::vector<Sequence*> scheduled = Step();
  EXPECT_EQ(Plan(scheduled), (Tokens{{0, 1}}));
  EXPECT_EQ(scheduler_->num_preemptions(), 1);
  EXPECT_EQ(Plan(Step()), (Tokens{{0, 1}})) << "one free block does not hold the other's 9 tokens";
  scheduler_->Finish(scheduled[0]);
  scheduled = Step();
  EXPECT_EQ(Plan(scheduled), (Tokens{{1, 9}})) << "from its first token, with those it had drawn";
  scheduler_->Finish(scheduled[0]);
  EXPECT_FALSE(scheduler_->HasUnfinished());
  EXPECT_EQ(cache_->num_free_blocks(), 4);
}

TEST_F(SchedulerTest, APreemptedSequenceGoesBeforeThoseThatNeverRan) {
  Make(4, {.max_num_seqs = 2, .max_num_batched_tokens = 100});
  for (int64_t id = 0; id < 3; ++id) Add(id, 8);
  std::vector<Sequence*> scheduled = Step();
  scheduled = Step();  // 1 is preempted
  scheduler_->Finish(scheduled[0]);
  EXPECT_EQ(Plan(Step())[0].first, 1);
}

TEST_F(SchedulerTest, PreemptAllKeepsOrderAndFreesEverything) {
  Make(20, {.max_num_seqs = 8, .max_num_batched_tokens = 100});
  for (int64_t id = 0; id < 3; ++id) Add(id, 5);
  Step();
  scheduler_->PreemptAll();
  EXPECT_EQ(cache_->num_free_blocks(), 20);
  EXPECT_EQ(Plan(Step()), (Tokens{{0, 6}, {1, 6}, {2, 6}}));
}

TEST_F(SchedulerTest, ASequenceThatCanNeverFitIsOurBug) {
  Make(1, {.max_num_seqs = 8, .max_num_batched_tokens = 100});
  Add(0, 5);
  EXPECT_THROW(scheduler_->Schedule(), Error);
}

}  // namespace
}  // namespace quatrain
