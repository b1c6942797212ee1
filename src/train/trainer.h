// Trainer: log-probabilities of a batch, and one optimizer step from its micro-batches.
//
//   Trainer trainer(ctx, decoder, parameters, {...});
//   trainer.ScoreOld(batches);  // before the first of several steps: old_logprobs_T
//   TrainStepResult result = trainer.Step(batches, lr, nullptr);
//
// The forward is the engine's (models/decoder.h) over the same weights, so the trainer's
// log-probabilities equal the rollout's bit for bit when both run the same weights, and those of a
// step's own forward equal those that ScoreOld finds before it. Gradients do not depend on how a
// step is cut into micro-batches beyond FP32 rounding. Not thread-safe.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "models/decoder.h"
#include "ops/logprob_ops.h"
#include "train/parameter.h"
#include "train/policy_loss.h"
#include "train/train_batch.h"

namespace quatrain {

struct TrainerConfig {
  PolicyLossConfig loss;
  float temperature = 1.0f;  // logits are divided by it, as when the tokens were sampled
  int64_t trace_bytes = 0;   // of a micro-batch's forward that the backward need not run again
};

struct TrainStepResult {
  PolicyLossMetrics loss;
  double grad_norm = 0.0;  // before clipping
  AdamWStats optimizer;
  // The router of the training forward against the replayed record; nothing without one.
  RoutingOverlap routing;
  double forward_backward_seconds = 0.0;
  double optimizer_seconds = 0.0;
};

// Log-probabilities aligned as in train_batch.h ([T], 0 where the mask is 0) and, if asked for,
// entropies.
struct BatchLogprobs {
  std::vector<float> logprobs_T;
  std::vector<float> entropy_T;
};
// Whose experts a forward takes where the batch has a routing record.
enum class RoutingSource {
  kRecord,  // the rollout's (R3): probabilities from the router at hand, which gets its gradient
  kRouter,  // the model's own, as the reference model does
};

BatchLogprobs ScoreBatch(const OpContext& ctx, const Decoder& decoder, const TrainBatch& batch,
                         float temperature, Entropy entropy,
                         RoutingSource routing = RoutingSource::kRecord);

class Trainer {
 public:
  // Borrows decoder (over the trained table) and parameters. Error kUsage from
  // CheckPolicyLossConfig.
  Trainer(const OpContext& ctx, const Decoder& decoder, Parameters& parameters,
          const TrainerConfig& config);

  // Of the gradients held now.
  int64_t gradient_bytes();

  // Fills old_logprobs_T with the current weights. Error kData naming the sample where a number is
  // not finite.
  void ScoreOld(std::span<TrainBatch> batches) const;

  // Forward and backward of every micro-batch, then one optimizer step. A batch without
  // old_logprobs_T gets those of this forward: the weights do not change before the last one.
  // `progress` is called before each micro-batch with the number of those done. Error kData naming
  // step, tensor and sample where a number is not finite; no weight has changed then.
  TrainStepResult Step(std::span<TrainBatch> batches, double lr,
                       const std::function<void(size_t num_done)>& progress);

 private:
  std::vector<float> ScoreOf(const TrainBatch& batch) const;
  at::Tensor ForwardOf(const TrainBatch& batch, const ForwardBatch& forward,
                       DecoderTape* tape) const;
  Parameters::StepResult StepOrName(std::span<const TrainBatch> batches, double lr);
  PolicyLossSums Accumulate(TrainBatch& batch, RoutingOverlap* routing);

  OpContext ctx_;
  const Decoder& decoder_;
  Parameters& parameters_;
  TrainerConfig config_;
  Gradients gradients_;
};

}  // namespace quatrain
