#include "train/trainer.h"

#include "base/metrics.h"

namespace quatrain {
namespace {

// What the decoder runs for a TrainBatch: every token but the last of each sequence, and which of
// its rows predict a trained token.
struct TrainForward {
  ForwardBatch batch;
  std::vector<int64_t> rows;     // R, rows of the forward
  std::vector<int32_t> targets;  // R, the tokens they predict
  std::vector<int64_t> tokens;   // R, their place in the TrainBatch
};

TrainForward ForwardOf(const TrainBatch& train) {
  TrainForward forward;
  ForwardBatch& batch = forward.batch;
  for (int64_t s = 0; s < train.num_sequences(); ++s) {
    const int64_t begin = train.cu_seqlens[static_cast<size_t>(s)];
    const int64_t end = train.cu_seqlens[static_cast<size_t>(s) + 1];
    AttentionSequence sequence;
    sequence.q_begin = sequence.kv_begin = batch.num_tokens();
    sequence.num_queries = sequence.num_keys = end - begin - 1;
    batch.sequences.push_back(sequence);
    for (int64_t token = begin; token + 1 < end; ++token) {
      const auto next = static_cast<size_t>(token + 1);
      if (train.loss_mask_T[next] != 0) {
        forward.rows.push_back(batch.num_tokens());
        forward.targets.push_back(train.token_ids_T[next]);
        forward.tokens.push_back(token + 1);
      }
      batch.token_ids.push_back(train.token_ids_T[static_cast<size_t>(token)]);
      batch.positions.push_back(train.positions_T[static_cast<size_t>(token)]);
    }
  }
  if (!train.routed_experts.empty()) batch.replay = &train.routed_experts;
  return forward;
}

at::Tensor PredictingRows(const TrainForward& forward, const at::Tensor& hidden_TD) {
  return hidden_TD.index_select(0, at::tensor(forward.rows, at::kLong));
}

// [R] -> [T], zeros elsewhere.
std::vector<float> Spread(const TrainForward& forward, const std::vector<float>& values,
                          int64_t num_tokens) {
  if (values.empty() && !forward.rows.empty()) return {};
  std::vector<float> spread(static_cast<size_t>(num_tokens), 0.0f);
  for (size_t r = 0; r < forward.tokens.size(); ++r) {
    spread[static_cast<size_t>(forward.tokens[r])] = values[r];
  }
  return spread;
}

// [T] -> [R].
std::vector<float> Pick(const TrainForward& forward, const std::vector<float>& values_T) {
  std::vector<float> picked;
  if (values_T.empty()) return picked;
  for (const int64_t token : forward.tokens) picked.push_back(values_T[static_cast<size_t>(token)]);
  return picked;
}

}  // namespace

BatchLogprobs ScoreBatch(const OpContext& ctx, const Decoder& decoder, const TrainBatch& batch,
                         float temperature, Entropy entropy) {
  const TrainForward forward = ForwardOf(batch);
  const at::Tensor rows_RD = PredictingRows(forward, decoder.Forward(ctx, forward.batch));
  const TokenLogprobs scored =
      LmHeadLogprobs(ctx, rows_RD, decoder.LmHead(), forward.targets, 1.0f / temperature, entropy);
  return {Spread(forward, scored.logprobs, batch.num_tokens()),
          entropy == Entropy::kCompute ? Spread(forward, scored.entropy, batch.num_tokens())
                                       : std::vector<float>()};
}

Trainer::Trainer(const OpContext& ctx, const Decoder& decoder, Parameters& parameters,
                 const TrainerConfig& config)
    : ctx_(ctx),
      decoder_(decoder),
      parameters_(parameters),
      config_(config),
      gradients_(decoder.weights()) {
  CheckPolicyLossConfig(config.loss);
}

void Trainer::ScoreOld(std::span<TrainBatch> batches) const {
  for (TrainBatch& batch : batches) {
    batch.old_logprobs_T =
        ScoreBatch(ctx_, decoder_, batch, config_.temperature, Entropy::kSkip).logprobs_T;
  }
}

PolicyLossSums Trainer::Accumulate(const TrainBatch& batch) {
  const TrainForward forward = ForwardOf(batch);
  DecoderTape tape;
  const at::Tensor hidden_TD = decoder_.ForwardWithTape(ctx_, forward.batch, &tape);
  const at::Tensor rows_RD = PredictingRows(forward, hidden_TD);
  const float inv_temperature = 1.0f / config_.temperature;
  const TokenLogprobs scored = LmHeadLogprobs(ctx_, rows_RD, decoder_.LmHead(), forward.targets,
                                              inv_temperature, Entropy::kCompute);
  const PolicyLossResult loss =
      PolicyLoss(batch, Spread(forward, scored.logprobs, batch.num_tokens()),
                 Spread(forward, scored.entropy, batch.num_tokens()), config_.loss);

  const std::vector<float> dlogprobs = Pick(forward, loss.dlogprobs_T);
  const std::vector<float> dentropy = Pick(forward, loss.dentropy_T);
  const at::Tensor drows_RD = EmptyTensor(rows_RD.sizes(), at::kFloat);
  LmHeadLogprobsGrad(ctx_, {.x_RD = rows_RD,
                            .lm_head = decoder_.LmHead(),
                            .targets = forward.targets,
                            .inv_temperature = inv_temperature,
                            .dlogprobs = dlogprobs,
                            .dentropy = dentropy,
                            .dx_RD = drows_RD,
                            .dlm_head_VD = gradients_.Of(decoder_.lm_head_index())});
  at::Tensor dhidden_TD = ZeroTensor(hidden_TD.sizes(), at::kFloat);
  dhidden_TD.index_copy_(0, at::tensor(forward.rows, at::kLong), drows_RD);
  decoder_.Backward(ctx_, forward.batch, tape, dhidden_TD, gradients_);
  return loss.sums;
}

TrainStepResult Trainer::Step(std::span<const TrainBatch> batches, double lr,
                              const std::function<void(size_t num_done)>& progress) {
  TrainStepResult result;
  Timer timer;
  gradients_.Clear();
  PolicyLossSums sums;
  for (size_t i = 0; i < batches.size(); ++i) {
    if (progress) progress(i);
    sums.Add(Accumulate(batches[i]));
  }
  result.loss = sums.Finish();
  result.forward_backward_seconds = timer.seconds();
  timer.Restart();
  const Parameters::StepResult step = parameters_.Step(ctx_, gradients_, lr);
  result.grad_norm = step.grad_norm;
  result.optimizer = step.stats;
  result.optimizer_seconds = timer.seconds();
  return result;
}

}  // namespace quatrain
