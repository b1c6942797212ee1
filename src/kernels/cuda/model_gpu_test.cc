// Two layers of the qwen3_moe form made of the device kernels alone: what a rollout computes token
// by token from a paged cache against what training computes of all tokens at once.
#if defined(QT_WITH_CUDA)
#include <cmath>
#include <memory>
#include <numeric>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_weight_test.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/logprob.h"
#include "kernels/cuda/moe.h"

namespace quatrain::cuda {
namespace {

constexpr LaunchOrder kAfter = LaunchOrder::kAfterPrevious;
constexpr int64_t kLayers = 2, kHidden = 512, kVocab = 1000, kGroup = 32;
constexpr int64_t kHeads = 8, kKvHeads = 2, kHeadDim = 64;
constexpr int64_t kExperts = 16, kSlots = 4, kInter = 128;
constexpr int64_t kKvDim = kKvHeads * kHeadDim, kQkvDim = kHeads * kHeadDim + 2 * kKvDim;
constexpr int64_t kPositions = 256, kBlockSize = 16;
constexpr float kEps = 1e-6f;

// How the same forward pass is made.
struct Mode {
  bool is_rollout = false;  // paged cache, decode attention, experts by tiles, fused residuals
  bool is_plain = false;    // dense linears over rn_bf16(q * s) in place of codes
  const std::vector<std::vector<int32_t>>* replayed_ids = nullptr;  // by layer, [T, S]
};

// Tokens of some sequences, each after keys that the cache holds already.
struct Batch {
  std::vector<int32_t> token_ids, positions, targets;
  std::vector<AttentionSequence> sequences;  // block tables in device memory
  int max_queries = 0, max_keys = 0;

  int64_t num_tokens() const { return std::ssize(token_ids); }
};

struct Answer {
  std::vector<float> logprobs, entropy;            // [T]
  std::vector<std::vector<int32_t>> ids_by_layer;  // [T, S] each
};

DeviceWeight RandomWeight(int64_t rows, int64_t cols, uint64_t seed) {
  const PackedShape shape{rows, cols, kGroup, 4};
  return DeviceWeight(shape, RandomCodes(shape, seed));
}

std::vector<BFloat16> NormWeight(int64_t size, uint64_t seed) {
  std::vector<float> values = RandomFloats(size, seed, 0.2f);
  for (float& value : values) value += 1.0f;
  return RoundAll<BFloat16>(values);
}

struct LayerWeights {
  DeviceWeight qkv, o, gate_up, down;
  DeviceVector<BFloat16> router, input_norm, post_norm, q_norm, k_norm;
  DeviceVector<BFloat16> k_pages, v_pages;  // the cache

  LayerWeights(uint64_t seed, int64_t num_blocks)
      : qkv(RandomWeight(kQkvDim, kHidden, seed)),
        o(RandomWeight(kHidden, kHeads * kHeadDim, seed + 2)),
        gate_up(RandomWeight(kExperts * 2 * kInter, kHidden, seed + 4)),
        down(RandomWeight(kExperts * kHidden, kInter, seed + 6)),
        router(RandomRounded<BFloat16>(kExperts * kHidden, seed + 8, 0.1f)),
        input_norm(NormWeight(kHidden, seed + 9)),
        post_norm(NormWeight(kHidden, seed + 10)),
        q_norm(NormWeight(kHeadDim, seed + 11)),
        k_norm(NormWeight(kHeadDim, seed + 12)),
        k_pages(num_blocks * kBlockSize * kKvDim),
        v_pages(k_pages.size()) {}
};

// What the router leaves of one layer.
struct Routing {
  DeviceVector<int32_t> ids, expert_begin, row_token, slot_row, tiles, num_tiles, counters;
  DeviceVector<float> weights, logits;

  explicit Routing(int64_t tokens)
      : ids(tokens * kSlots),
        expert_begin(kExperts + 1),
        row_token(tokens * kSlots),
        slot_row(tokens * kSlots),
        tiles(4 * MaxMoeTiles(tokens * kSlots, kExperts)),
        num_tiles(1),
        counters(RouterCounters(tokens)),
        weights(tokens * kSlots),
        logits(tokens * kExperts) {
    counters.Zero();
  }
  MoeRouting Get() {
    return {ids.data(),       weights.data(),  expert_begin.data(),
            row_token.data(), slot_row.data(), reinterpret_cast<MoeTile*>(tiles.data()),
            num_tiles.data()};
  }
};

class Model {
 public:
  explicit Model(const std::vector<int>& lengths)
      : embedding_(RandomRounded<BFloat16>(kVocab * kHidden, 1)),
        head_(RandomRounded<BFloat16>(kVocab * kHidden, 2, 0.1f)),
        final_norm_(NormWeight(kHidden, 3)),
        cos_(Angles(true)),
        sin_(Angles(false)) {
    int64_t num_blocks = 0;
    for (const int length : lengths) num_blocks += (length + kBlockSize - 1) / kBlockSize;
    const std::vector<int64_t> shuffled = Permutation(num_blocks, 5, 0);
    for (size_t s = 0, next = 0; s < lengths.size(); ++s) {
      std::vector<int32_t> table;
      for (int at = 0; at < lengths[s]; at += kBlockSize) {
        table.push_back(static_cast<int32_t>(shuffled[next++]));
      }
      tables_.push_back(table);
      device_tables_.push_back(std::make_unique<DeviceVector<int32_t>>(table));
    }
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      layers_.push_back(std::make_unique<LayerWeights>(100 * (layer + 1), num_blocks));
    }
  }

  const int32_t* Table(size_t sequence) { return device_tables_[sequence]->data(); }

  // Another value for one code of one weight, in kernel layout.
  void ChangeOneCode() {
    const PackedShape shape = layers_[1]->o.shape;
    HostCodes host{layers_[1]->o.codes.Download(), layers_[1]->o.scale.Download()};
    host.codes[7] ^= 1 << 8;
    DeviceWeight changed(shape, host);
    CheckCuda(cudaMemcpy(layers_[1]->o.packed.data(), changed.packed.data(),
                         static_cast<size_t>(PackedBytes(shape)), cudaMemcpyDeviceToDevice),
              "change");
  }

  Answer Forward(const Batch& batch, const Mode& mode) {
    const int64_t tokens = batch.num_tokens();
    DeviceVector<int32_t> ids(batch.token_ids), positions(batch.positions);
    DeviceVector<AttentionSequence> sequences(batch.sequences);
    Answer answer;
    DeviceVector<BFloat16> x(tokens * kHidden), normed(tokens * kHidden);
    Embedding({embedding_.data(), ids.data(), tokens, kHidden, x.data()}, nullptr, kAfter);
    for (int64_t at = 0; at < kLayers; ++at) {
      LayerWeights& layer = *layers_[at];
      Norm(&x, nullptr, &layer.input_norm, &normed, tokens);
      DeviceVector<BFloat16> attended(tokens * kHeads * kHeadDim);
      Attend({batch, mode, positions, sequences}, &layer, &normed, &attended);
      AddProjection(mode, &layer, &attended, &x, &normed, tokens);
      Routing routing(tokens);
      Experts(mode, at, &normed, &x, &routing, tokens);
      answer.ids_by_layer.push_back(routing.ids.Download());
    }
    Norm(&x, nullptr, &final_norm_, &normed, tokens);
    Score(batch, mode, &normed, &answer);
    return answer;
  }

 private:
  struct Inputs {
    const Batch& batch;
    const Mode& mode;
    DeviceVector<int32_t>& positions;
    DeviceVector<AttentionSequence>& sequences;
  };

  static std::vector<float> Angles(bool is_cos) {
    std::vector<float> table;
    for (int64_t p = 0; p < kPositions; ++p) {
      for (int64_t i = 0; i < kHeadDim / 2; ++i) {
        const double angle = p * std::pow(1e4, -2.0 * i / kHeadDim);
        table.push_back(static_cast<float>(is_cos ? std::cos(angle) : std::sin(angle)));
      }
    }
    return table;
  }

  void Norm(DeviceVector<BFloat16>* x, BFloat16* branch, DeviceVector<BFloat16>* weight,
            DeviceVector<BFloat16>* y, int64_t tokens) {
    RmsNorm({x->data(), branch, weight->data(), tokens, kHidden, kEps, y->data()}, nullptr, kAfter);
  }

  void Linear(const Mode& mode, DeviceWeight* weight, const BFloat16* x, int64_t tokens,
              const BFloat16* residual, BFloat16* y) {
    LinearDecodeArgs args{.type = WeightType::kInt4,
                          .shape = weight->shape,
                          .weight = weight->packed.data(),
                          .x = x,
                          .num_tokens = tokens,
                          .residual = residual,
                          .y = y};
    if (mode.is_plain) {
      args.type = WeightType::kBFloat16;
      args.weight = weight->plain.data();
    }
    LinearDecode(args, nullptr, kAfter);
  }

  void Attend(const Inputs& in, LayerWeights* layer, DeviceVector<BFloat16>* x,
              DeviceVector<BFloat16>* attended) {
    const Batch& batch = in.batch;
    const int64_t tokens = batch.num_tokens();
    DeviceVector<BFloat16> qkv(tokens * kQkvDim);
    Linear(in.mode, &layer->qkv, x->data(), tokens, nullptr, qkv.data());
    HeadNormRope({.qk = qkv.data(),
                  .tokens = tokens,
                  .row_stride = kQkvDim,
                  .num_q_heads = kHeads,
                  .num_k_heads = kKvHeads,
                  .head_dim = kHeadDim,
                  .q_weight = layer->q_norm.data(),
                  .k_weight = layer->k_norm.data(),
                  .eps = kEps,
                  .cos = cos_.data(),
                  .sin = sin_.data(),
                  .positions = in.positions.data()},
                 nullptr, kAfter);
    const BFloat16* k = qkv.data() + kHeads * kHeadDim;
    DeviceAttentionArgs args{.q = qkv.data(),
                             .k = k,
                             .v = k + kKvDim,
                             .out = attended->data(),
                             .q_stride = kQkvDim,
                             .kv_stride = kQkvDim,
                             .num_heads = kHeads,
                             .num_kv_heads = kKvHeads,
                             .head_dim = kHeadDim,
                             .scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim)),
                             .sequences = in.sequences.data(),
                             .num_sequences = static_cast<int>(batch.sequences.size()),
                             .max_queries = batch.max_queries,
                             .max_keys = batch.max_keys};
    if (in.mode.is_rollout) {
      WriteCache(batch, k, layer);
      args.k = layer->k_pages.data();
      args.v = layer->v_pages.data();
      args.kv_stride = kKvDim;
      args.block_size = kBlockSize;
    }
    if (in.mode.is_rollout && batch.max_queries == 1) {
      DeviceVector<uint8_t> scratch(AttentionDecodeScratchBytes(args));
      scratch.Zero();
      AttentionDecode(args, scratch.data(), nullptr, kAfter);
      CheckCuda(cudaDeviceSynchronize(), "decode");
    } else {
      AttentionPrefill(args, nullptr, kAfter);
    }
  }

  // k and v of the batch's tokens, which lie behind each other in a row of qkv.
  void WriteCache(const Batch& batch, const BFloat16* k, LayerWeights* layer) {
    constexpr size_t kBytes = kKvDim * sizeof(BFloat16);
    for (size_t s = 0; s < batch.sequences.size(); ++s) {
      const AttentionSequence& sequence = batch.sequences[s];
      for (int64_t i = 0; i < sequence.num_queries; ++i) {
        const int64_t position = sequence.num_keys - sequence.num_queries + i;
        const int64_t row =
            int64_t{tables_[s][position / kBlockSize]} * kBlockSize + position % kBlockSize;
        const BFloat16* from = k + (sequence.q_begin + i) * kQkvDim;
        CheckCuda(cudaMemcpyAsync(layer->k_pages.data() + row * kKvDim, from, kBytes,
                                  cudaMemcpyDeviceToDevice),
                  "cache");
        CheckCuda(cudaMemcpyAsync(layer->v_pages.data() + row * kKvDim, from + kKvDim, kBytes,
                                  cudaMemcpyDeviceToDevice),
                  "cache");
      }
    }
  }

  // x += o_proj(attended), then the norm of it.
  void AddProjection(const Mode& mode, LayerWeights* layer, DeviceVector<BFloat16>* attended,
                     DeviceVector<BFloat16>* x, DeviceVector<BFloat16>* normed, int64_t tokens) {
    DeviceVector<BFloat16> y(tokens * kHidden);
    if (mode.is_rollout) {
      Linear(mode, &layer->o, attended->data(), tokens, x->data(), y.data());
      CheckCuda(cudaMemcpyAsync(x->data(), y.data(), y.size() * sizeof(BFloat16),
                                cudaMemcpyDeviceToDevice),
                "residual");
      Norm(x, nullptr, &layer->post_norm, normed, tokens);
    } else {
      Linear(mode, &layer->o, attended->data(), tokens, nullptr, y.data());
      Norm(x, y.data(), &layer->post_norm, normed, tokens);
    }
    CheckCuda(cudaDeviceSynchronize(), "o_proj");
  }

  // x += experts(normed).
  void Experts(const Mode& mode, int64_t at, DeviceVector<BFloat16>* normed,
               DeviceVector<BFloat16>* x, Routing* routing, int64_t tokens) {
    LayerWeights& layer = *layers_[at];
    const int64_t rows = tokens * kSlots;
    const auto given = mode.replayed_ids == nullptr
                           ? nullptr
                           : std::make_unique<DeviceVector<int32_t>>((*mode.replayed_ids)[at]);
    MoeRouter({.config = {kExperts, kSlots, true},
               .x = normed->data(),
               .weight_ED = layer.router.data(),
               .num_tokens = tokens,
               .hidden = kHidden,
               .replayed_ids = given == nullptr ? nullptr : given->data(),
               .logits_TE = routing->logits.data(),
               .routing = routing->Get(),
               .counters = routing->counters.data()},
              nullptr, kAfter);
    DeviceVector<BFloat16> gathered(rows * kHidden), h(rows * kInter), y(rows * kHidden);
    MoeExpertsArgs args{.shape = {2 * kInter, kHidden, kGroup, 4},
                        .weight = layer.gate_up.packed.data(),
                        .num_experts = kExperts,
                        .num_tokens = tokens,
                        .num_slots = kSlots,
                        .routing = routing->Get(),
                        .x = normed->data(),
                        .y = h.data()};
    if (!mode.is_rollout) {
      // Rows of experts are rows of a table whose ids are the rows' tokens.
      Embedding({normed->data(), routing->row_token.data(), rows, kHidden, gathered.data()},
                nullptr, kAfter);
      args.x = gathered.data();
    }
    mode.is_rollout ? MoeGateUp(args, nullptr, kAfter) : MoeGateUpOfRows(args, nullptr, kAfter);
    args.shape = {kHidden, kInter, kGroup, 4};
    args.weight = layer.down.packed.data();
    args.x = h.data();
    args.y = y.data();
    mode.is_rollout ? MoeDown(args, nullptr, kAfter) : MoeDownOfRows(args, nullptr, kAfter);
    DeviceVector<BFloat16> out(tokens * kHidden);
    MoeCombine({.y = y.data(),
                .routing = routing->Get(),
                .num_tokens = tokens,
                .num_slots = kSlots,
                .hidden = kHidden,
                .residual = mode.is_rollout ? x->data() : nullptr,
                .out = out.data()},
               nullptr, kAfter);
    if (mode.is_rollout) {
      CheckCuda(cudaMemcpyAsync(x->data(), out.data(), out.size() * sizeof(BFloat16),
                                cudaMemcpyDeviceToDevice),
                "residual");
    } else {
      AddInPlace(x->data(), out.data(), tokens * kHidden, nullptr, kAfter);
    }
    CheckCuda(cudaDeviceSynchronize(), "experts");
  }

  // The vocabulary whole in a rollout, in slices in training.
  void Score(const Batch& batch, const Mode& mode, DeviceVector<BFloat16>* normed, Answer* answer) {
    const int64_t tokens = batch.num_tokens();
    const int64_t width = mode.is_rollout ? kVocab : 384;
    const size_t blocks = static_cast<size_t>(tokens * NumVocabBlocks(kVocab));
    DeviceVector<float> logits(tokens * kVocab), max(blocks), sum(blocks), moment(blocks);
    DeviceVector<float> target_x(tokens), row_max(tokens), row_sum(tokens);
    DeviceVector<float> logprobs(tokens), entropy(tokens);
    DeviceVector<float> inverse(std::vector<float>{1.0f / 0.8f});
    DeviceVector<int32_t> targets(batch.targets);
    const LogprobArgs args{
        targets.data(),
        inverse.data(),
        0,
        {max.data(), sum.data(), moment.data(), target_x.data(), row_max.data(), row_sum.data()}};
    for (int64_t begin = 0; begin < kVocab; begin += width) {
      const int64_t columns = std::min(width, kVocab - begin);
      LinearDecode({.type = WeightType::kBFloat16,
                    .shape = {.out_features = columns, .in_features = kHidden},
                    .weight = head_.data() + begin * kHidden,
                    .x = normed->data(),
                    .num_tokens = tokens,
                    .y_float = logits.data()},
                   nullptr, kAfter);
      LogprobBlocks({logits.data(), tokens, columns, begin, columns, kVocab}, args, nullptr,
                    kAfter);
    }
    LogprobMerge(args, tokens, kVocab, logprobs.data(), entropy.data(), nullptr);
    answer->logprobs = logprobs.Download();
    answer->entropy = entropy.Download();
  }

  DeviceVector<BFloat16> embedding_, head_, final_norm_;
  DeviceVector<float> cos_, sin_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<std::unique_ptr<DeviceVector<int32_t>>> device_tables_;
  std::vector<std::unique_ptr<LayerWeights>> layers_;
};

constexpr int kResponse = 24;
const std::vector<int> kPrompts = {70, 5, 1, 130, 33};

std::vector<int> Lengths() {
  std::vector<int> lengths;
  for (const int prompt : kPrompts) lengths.push_back(prompt + kResponse);
  return lengths;
}

int32_t TokenAt(size_t sequence, int position) {
  return static_cast<int32_t>(UniformDouble(9, sequence, static_cast<uint64_t>(position)) * kVocab);
}

// Tokens [begin, begin + counts[s]) of every sequence; the target of each is the next one.
Batch BatchOf(Model* model, const std::vector<int>& begin, const std::vector<int>& counts,
              bool is_paged) {
  Batch batch;
  for (size_t s = 0; s < begin.size(); ++s) {
    const int end = begin[s] + counts[s];
    batch.sequences.push_back({.q_begin = batch.num_tokens(),
                               .num_queries = counts[s],
                               .num_keys = end,
                               .block_table = is_paged ? model->Table(s) : nullptr,
                               .kv_begin = is_paged ? 0 : batch.num_tokens()});
    for (int at = begin[s]; at < end; ++at) {
      batch.token_ids.push_back(TokenAt(s, at));
      batch.positions.push_back(at);
      batch.targets.push_back(TokenAt(s, at + 1));
    }
    batch.max_queries = std::max(batch.max_queries, counts[s]);
    batch.max_keys = std::max(batch.max_keys, end);
  }
  return batch;
}

void Append(const Answer& from, int64_t row, Answer* to) {
  to->logprobs.push_back(from.logprobs[row]);
  to->entropy.push_back(from.entropy[row]);
  to->ids_by_layer.resize(kLayers);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto ids = from.ids_by_layer[layer].begin() + row * kSlots;
    to->ids_by_layer[layer].insert(to->ids_by_layer[layer].end(), ids, ids + kSlots);
  }
}

// The prompts in one pass, then a token of each sequence at a time; rows by sequence, then token.
Answer Rollout(Model* model) {
  const size_t num_sequences = kPrompts.size();
  const Mode mode{.is_rollout = true};
  std::vector<Answer> by_sequence(num_sequences);
  const Answer prompts =
      model->Forward(BatchOf(model, std::vector<int>(num_sequences, 0), kPrompts, true), mode);
  for (size_t s = 0, row = 0; s < num_sequences; ++s) {
    for (int i = 0; i < kPrompts[s]; ++i) Append(prompts, row++, &by_sequence[s]);
  }
  for (int step = 0; step < kResponse; ++step) {
    std::vector<int> begin;
    for (const int prompt : kPrompts) begin.push_back(prompt + step);
    const Answer answer =
        model->Forward(BatchOf(model, begin, std::vector<int>(num_sequences, 1), true), mode);
    for (size_t s = 0; s < num_sequences; ++s) Append(answer, s, &by_sequence[s]);
  }
  Answer all;
  for (const Answer& answer : by_sequence) {
    for (size_t row = 0; row < answer.logprobs.size(); ++row) Append(answer, row, &all);
  }
  return all;
}

Answer Training(Model* model, const Mode& mode) {
  return model->Forward(BatchOf(model, std::vector<int>(kPrompts.size(), 0), Lengths(), false),
                        mode);
}

void ExpectSameBits(const Answer& a, const Answer& b, const char* what) {
  EXPECT_EQ(CountDifferences(a.logprobs, b.logprobs), 0) << what;
  EXPECT_EQ(CountDifferences(a.entropy, b.entropy), 0) << what;
  EXPECT_EQ(a.ids_by_layer, b.ids_by_layer) << what;
}

TEST(ModelGpu, RolloutAndTrainingGiveTheSameBits) {
  QT_NEEDS_DEVICE();
  Model model(Lengths());
  const Answer rollout = Rollout(&model);
  for (const float logprob : rollout.logprobs) {
    ASSERT_LT(logprob, 0.0f);
    ASSERT_GT(logprob, -100.0f);
  }
  ExpectSameBits(Training(&model, {}), rollout, "training over INT4 weights");
  ExpectSameBits(Training(&model, {.is_plain = true}), rollout, "training over w'");
  ExpectSameBits(Training(&model, {.replayed_ids = &rollout.ids_by_layer}), rollout, "replayed");
}

TEST(ModelGpu, OneCodeMakesADifference) {
  QT_NEEDS_DEVICE();
  Model model(Lengths());
  const Answer before = Training(&model, {});
  model.ChangeOneCode();
  EXPECT_GT(CountDifferences(Training(&model, {}).logprobs, before.logprobs), 0);
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
