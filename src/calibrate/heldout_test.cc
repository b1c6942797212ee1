#include "calibrate/heldout.h"

#include <gtest/gtest.h>

#include "calibrate/calibrate.h"
#include "models/loader.h"

namespace quatrain {
namespace {

const std::string kModel = std::string(QT_SOURCE_DIR) + "/examples/models/tiny-llama";

TEST(HeldOut, GivesTheFiguresOfTwoWholeModels) {
  const Checkpoint checkpoint(kModel);
  const ModelWeights original = LoadWeights(checkpoint, at::kBFloat16);
  ModelWeights weights = LoadWeights(checkpoint, at::kBFloat16);
  ThreadPool pool(2);
  const OpContext ctx{pool};
  const Decoder decoder(checkpoint.config(), weights);
  const std::vector<std::vector<int32_t>> sequences = {{5, 6, 7, 8, 9, 10, 11}, {40, 41}};
  HiddenStates states(HeldOut::EntryTokens(sequences), checkpoint.config().hidden_size,
                      std::nullopt);
  HeldOut heldout(ctx, decoder, sequences, states, 0);
  heldout.Embed();
  for (int64_t layer = 0; layer < checkpoint.config().num_hidden_layers; ++layer) {
    states.Advance();
    heldout.RunReference(layer);
    for (size_t i = 0; i < weights.size(); ++i) {
      const WeightSpec& spec = weights[i].spec;
      if (spec.layer == layer && spec.is_quantisable()) RoundWeight(ctx, {}, weights[i]);
    }
    heldout.RunQuantized(layer);
  }
  states.Advance();
  const Fidelity found = heldout.Compare();
  Fidelity expected;
  const Decoder reference(checkpoint.config(), original);
  for (const Fidelity& one : CompareModels(ctx, reference, decoder, sequences)) expected.Add(one);
  EXPECT_EQ(found.num_positions, 7);
  EXPECT_GT(found.mean_kl(), 0.0);
  EXPECT_EQ(found.kl, expected.kl);
  EXPECT_EQ(found.loss, expected.loss);
  EXPECT_EQ(found.reference_loss, expected.reference_loss);
  EXPECT_EQ(found.abs_logprob_difference, expected.abs_logprob_difference);
}

}  // namespace
}  // namespace quatrain
