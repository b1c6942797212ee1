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

enum class MicroBatching {
  kByTokens,  // --use-dynamic-batch-size
  kByCount,   // --micro-batch-size: samples in their order, the last batch may be smaller
};

// --use-rollout-routing-replay.
enum class RoutingReplay {
  kOff,
  kOn,  // every sample must bring the routing of all of its tokens but the last
};

struct BatcherOptions {
  int64_t global_batch_size = 0;  // samples an optimizer step
  MicroBatching micro_batching = MicroBatching::kByTokens;
  int64_t max_tokens_per_gpu = 0;  // kByTokens: prompt + response tokens a micro-batch
  int64_t micro_batch_size = 1;    // kByCount: samples a micro-batch
  LossReduction reduction = LossReduction::kSampleMean;
  RoutingReplay routing_replay = RoutingReplay::kOff;
};

// First fit decreasing: the longest first (ties: the lower index), each into the first micro-batch
// with room. Returns indices into `num_tokens`, ascending within a micro-batch. A sample above the
// budget gets a micro-batch of its own.
std::vector<std::vector<int64_t>> PackByTokens(std::span<const int64_t> num_tokens,
                                               int64_t max_tokens);

// As many micro-batches as PackByTokens makes, with loads as equal as the largest differencing
// method of Karmarkar and Karp (1982) finds; PackByTokens' own where that exceeds the budget.
// Micro-batches in the order of their first samples, indices ascending. A function of the lengths
// alone.
std::vector<std::vector<int64_t>> BalanceByTokens(std::span<const int64_t> num_tokens,
                                                  int64_t max_tokens);

// Joins samples to one packed batch, in order, each with its weight. Under RoutingReplay::kOn their
// routing records are joined too; Error kData naming a sample whose record lacks rows.
TrainBatch MakeTrainBatch(std::span<const Sample* const> samples, std::span<const double> weights,
                          RoutingReplay routing_replay);

// The micro-batches of every optimizer step, steps in the order of the samples. Logs a warning
// naming samples above the token budget. Error kUsage if the samples are no whole number of steps
// or an option is not positive. Samples all of whose tokens are masked count in the weights of the
// others, but run only if a step has no other.
std::vector<std::vector<TrainBatch>> MakeTrainSteps(std::span<const Sample> samples,
                                                    const BatcherOptions& options);

// Copies one per-token array of each sample's tokens between two cuts of one rollout.
void CopyTokens(std::span<const std::vector<TrainBatch>> from,
                std::span<std::vector<TrainBatch>> to, std::vector<float> TrainBatch::*array);

}  // namespace quatrain
