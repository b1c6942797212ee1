// From the samples of a rollout to the micro-batches of its optimizer steps.
//
// The weight of every sample in the loss is fixed by the whole step before the step is cut, so
// gradients do not depend on the cut beyond FP32 rounding. Everything here is deterministic.
#pragma once

#include <span>
#include <vector>

#include "rl/sample.h"
#include "train/train_batch.h"

namespace quatrain {

enum class LossReduction {
  kSampleMean,  // mean over samples of the mean over their response tokens
  kTokenMean,   // --calculate-per-token-loss: mean over all response tokens of the step
};

struct BatcherOptions {
  int64_t global_batch_size = 0;   // samples an optimizer step
  int64_t max_tokens_per_gpu = 0;  // prompt + response tokens a micro-batch
  LossReduction reduction = LossReduction::kSampleMean;
};

// First fit decreasing: the longest first (ties: the lower index), each into the first micro-batch
// with room. Returns indices into `num_tokens`, ascending within a micro-batch. A sample above the
// budget gets a micro-batch of its own.
std::vector<std::vector<int64_t>> PackByTokens(std::span<const int64_t> num_tokens,
                                               int64_t max_tokens);

// Joins samples to one packed batch, in order, each with its weight. Routing records are kept if
// all samples have one.
TrainBatch MakeTrainBatch(std::span<const Sample* const> samples, std::span<const double> weights);

// The micro-batches of every optimizer step, steps in the order of the samples. Logs a warning
// naming samples above the token budget. Error kUsage if the samples are no whole number of steps
// or an option is not positive.
std::vector<std::vector<TrainBatch>> MakeTrainSteps(std::span<const Sample> samples,
                                                    const BatcherOptions& options);

}  // namespace quatrain
