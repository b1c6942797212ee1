#include "train/trainer.h"

#include <limits>

#include "train/test_support.h"

namespace quatrain {
namespace {

class TrainerTest : public SmallMoeTest {
 protected:
  // Sequences [begin, end) of a step of six in one micro-batch.
  static TrainBatch Batch(int64_t begin, int64_t end) {
    TrainBatch batch;
    batch.cu_seqlens.push_back(0);
    for (int64_t s = begin; s < end; ++s) {
      const int64_t prompt = 2 + s % 3, length = prompt + 3 + s % 4;
      for (int64_t t = 0; t < length; ++t) {
        batch.token_ids_T.push_back(static_cast<int32_t>((s * 13 + t * 7 + t * t) % 48));
        batch.positions_T.push_back(static_cast<int32_t>(t));
        const bool is_trained = t >= prompt;
        batch.loss_mask_T.push_back(is_trained);
        batch.advantages_T.push_back(is_trained ? static_cast<float>(s % 2 == 0 ? 1.0 : -0.7)
                                                : 0.0f);
        batch.rollout_logprobs_T.push_back(is_trained ? -3.5f : 0.0f);
      }
      batch.cu_seqlens.push_back(batch.num_tokens());
      batch.loss_weights_S.push_back(1.0 / static_cast<double>((length - prompt) * 6));
      batch.sample_ids_S.push_back(s);
    }
    return batch;
  }

  struct Outcome {
    TrainStepResult result;
    std::vector<at::Tensor> moments;  // (1 - beta1) times the gradient
    std::vector<std::vector<float>> old_logprobs;
  };
  enum class Old { kScored, kOfTheStep };
  Outcome StepOver(std::vector<TrainBatch> batches, Old old = Old::kScored) const {
    ThreadPool pool(1);
    const OpContext ctx{pool};
    ModelWeights trained = AllocateLike(*start_, 0);
    OptimizerConfig config;
    config.clip_grad = 0.0;
    Parameters parameters(ctx, *start_, &trained, nullptr, config, {}, MasterStart::kValues);
    const Decoder decoder(checkpoint_->config(), trained);
    Trainer trainer(ctx, decoder, parameters, {{}, 0.8f});
    if (old == Old::kScored) trainer.ScoreOld(batches);
    Outcome outcome;
    size_t num_calls = 0;
    outcome.result =
        trainer.Step(batches, 1e-3, [&](size_t done) { EXPECT_EQ(done, num_calls++); });
    EXPECT_EQ(num_calls, batches.size());
    for (size_t i = 0; i < parameters.size(); ++i)
      outcome.moments.push_back(parameters.exp_avg(i).clone());
    for (const TrainBatch& batch : batches) outcome.old_logprobs.push_back(batch.old_logprobs_T);
    return outcome;
  }
};

TEST_F(TrainerTest, TheCutIntoMicroBatchesChangesGradientsByRoundingOnly) {
  const Outcome whole = StepOver({Batch(0, 6)});
  const Outcome cut = StepOver({Batch(0, 1), Batch(1, 4), Batch(4, 6)});
  ASSERT_GT(whole.result.grad_norm, 0.0);
  EXPECT_NEAR(whole.result.grad_norm, cut.result.grad_norm, 1e-6 * whole.result.grad_norm);
  for (size_t i = 0; i < whole.moments.size(); ++i) {
    const double norm = whole.moments[i].norm().item<double>();
    // Sums over rows in another order: some 1e-7 of FP32 a term.
    EXPECT_LE((whole.moments[i] - cut.moments[i]).norm().item<double>(), 1e-5 * norm)
        << (*start_)[i].spec.name;
  }
}

TEST_F(TrainerTest, OldScoresOfTheSameWeightsGiveNoKlAndNoClip) {
  const Json row = [&] {
    Json numbers;
    StepOver({Batch(0, 3), Batch(3, 6)}).result.loss.AppendTo(numbers);
    return numbers;
  }();
  EXPECT_EQ(row.at("train/ppo_kl").get<double>(), 0.0);
  EXPECT_EQ(row.at("train/pg_clipfrac").get<double>(), 0.0);
  EXPECT_GT(row.at("train/train_rollout_logprob_abs_diff").get<double>(), 0.0)
      << "the rollout's numbers were made up";
}

TEST_F(TrainerTest, ScoresDoNotDependOnTheBatch) {
  ThreadPool pool(1);
  const OpContext ctx{pool};
  const Decoder decoder(checkpoint_->config(), *start_);
  const auto together = ScoreBatch(ctx, decoder, Batch(0, 6), 0.8f, Entropy::kCompute);
  std::vector<float> logprobs, entropy;
  for (int64_t s = 0; s < 6; ++s) {
    const auto one = ScoreBatch(ctx, decoder, Batch(s, s + 1), 0.8f, Entropy::kCompute);
    logprobs.insert(logprobs.end(), one.logprobs_T.begin(), one.logprobs_T.end());
    entropy.insert(entropy.end(), one.entropy_T.begin(), one.entropy_T.end());
  }
  EXPECT_EQ(together.logprobs_T, logprobs);
  EXPECT_EQ(together.entropy_T, entropy);
  const TrainBatch batch = Batch(0, 6);
  for (size_t t = 0; t < logprobs.size(); ++t)
    EXPECT_EQ(logprobs[t] != 0.0f, batch.loss_mask_T[t] != 0) << t;
}

TEST_F(TrainerTest, AStepsOwnForwardFindsTheOldLogprobs) {
  const std::vector<TrainBatch> batches = {Batch(0, 2), Batch(2, 6)};
  const Outcome scored = StepOver(batches), own = StepOver(batches, Old::kOfTheStep);
  EXPECT_EQ(own.old_logprobs, scored.old_logprobs);
  Json scored_row, own_row;
  scored.result.loss.AppendTo(scored_row);
  own.result.loss.AppendTo(own_row);
  EXPECT_EQ(own_row, scored_row);
  EXPECT_EQ(own_row["train/ppo_kl"], 0.0);
  EXPECT_GT(own_row["train/train_rollout_logprob_abs_diff"], 0.0) << "made-up rollout values";
  for (size_t i = 0; i < own.moments.size(); ++i) {
    EXPECT_TRUE(at::equal(own.moments[i], scored.moments[i])) << i;
  }
}

TEST_F(TrainerTest, AGradientThatIsNotFiniteNamesStepTensorAndSample) {
  ThreadPool pool(1);
  const OpContext ctx{pool};
  ModelWeights trained = AllocateLike(*start_, 0);
  Parameters parameters(ctx, *start_, &trained, nullptr, {}, {}, MasterStart::kValues);
  const Decoder decoder(checkpoint_->config(), trained);
  Trainer trainer(ctx, decoder, parameters, {{}, 0.8f});
  std::vector<TrainBatch> batches = {Batch(0, 2), Batch(2, 6)};
  const int64_t begin = batches[1].cu_seqlens[1], end = batches[1].cu_seqlens[2];
  // Finite, and a gradient beyond FP32 all the same.
  for (int64_t t = begin; t < end; ++t) {
    float& advantage = batches[1].advantages_T[static_cast<size_t>(t)];
    if (advantage != 0.0f) advantage = -3e38f;
  }
  batches[1].loss_weights_S[1] = 100.0;
  const at::Tensor before = parameters.master(0).clone();
  const std::string message = MessageOf([&] { trainer.Step(batches, 1e-3, {}); });
  EXPECT_TRUE(Contains(message, "sample 3")) << message;
  EXPECT_TRUE(Contains(message, "optimizer step 1, model.")) << message;
  EXPECT_TRUE(at::equal(before, parameters.master(0)));
}

TEST_F(TrainerTest, AForwardThatIsNotFiniteNamesLayerAndSample) {
  ThreadPool pool(1);
  const OpContext ctx{pool};
  ModelWeights trained = AllocateLike(*start_, 0);
  Parameters parameters(ctx, *start_, &trained, nullptr, {}, {}, MasterStart::kValues);
  std::vector<TrainBatch> batches = {Batch(0, 2), Batch(2, 6)};
  // A token of sample 4 alone, and not its last, which is fed to nothing.
  const int32_t token = batches[1].token_ids_T[static_cast<size_t>(batches[1].cu_seqlens[2])];
  for (size_t b = 0; b < 2; ++b) {
    for (int64_t s = 0; s < batches[b].num_sequences(); ++s) {
      for (int64_t t = batches[b].cu_seqlens[static_cast<size_t>(s)];
           t < batches[b].cu_seqlens[static_cast<size_t>(s) + 1]; ++t) {
        int32_t& id = batches[b].token_ids_T[static_cast<size_t>(t)];
        if (id == token && batches[b].sample_ids_S[static_cast<size_t>(s)] != 4) id = (id + 1) % 48;
      }
    }
  }
  trained[static_cast<size_t>(trained.Find("model.embed_tokens.weight"))].dense[token].fill_(
      std::numeric_limits<float>::quiet_NaN());
  const Decoder decoder(checkpoint_->config(), trained);
  Trainer trainer(ctx, decoder, parameters, {{}, 0.8f});
  for (const std::string& message : {MessageOf([&] { trainer.ScoreOld(batches); }),
                                     MessageOf([&] { trainer.Step(batches, 1e-3, {}); })}) {
    EXPECT_TRUE(Contains(message, "sample 4: model.layers.")) << message;
    EXPECT_TRUE(Contains(message, "the logit is not finite")) << message;
  }
}

TEST_F(TrainerTest, ReplayOfTheOwnRoutingIsExactAndAnotherOneShowsInTheOverlap) {
  ThreadPool pool(1);
  const OpContext ctx{pool};
  ModelWeights trained = AllocateLike(*start_, 0);
  Parameters parameters(ctx, *start_, &trained, nullptr, {}, {}, MasterStart::kValues);
  const Decoder decoder(checkpoint_->config(), trained);
  const auto record = [&](TrainBatch& batch) {
    std::vector<std::vector<int32_t>> sequences;
    for (int64_t s = 0; s < batch.num_sequences(); ++s) {
      const auto first = batch.token_ids_T.begin();
      sequences.emplace_back(first + batch.cu_seqlens[static_cast<size_t>(s)],
                             first + batch.cu_seqlens[static_cast<size_t>(s) + 1] - 1);
    }
    ForwardBatch forward = MakeVarlenBatch(sequences);
    RoutedExperts routing;
    forward.record = &routing;
    decoder.Forward(ctx, forward);
    batch.routed_experts.Append(routing, 0, routing.num_tokens, checkpoint_->config().num_experts);
  };
  TrainBatch plain = Batch(0, 4), replayed = Batch(0, 4);
  record(replayed);
  EXPECT_EQ(ScoreBatch(ctx, decoder, plain, 0.8f, Entropy::kSkip).logprobs_T,
            ScoreBatch(ctx, decoder, replayed, 0.8f, Entropy::kSkip).logprobs_T);
  TrainBatch other = replayed;
  for (uint8_t& id : other.routed_experts.ids_TLK) id = static_cast<uint8_t>((id + 1) % 4);
  const auto of = [&](RoutingSource source) {
    return ScoreBatch(ctx, decoder, other, 0.8f, Entropy::kSkip, source).logprobs_T;
  };
  EXPECT_NE(of(RoutingSource::kRecord), of(RoutingSource::kRouter));
  EXPECT_EQ(of(RoutingSource::kRouter),
            ScoreBatch(ctx, decoder, plain, 0.8f, Entropy::kSkip).logprobs_T);
  Trainer trainer(ctx, decoder, parameters, {{}, 0.8f});
  std::vector<TrainBatch> step = {replayed};
  trainer.ScoreOld(step);
  const TrainStepResult own = trainer.Step(step, 0.0, {});
  EXPECT_EQ(own.routing.shared(), 1.0);
  EXPECT_EQ(own.routing.num_choices, 2 * replayed.routed_experts.num_tokens) << "two MoE layers";
  std::vector<TrainBatch> elsewhere = {other};
  EXPECT_LT(trainer.Step(elsewhere, 0.0, {}).routing.shared(), 1.0);
}

TEST_F(TrainerTest, ALossThatMeansNothingIsRefused) {
  ThreadPool pool(1);
  ModelWeights trained = AllocateLike(*start_, 0);
  Parameters parameters({pool}, *start_, &trained, nullptr, {}, {}, MasterStart::kValues);
  const Decoder decoder(checkpoint_->config(), trained);
  TrainerConfig config;
  config.loss.clip_eps_low = -1.0;
  EXPECT_TRUE(
      Contains(MessageOf([&] { Trainer({pool}, decoder, parameters, config); }), "--eps-clip"));
}

}  // namespace
}  // namespace quatrain
