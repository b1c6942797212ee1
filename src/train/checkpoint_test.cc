#include "train/checkpoint.h"

#include "train/test_support.h"

namespace quatrain {
namespace {

class TrainingState : public SmallMoeTest {
 protected:
  static void Step(const OpContext& ctx, Parameters& parameters, const ModelWeights& weights,
                   uint64_t seed) {
    Gradients gradients(weights);
    for (size_t i = 0; i < weights.size(); ++i) {
      const at::Tensor& grad = gradients.Of(static_cast<int>(i));
      for (int64_t k = 0; k < grad.numel(); ++k)
        grad.data_ptr<float>()[k] =
            static_cast<float>(UniformDouble(seed, i, static_cast<uint64_t>(k)) - 0.5);
    }
    parameters.Step(ctx, gradients, 1e-3);
  }

  ThreadPool pool_{1};
  OpContext ctx_{pool_};
};

TEST_F(TrainingState, AResumedOptimizerGoesOnBitForBit) {
  ModelWeights trained = AllocateLike(*start_, 0);
  Parameters parameters(ctx_, *start_, &trained, nullptr, {}, {}, MasterStart::kValues);
  Step(ctx_, parameters, *start_, 1);
  Step(ctx_, parameters, *start_, 2);
  const TrainingSnapshot snapshot =
      SnapshotTraining(parameters, {{"next_rollout", 2}}, SnapshotMode::kCopy);
  const at::Tensor before = parameters.master(0).clone();
  SaveTrainingState(snapshot, folder_ / "state");
  EXPECT_FALSE(snapshot.tensors[0].values.is_alias_of(parameters.master(0)));
  EXPECT_TRUE(at::equal(snapshot.tensors[0].values, before));

  ModelWeights resumed = AllocateLike(*start_, 0);
  Parameters again(ctx_, *start_, &resumed, nullptr, {}, {}, MasterStart::kValues);
  const Json state = LoadTrainingState(ctx_, folder_ / "state", again);
  EXPECT_EQ(state.at("next_rollout"), 2);
  EXPECT_EQ(again.step(), 2);
  for (size_t i = 0; i < trained.size(); ++i)
    EXPECT_TRUE(at::equal(trained[i].dense, resumed[i].dense)) << trained[i].spec.name;
  Step(ctx_, parameters, *start_, 3);
  Step(ctx_, again, *start_, 3);
  for (size_t i = 0; i < parameters.size(); ++i) {
    EXPECT_TRUE(at::equal(parameters.master(i), again.master(i))) << parameters.spec(i).name;
    EXPECT_TRUE(at::equal(parameters.exp_avg(i), again.exp_avg(i)));
    EXPECT_TRUE(at::equal(parameters.exp_avg_sq(i), again.exp_avg_sq(i)));
    EXPECT_TRUE(at::equal(trained[i].dense, resumed[i].dense));
  }
}

TEST_F(TrainingState, AStateOfAnotherModelOrWithoutItsStepIsRefusedByName) {
  ModelWeights trained = AllocateLike(*start_, 0);
  Parameters parameters(ctx_, *start_, &trained, nullptr, {}, {}, MasterStart::kValues);
  SaveTrainingState(SnapshotTraining(parameters, Json::object(), SnapshotMode::kBorrow),
                    folder_ / "state");
  Json config = SmallMoeConfig();
  config["vocab_size"] = 40;
  const Checkpoint other(
      PutModel("other", config, Bf16Tensors(RandomWeights(ParseModelConfig(config, "c"), 3))));
  const ModelWeights other_start = LoadWeights(other, at::kBFloat16);
  ModelWeights other_trained = AllocateLike(other_start, 0);
  Parameters others(ctx_, other_start, &other_trained, nullptr, {}, {}, MasterStart::kValues);
  const auto load = [&](Parameters& into) {
    return MessageOf([&] { LoadTrainingState(ctx_, folder_ / "state", into); });
  };
  EXPECT_TRUE(Contains(load(others), "master.model.embed_tokens.weight"));
  Put("state/state.json", "{\"step\": \"two\"}");
  EXPECT_TRUE(Contains(load(parameters), "state.json"));
}

}  // namespace
}  // namespace quatrain
