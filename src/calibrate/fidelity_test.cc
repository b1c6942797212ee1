#include "calibrate/fidelity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "models/loader.h"
#include "ops/linear_ops.h"
#include "ops/logprob_ops.h"

namespace quatrain {
namespace {

const std::string kModel = std::string(QT_SOURCE_DIR) + "/examples/models/tiny-llama";
const std::vector<std::vector<int32_t>> kSequences = {{5, 9, 300, 7, 44, 1023, 12}, {8, 2}};

struct Model {
  Model() : checkpoint(kModel), weights(LoadWeights(checkpoint, at::kFloat)) {}
  Checkpoint checkpoint;
  ModelWeights weights;
  Decoder decoder{checkpoint.config(), weights};
};

// Another model: the second layer's down_proj is smaller.
void Disturb(Model& model) {
  const int index = model.weights.Find("model.layers.1.mlp.down_proj.weight");
  model.weights[static_cast<size_t>(index)].dense.mul_(0.5);
}

TEST(Fidelity, AModelEqualsItself) {
  ThreadPool pool(2);
  const Model model;
  for (const Fidelity& sequence : CompareModels({pool}, model.decoder, model.decoder, kSequences)) {
    EXPECT_EQ(sequence.abs_logprob_difference, 0.0);
    EXPECT_EQ(sequence.kl, 0.0);
    EXPECT_EQ(sequence.perplexity(), sequence.reference_perplexity());
  }
}

TEST(Fidelity, AgreesWithScoredLogprobs) {
  ThreadPool pool(2);
  const OpContext ctx{pool};
  const Model reference;
  Model disturbed;
  Disturb(disturbed);
  const std::vector<int32_t>& ids = kSequences[0];
  const auto logprobs_of = [&](const Decoder& decoder) {
    const at::Tensor hidden_TD = decoder.Forward(ctx, MakeVarlenBatch({ids}));
    return LmHeadLogprobs(ctx, hidden_TD.narrow(0, 0, 6), decoder.LmHead(),
                          std::span<const int32_t>(ids).subspan(1), 1.0f, Entropy::kSkip)
        .logprobs;
  };
  const std::vector<float> expected = logprobs_of(reference.decoder);
  const std::vector<float> logprobs = logprobs_of(disturbed.decoder);
  double difference = 0.0, loss = 0.0;
  for (size_t t = 0; t < expected.size(); ++t) {
    difference += std::abs(double{expected[t]} - double{logprobs[t]});
    loss -= double{logprobs[t]};
  }
  const Fidelity fidelity = CompareModels(ctx, reference.decoder, disturbed.decoder, kSequences)[0];
  EXPECT_EQ(fidelity.num_positions, 6);
  EXPECT_GT(difference, 0.1);
  EXPECT_NEAR(fidelity.abs_logprob_difference, difference, 1e-4);
  EXPECT_NEAR(fidelity.perplexity(), std::exp(loss / 6.0), 1e-4 * std::exp(loss / 6.0));
}

TEST(Fidelity, KlIsThatOfTheTwoDistributions) {
  ThreadPool pool(2);
  const OpContext ctx{pool};
  const Model reference;
  Model disturbed;
  Disturb(disturbed);
  const auto logprobs_of = [&](const Decoder& decoder) {
    const at::Tensor hidden_TD = decoder.Forward(ctx, MakeVarlenBatch({kSequences[1]}));
    return LinearLogits(ctx, hidden_TD.narrow(0, 0, 1), decoder.LmHead())
        .to(at::kDouble)
        .log_softmax(1);
  };
  const at::Tensor p = logprobs_of(reference.decoder);
  const at::Tensor q = logprobs_of(disturbed.decoder);
  const double expected = (p.exp() * (p - q)).sum().item<double>();
  EXPECT_GT(expected, 1e-3);
  const Fidelity fidelity = CompareModels(ctx, reference.decoder, disturbed.decoder, kSequences)[1];
  EXPECT_NEAR(fidelity.mean_kl(), expected, 1e-9);
}

TEST(Fidelity, ThreadCountChangesNoBit) {
  const Model reference;
  Model disturbed;
  Disturb(disturbed);
  std::vector<double> kl;
  for (const int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads);
    kl.push_back(CompareModels({pool}, reference.decoder, disturbed.decoder, kSequences)[0].kl);
  }
  EXPECT_EQ(kl[0], kl[1]);
  EXPECT_EQ(kl[0], kl[2]);
}

}  // namespace
}  // namespace quatrain
