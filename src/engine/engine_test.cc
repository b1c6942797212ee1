#include "engine/engine.h"

#include <gtest/gtest.h>

#include "models/loader.h"
#include "ops/logprob_ops.h"

namespace quatrain {
namespace {

class EngineTest : public testing::Test {
 protected:
  EngineTest()
      : checkpoint_(std::string(QT_SOURCE_DIR) + "/examples/models/tiny-qwen3-moe"),
        weights_(LoadWeights(checkpoint_, at::kBFloat16)),
        decoder_(checkpoint_.config(), weights_) {}

  Request MakeRequest(int64_t id) const {
    Request request;
    request.id = id;
    for (int64_t t = 0; t < 5 + 7 * (id % 4); ++t) {
      request.prompt_ids.push_back(static_cast<int32_t>((37 * t + 11 * id) % 2000 + 20));
    }
    request.sampling.temperature = 0.8f;
    request.sampling.seed = static_cast<uint64_t>(1000 + id);
    request.sampling.max_new_tokens = 12 + id % 5;
    request.return_routed_experts = true;
    return request;
  }

  std::vector<RequestOutput> Run(const EngineConfig& config, int num_threads,
                                 int64_t num_requests) {
    ThreadPool pool(num_threads);
    Engine engine({pool}, decoder_, config);
    for (int64_t id = 0; id < num_requests; ++id) engine.Add(MakeRequest(id));
    std::vector<RequestOutput> outputs(static_cast<size_t>(num_requests));
    while (engine.HasUnfinished()) {
      for (RequestOutput& output : engine.Step()) {
        outputs[static_cast<size_t>(output.id)] = std::move(output);
      }
    }
    num_preemptions_ = engine.stats().num_preemptions;
    return outputs;
  }

  static void ExpectEqual(const RequestOutput& a, const RequestOutput& b) {
    EXPECT_EQ(a.token_ids, b.token_ids) << a.id;
    EXPECT_EQ(a.logprobs, b.logprobs) << a.id;
    EXPECT_EQ(a.routed_experts.ids_TLK, b.routed_experts.ids_TLK) << a.id;
  }

  Checkpoint checkpoint_;
  ModelWeights weights_;
  Decoder decoder_;
  int64_t num_preemptions_ = 0;
};

TEST_F(EngineTest, ASequenceDoesNotDependOnItsBatchThreadsOrCache) {
  constexpr int64_t kRequests = 9;
  const std::vector<RequestOutput> together = Run({}, 2, kRequests);
  EngineConfig alone;
  alone.scheduler.max_num_seqs = 1;
  const std::vector<RequestOutput> one_by_one = Run(alone, 1, kRequests);
  EngineConfig chunked;  // prompts are cut, sequences are preempted
  chunked.scheduler.max_num_batched_tokens = 7;
  chunked.block_size = 4;
  chunked.kv_cache_tokens = 64;
  const std::vector<RequestOutput> crowded = Run(chunked, 3, kRequests);
  EXPECT_GT(num_preemptions_, 0);
  for (size_t i = 0; i < together.size(); ++i) {
    ExpectEqual(together[i], one_by_one[i]);
    ExpectEqual(together[i], crowded[i]);
  }
}

TEST_F(EngineTest, ARequestThatWasStoppedGoesOnToTheSameTokens) {
  constexpr int64_t kRequests = 6;
  const std::vector<RequestOutput> whole = Run({}, 2, kRequests);
  ThreadPool pool(2);
  Engine engine({pool}, decoder_, {});
  for (int64_t id = 0; id < kRequests; ++id) engine.Add(MakeRequest(id));
  for (int i = 0; i < 5; ++i) engine.Step();
  engine.UpdateWeights(3);  // in name only
  const std::vector<RequestOutput> stopped = engine.TakeUnfinished();
  EXPECT_FALSE(engine.HasUnfinished());
  ASSERT_EQ(stopped.size(), static_cast<size_t>(kRequests));
  for (const RequestOutput& output : stopped) {
    EXPECT_EQ(output.finish_reason, FinishReason::kAbort);
    EXPECT_EQ(output.token_ids.size(), 5u);
    Request request = MakeRequest(output.id);
    request.resumed_ids = output.token_ids;
    request.resumed_logprobs = output.logprobs;
    request.resumed_policy_version = output.policy_version_min;
    engine.Add(std::move(request));
  }
  while (engine.HasUnfinished()) {
    for (const RequestOutput& output : engine.Step()) {
      ExpectEqual(output, whole[static_cast<size_t>(output.id)]);
      EXPECT_EQ(output.policy_version_min, 0);
      EXPECT_EQ(output.policy_version_max, 3);
    }
  }
}

TEST_F(EngineTest, TheTrainingForwardScoresEveryTokenWithTheSameBits) {
  ThreadPool pool(2);
  const OpContext ctx{pool};
  for (const RequestOutput& output : Run({}, 2, 6)) {
    std::vector<int32_t> ids = MakeRequest(output.id).prompt_ids;
    const auto prompt = static_cast<int64_t>(ids.size());
    ids.insert(ids.end(), output.token_ids.begin(), output.token_ids.end());
    const int64_t rows = static_cast<int64_t>(ids.size()) - prompt;
    ForwardBatch batch = MakeVarlenBatch({std::vector<int32_t>(ids.begin(), ids.end() - 1)});
    const at::Tensor hidden = decoder_.Forward(ctx, batch).narrow(0, prompt - 1, rows);
    const TokenLogprobs scored = LmHeadLogprobs(ctx, hidden, decoder_.LmHead(), output.token_ids,
                                                1.0f / 0.8f, Entropy::kSkip);
    EXPECT_EQ(scored.logprobs, output.logprobs);
  }
}

TEST_F(EngineTest, NewWeightsDropTheCacheAndStampLaterTokens) {
  ThreadPool pool(2);
  Engine engine({pool}, decoder_, {});
  engine.Add(MakeRequest(0));
  engine.Step();
  engine.Step();
  engine.UpdateWeights(7);
  std::vector<RequestOutput> done;
  while (engine.HasUnfinished()) {
    for (RequestOutput& output : engine.Step()) done.push_back(std::move(output));
  }
  ASSERT_EQ(done.size(), 1u);
  EXPECT_EQ(done[0].policy_version_min, 0);
  EXPECT_EQ(done[0].policy_version_max, 7);
  // The weights did not really change, so neither may the tokens.
  ExpectEqual(done[0], Run({}, 1, 1)[0]);
}

TEST_F(EngineTest, RequestsThatCannotRunAreRefusedByNumber) {
  ThreadPool pool(1);
  EngineConfig config;
  config.kv_cache_tokens = 32;
  Engine engine({pool}, decoder_, config);
  Request empty;
  EXPECT_THROW(engine.Add(empty), Error);
  Request long_prompt;
  long_prompt.prompt_ids.assign(2048, 5);
  EXPECT_THROW(engine.Add(long_prompt), Error);
  Request bad_id;
  bad_id.prompt_ids = {5, 99999};
  EXPECT_THROW(engine.Add(bad_id), Error);
  Request too_long;
  too_long.prompt_ids = {5, 6, 7};
  too_long.sampling.max_new_tokens = 100;
  EXPECT_THROW(engine.Add(too_long), Error);
}

}  // namespace
}  // namespace quatrain
