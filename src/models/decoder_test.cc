#include "models/decoder.h"

#include "models/test_support.h"
#include "ops/logprob_ops.h"

namespace quatrain {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

class DecoderTest : public ModelFolderTest {
 protected:
  void SetUp() override {
    ModelFolderTest::SetUp();
    checkpoint_.emplace(PutSmallMoe("model"));
    weights_.emplace(LoadWeights(*checkpoint_, at::kBFloat16));
    decoder_.emplace(checkpoint_->config(), *weights_);
  }
  void TearDown() override {
    decoder_.reset();
    weights_.reset();
    checkpoint_.reset();
    ModelFolderTest::TearDown();
  }

  at::Tensor Hidden(const Sequences& sequences, int num_threads = 1) const {
    ThreadPool pool(num_threads);
    return decoder_->Forward({pool}, MakeVarlenBatch(sequences));
  }

  Gradients GradientsOf(const Sequences& sequences, int64_t trace_bytes = 0) const {
    ThreadPool pool(1);
    const ForwardBatch batch = MakeVarlenBatch(sequences);
    DecoderTape tape{.trace_bytes = trace_bytes};
    const at::Tensor hidden_TD = decoder_->ForwardWithTape({pool}, batch, &tape);
    Gradients gradients(*weights_);
    // d loss / d hidden depends on token and position alone, as a loss per token has it.
    at::Tensor dhidden_TD = EmptyTensor(hidden_TD.sizes(), at::kFloat);
    for (int64_t t = 0; t < dhidden_TD.size(0); ++t) {
      for (int64_t d = 0; d < dhidden_TD.size(1); ++d) {
        const auto index = static_cast<size_t>(t);
        dhidden_TD.data_ptr<float>()[t * dhidden_TD.size(1) + d] = static_cast<float>(
            UniformDouble(static_cast<uint64_t>(batch.token_ids[index]),
                          static_cast<uint64_t>(batch.positions[index]), static_cast<uint64_t>(d)) -
            0.5);
      }
    }
    decoder_->Backward({pool}, batch, tape, dhidden_TD, gradients);
    return gradients;
  }

  const std::vector<int32_t> a_ = {3, 17, 40, 8, 22}, b_ = {11, 2}, c_ = {5, 5, 9, 31, 47, 0, 1};
  std::optional<Checkpoint> checkpoint_;
  std::optional<ModelWeights> weights_;
  std::optional<Decoder> decoder_;
};

TEST_F(DecoderTest, ARowDependsOnItsOwnSequenceOnly) {
  const at::Tensor together = Hidden({a_, b_, c_}), turned = Hidden({c_, a_, b_}, 3);
  EXPECT_TRUE(at::equal(together.narrow(0, 0, 5), Hidden({a_})));
  EXPECT_TRUE(at::equal(together.narrow(0, 5, 2), Hidden({b_})));
  EXPECT_TRUE(at::equal(together.narrow(0, 7, 7), turned.narrow(0, 0, 7)));
  EXPECT_FALSE(at::equal(together.narrow(0, 0, 2), Hidden({b_}))) << "the test can fail";
}

TEST_F(DecoderTest, ALaterTokenChangesNoEarlierRow) {
  const std::vector<int32_t> prefix(c_.begin(), c_.begin() + 4);
  EXPECT_TRUE(at::equal(Hidden({c_}).narrow(0, 0, 4), Hidden({prefix})));
}

TEST_F(DecoderTest, TheTapeKeepsWhatEachLayerIsComputedFrom) {
  ThreadPool pool(1);
  const ForwardBatch batch = MakeVarlenBatch({a_, c_});
  DecoderTape tape;
  const at::Tensor hidden_TD = decoder_->ForwardWithTape({pool}, batch, &tape);
  EXPECT_TRUE(at::equal(hidden_TD, decoder_->Forward({pool}, batch)));
  ASSERT_EQ(tape.layer_inputs_TD.size(), 3u);
  EXPECT_TRUE(at::equal(tape.layer_inputs_TD[0], decoder_->Embed({pool}, batch)));
  for (int64_t layer = 0; layer < 3; ++layer) {
    const auto index = static_cast<size_t>(layer);
    const at::Tensor next =
        decoder_->ForwardLayer({pool}, layer, tape.layer_inputs_TD[index], batch);
    EXPECT_TRUE(at::equal(next, layer == 2 ? tape.last_TD : tape.layer_inputs_TD[index + 1]));
  }
}

TEST_F(DecoderTest, GradientsOfABatchAreTheSumOverItsSequences) {
  Gradients together = GradientsOf({a_, b_, c_});
  Gradients a = GradientsOf({a_}), b = GradientsOf({b_}), c = GradientsOf({c_});
  for (size_t i = 0; i < weights_->size(); ++i) {
    const int index = static_cast<int>(i);
    const at::Tensor sum = a.Of(index) + b.Of(index) + c.Of(index);
    const double norm = sum.norm().item<double>();
    // The order of the sum over rows alone differs: some roundings of FP32.
    EXPECT_LE((together.Of(index) - sum).norm().item<double>(), 1e-5 * norm + 1e-12)
        << (*weights_)[i].spec.name;
  }
}

TEST_F(DecoderTest, KeptLayersGiveTheGradientsOfRecomputedOnes) {
  ThreadPool pool(1);
  const ForwardBatch batch = MakeVarlenBatch({a_, b_, c_});
  DecoderTape all{.trace_bytes = int64_t{1} << 30};
  decoder_->ForwardWithTape({pool}, batch, &all);
  ASSERT_EQ(all.traces.size(), 3u);
  const int64_t some = all.traces[0].num_bytes() + all.traces[1].num_bytes() + 1;
  DecoderTape part{.trace_bytes = some};
  EXPECT_TRUE(
      at::equal(decoder_->ForwardWithTape({pool}, batch, &part), decoder_->Forward({pool}, batch)));
  EXPECT_EQ(part.traces.size(), 2u) << "the third does not fit";
  Gradients recomputed = GradientsOf({a_, b_, c_});
  for (const int64_t bytes : {some, int64_t{1} << 30}) {
    Gradients kept = GradientsOf({a_, b_, c_}, bytes);
    for (size_t i = 0; i < weights_->size(); ++i) {
      const int index = static_cast<int>(i);
      EXPECT_TRUE(at::equal(kept.Of(index), recomputed.Of(index))) << (*weights_)[i].spec.name;
    }
  }
}

TEST_F(DecoderTest, ReplayOfTheOwnRoutingChangesNothingAndOfAnotherSomething) {
  ThreadPool pool(1);
  RoutedExperts record;
  ForwardBatch batch = MakeVarlenBatch({a_, c_});
  batch.record = &record;
  const at::Tensor plain = decoder_->Forward({pool}, batch);
  EXPECT_EQ(record.num_tokens, 12);
  EXPECT_EQ(record.num_moe_layers, 2) << "the dense layer records nothing";
  batch.record = nullptr;
  batch.replay = &record;
  RoutedExperts own;
  batch.record = &own;
  EXPECT_TRUE(at::equal(plain, decoder_->Forward({pool}, batch)));
  EXPECT_EQ(own.ids_TLK, record.ids_TLK);
  RoutedExperts other = record;
  for (int32_t& id : other.ids_TLK) id = (id + 1) % 4;
  batch.replay = &other;
  EXPECT_FALSE(at::equal(plain, decoder_->Forward({pool}, batch)));
  // Beside a replay the record is the router's own choice: that of the first MoE layer, whose input
  // the replay did not touch, is the old one.
  EXPECT_EQ(std::vector<int32_t>(own.At(3, 0), own.At(3, 0) + own.num_experts_per_tok),
            std::vector<int32_t>(record.At(3, 0), record.At(3, 0) + own.num_experts_per_tok));
}

TEST_F(DecoderTest, ATiedHeadIsTheEmbedding) {
  Json config = SmallMoeConfig();
  config["tie_word_embeddings"] = true;
  const Checkpoint tied(PutModel("tied", config, Bf16Tensors(SmallMoe())));
  const ModelWeights weights = LoadWeights(tied, at::kBFloat16);
  const Decoder decoder(tied.config(), weights);
  EXPECT_EQ(decoder.lm_head_index(), weights.Find("model.embed_tokens.weight"));
  EXPECT_NE(decoder_->lm_head_index(), weights_->Find("model.embed_tokens.weight"));
}

}  // namespace
}  // namespace quatrain
