#include "rl/batcher.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/log.h"

namespace quatrain {
namespace {

// Loss weight of each sample of one optimizer step.
std::vector<double> LossWeights(std::span<const Sample> step, LossReduction reduction) {
  int64_t step_tokens = 0;
  for (const Sample& sample : step) step_tokens += sample.response_length();
  std::vector<double> weights;
  for (const Sample& sample : step) {
    const int64_t sample_tokens = std::max<int64_t>(sample.response_length(), 1);
    const double denominator =
        reduction == LossReduction::kTokenMean
            ? static_cast<double>(std::max<int64_t>(step_tokens, 1))
            : static_cast<double>(sample_tokens) * static_cast<double>(step.size());
    weights.push_back(1.0 / denominator);
  }
  return weights;
}

void AppendSample(const Sample& sample, double weight, TrainBatch& batch) {
  const Completion& completion = sample.completion;
  QT_CHECK(completion.rollout_logprobs.size() == completion.token_ids.size(),
           "sample {}: {} log-probabilities for {} tokens", sample.id,
           completion.rollout_logprobs.size(), completion.token_ids.size());
  QT_CHECK(!sample.prompt_ids.empty(), "sample {} has no prompt", sample.id);
  auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  append(batch.token_ids_T, sample.prompt_ids);
  append(batch.token_ids_T, completion.token_ids);
  const auto length = static_cast<size_t>(sample.num_tokens());
  const size_t end = batch.token_ids_T.size();
  const size_t response_begin = end - completion.token_ids.size();
  batch.positions_T.resize(end);
  std::iota(batch.positions_T.end() - static_cast<std::ptrdiff_t>(length), batch.positions_T.end(),
            0);
  batch.cu_seqlens.push_back(static_cast<int64_t>(end));
  batch.loss_mask_T.resize(response_begin, 0);
  batch.loss_mask_T.resize(end, 1);
  batch.advantages_T.resize(response_begin, 0.0f);
  batch.advantages_T.resize(end, sample.advantage);
  batch.rollout_logprobs_T.resize(response_begin, 0.0f);
  append(batch.rollout_logprobs_T, completion.rollout_logprobs);
  batch.loss_weights_S.push_back(weight);
  batch.sample_ids_S.push_back(sample.id);
}

void AppendRouting(const Sample& sample, RoutedExperts& routing) {
  const RoutedExperts& record = sample.completion.routed_experts;
  QT_CHECK(
      record.num_tokens == sample.num_tokens() - 1 &&
          static_cast<int64_t>(record.ids_TLK.size()) == record.num_tokens * record.ids_per_token(),
      "sample {}: routing of {} tokens for {}", sample.id, record.num_tokens, sample.num_tokens());
  QT_CHECK(routing.empty() || routing.ids_per_token() == record.ids_per_token());
  routing.num_tokens += record.num_tokens;
  routing.num_moe_layers = record.num_moe_layers;
  routing.num_experts_per_tok = record.num_experts_per_tok;
  routing.ids_TLK.insert(routing.ids_TLK.end(), record.ids_TLK.begin(), record.ids_TLK.end());
}

std::vector<TrainBatch> MakeMicroBatches(std::span<const Sample> step,
                                         const BatcherOptions& options) {
  std::vector<int64_t> num_tokens;
  for (const Sample& sample : step) {
    num_tokens.push_back(sample.num_tokens());
    if (sample.num_tokens() > options.max_tokens_per_gpu) {
      Log().warn(
          "sample {} has {} tokens, more than --max-tokens-per-gpu {}: "
          "a micro-batch of its own",
          sample.id, sample.num_tokens(), options.max_tokens_per_gpu);
    }
  }
  const std::vector<double> weights = LossWeights(step, options.reduction);
  std::vector<TrainBatch> batches;
  for (const std::vector<int64_t>& indices : PackByTokens(num_tokens, options.max_tokens_per_gpu)) {
    std::vector<const Sample*> samples;
    std::vector<double> sample_weights;
    for (const int64_t i : indices) {
      samples.push_back(&step[static_cast<size_t>(i)]);
      sample_weights.push_back(weights[static_cast<size_t>(i)]);
    }
    batches.push_back(MakeTrainBatch(samples, sample_weights));
  }
  return batches;
}

void CheckOptions(size_t num_samples, const BatcherOptions& options) {
  auto require_positive = [](const char* flag, int64_t value) {
    if (value > 0) return;
    throw Error(ErrorCode::kUsage, {.where = flag,
                                    .what = "value out of range",
                                    .expected = "a whole number above 0",
                                    .found = fmt::format("{}", value)});
  };
  require_positive("--max-tokens-per-gpu", options.max_tokens_per_gpu);
  require_positive("--global-batch-size", options.global_batch_size);
  if (num_samples % static_cast<size_t>(options.global_batch_size) == 0) return;
  throw Error(ErrorCode::kUsage,
              {.where = "--global-batch-size",
               .what = "a rollout is no whole number of optimizer steps",
               .expected = fmt::format("a divisor of {} samples (--rollout-batch-size times "
                                       "--n-samples-per-prompt)",
                                       num_samples),
               .found = fmt::format("{}", options.global_batch_size)});
}

}  // namespace

std::vector<std::vector<int64_t>> PackByTokens(std::span<const int64_t> num_tokens,
                                               int64_t max_tokens) {
  std::vector<int64_t> order(num_tokens.size());
  std::iota(order.begin(), order.end(), 0);
  auto tokens_of = [&](int64_t i) { return num_tokens[static_cast<size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return tokens_of(a) > tokens_of(b); });
  std::vector<std::vector<int64_t>> bins;
  std::vector<int64_t> room;
  for (const int64_t i : order) {
    const auto fit =
        std::find_if(room.begin(), room.end(), [&](int64_t left) { return left >= tokens_of(i); });
    const auto bin = static_cast<size_t>(fit - room.begin());
    if (fit == room.end()) {
      room.push_back(max_tokens);
      bins.emplace_back();
    }
    room[bin] -= tokens_of(i);
    bins[bin].push_back(i);
  }
  for (std::vector<int64_t>& bin : bins) std::sort(bin.begin(), bin.end());
  return bins;
}

TrainBatch MakeTrainBatch(std::span<const Sample* const> samples, std::span<const double> weights) {
  QT_CHECK(samples.size() == weights.size());
  TrainBatch batch;
  batch.cu_seqlens.push_back(0);
  for (size_t i = 0; i < samples.size(); ++i) AppendSample(*samples[i], weights[i], batch);
  const bool is_recorded = std::all_of(samples.begin(), samples.end(), [](const Sample* sample) {
    return !sample->completion.routed_experts.empty();
  });
  if (is_recorded) {
    for (const Sample* sample : samples) AppendRouting(*sample, batch.routed_experts);
  }
  return batch;
}

std::vector<std::vector<TrainBatch>> MakeTrainSteps(std::span<const Sample> samples,
                                                    const BatcherOptions& options) {
  CheckOptions(samples.size(), options);
  const auto step_size = static_cast<size_t>(options.global_batch_size);
  std::vector<std::vector<TrainBatch>> steps;
  for (size_t begin = 0; begin < samples.size(); begin += step_size) {
    steps.push_back(MakeMicroBatches(samples.subspan(begin, step_size), options));
  }
  return steps;
}

}  // namespace quatrain
