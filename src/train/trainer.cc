#include "train/trainer.h"

#include <cmath>

#include "base/metrics.h"

namespace quatrain {
namespace {

// What the decoder runs for a TrainBatch: every token but the last of each sequence, and which of
// its rows predict a trained token.
struct TrainForward {
  ForwardBatch batch;
  RoutedExperts replay;          // what batch.replay points to, if it is set
  std::vector<int64_t> rows;     // R, rows of the forward
  std::vector<int32_t> targets;  // R, the tokens they predict
  std::vector<int64_t> tokens;   // R, their place in the TrainBatch
};

// Fills `forward` in place, since its batch may point into it.
void FillForward(const TrainBatch& train, RoutingSource routing, TrainForward& forward) {
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
  if (train.routed_experts.empty() || routing == RoutingSource::kRouter) return;
  forward.replay = train.routed_experts.Expand();
  batch.replay = &forward.replay;
}

template <class T>
std::vector<T> Part(const std::vector<T>& values, int64_t begin, int64_t end) {
  if (values.empty()) return {};
  return {values.begin() + begin, values.begin() + end};
}

// One sequence of a batch, as a batch.
TrainBatch SequenceOf(const TrainBatch& batch, int64_t s) {
  const auto at = static_cast<size_t>(s);
  const int64_t begin = batch.cu_seqlens[at], end = batch.cu_seqlens[at + 1];
  TrainBatch one;
  one.token_ids_T = Part(batch.token_ids_T, begin, end);
  one.positions_T = Part(batch.positions_T, begin, end);
  one.cu_seqlens = {0, end - begin};
  one.loss_mask_T = Part(batch.loss_mask_T, begin, end);
  one.advantages_T = Part(batch.advantages_T, begin, end);
  one.rollout_logprobs_T = Part(batch.rollout_logprobs_T, begin, end);
  one.old_logprobs_T = Part(batch.old_logprobs_T, begin, end);
  one.ref_logprobs_T = Part(batch.ref_logprobs_T, begin, end);
  one.loss_weights_S = {batch.loss_weights_S[at]};
  one.sample_ids_S = {batch.sample_ids_S[at]};
  if (batch.routed_experts.empty()) return one;
  one.routed_experts = batch.routed_experts;
  // The last token of every sequence before this one has no row.
  const int64_t bytes = batch.routed_experts.bytes_per_token(), first = begin - s;
  one.routed_experts.num_tokens = end - begin - 1;
  one.routed_experts.ids_TLK =
      Part(batch.routed_experts.ids_TLK, first * bytes, (first + end - begin - 1) * bytes);
  return one;
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

// A failure of a batch, whose message names step, tensor or row: a second look, sample by sample,
// names the sample for which `run` throws as well. To be called where `error` is caught.
[[noreturn]] void ThrowNamed(const Error& error, std::span<const TrainBatch> batches,
                             const std::function<void(const TrainBatch& one)>& run) {
  if (error.code() != ErrorCode::kData) throw;
  for (const TrainBatch& batch : batches) {
    for (int64_t s = 0; s < batch.num_sequences(); ++s) {
      try {
        run(SequenceOf(batch, s));
      } catch (const Error&) {  // the same failure, of this sample alone
        throw Error(
            error.code(),
            fmt::format("sample {}: {}", batch.sample_ids_S[static_cast<size_t>(s)], error.what()));
      }
    }
  }
  throw Error(error.code(), fmt::format("no sample alone, but their sum: {}", error.what()));
}

}  // namespace

BatchLogprobs ScoreBatch(const OpContext& ctx, const Decoder& decoder, const TrainBatch& batch,
                         float temperature, Entropy entropy, RoutingSource routing) {
  TrainForward forward;
  FillForward(batch, routing, forward);
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

int64_t Trainer::gradient_bytes() {
  int64_t bytes = 0;
  for (size_t i = 0; i < gradients_.size(); ++i) {
    const int index = static_cast<int>(i);
    if (gradients_.IsTouched(index)) bytes += static_cast<int64_t>(gradients_.Of(index).nbytes());
  }
  return bytes;
}

std::vector<float> Trainer::ScoreOf(const TrainBatch& batch) const {
  return ScoreBatch(ctx_, decoder_, batch, config_.temperature, Entropy::kSkip).logprobs_T;
}

void Trainer::ScoreOld(std::span<TrainBatch> batches) const {
  for (TrainBatch& batch : batches) {
    try {
      batch.old_logprobs_T = ScoreOf(batch);
    } catch (const Error& error) {
      ThrowNamed(error, {&batch, 1}, [this](const TrainBatch& one) { ScoreOf(one); });
    }
  }
}

at::Tensor Trainer::ForwardOf(const TrainBatch& batch, const ForwardBatch& forward,
                              DecoderTape* tape) const {
  try {
    return decoder_.ForwardWithTape(ctx_, forward, tape);
  } catch (const Error& error) {
    ThrowNamed(error, {&batch, 1}, [this](const TrainBatch& one) { ScoreOf(one); });
  }
}

PolicyLossSums Trainer::Accumulate(TrainBatch& batch, RoutingOverlap* routing) {
  TrainForward forward;
  FillForward(batch, RoutingSource::kRecord, forward);
  DecoderTape tape{.trace_bytes = config_.trace_bytes};
  RoutedExperts own;
  if (forward.batch.replay != nullptr) forward.batch.record = &own;
  const at::Tensor hidden_TD = ForwardOf(batch, forward.batch, &tape);
  forward.batch.record = nullptr;
  if (forward.batch.replay != nullptr) routing->Add(CompareRouting(own, forward.replay));
  const at::Tensor rows_RD = PredictingRows(forward, hidden_TD);
  const float inv_temperature = 1.0f / config_.temperature;
  const TokenLogprobs scored = LmHeadLogprobs(ctx_, rows_RD, decoder_.LmHead(), forward.targets,
                                              inv_temperature, Entropy::kCompute);
  const std::vector<float> logprobs_T = Spread(forward, scored.logprobs, batch.num_tokens());
  if (batch.old_logprobs_T.empty()) batch.old_logprobs_T = logprobs_T;
  const PolicyLossResult loss = PolicyLoss(
      batch, logprobs_T, Spread(forward, scored.entropy, batch.num_tokens()), config_.loss);

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

Parameters::StepResult Trainer::StepOrName(std::span<const TrainBatch> batches, double lr) {
  try {
    return parameters_.Step(ctx_, gradients_, lr);
  } catch (const Error& error) {
    if (std::isfinite(GlobalNorm(ctx_, gradients_))) throw;
    RoutingOverlap ignored;
    ThrowNamed(error, batches, [&](TrainBatch one) {
      gradients_.Clear();
      Accumulate(one, &ignored);
      if (!std::isfinite(GlobalNorm(ctx_, gradients_))) throw error;
    });
  }
}

TrainStepResult Trainer::Step(std::span<TrainBatch> batches, double lr,
                              const std::function<void(size_t num_done)>& progress) {
  TrainStepResult result;
  Timer timer;
  gradients_.Clear();
  PolicyLossSums sums;
  for (size_t i = 0; i < batches.size(); ++i) {
    if (progress) progress(i);
    sums.Add(Accumulate(batches[i], &result.routing));
  }
  result.loss = sums.Finish();
  result.forward_backward_seconds = timer.seconds();
  timer.Restart();
  const Parameters::StepResult step = StepOrName(batches, lr);
  result.grad_norm = step.grad_norm;
  result.optimizer = step.stats;
  result.optimizer_seconds = timer.seconds();
  return result;
}

}  // namespace quatrain
