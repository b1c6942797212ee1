#include "rl/batcher.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/log.h"

namespace quatrain {
namespace {

// Loss weight of each sample of one optimizer step.
std::vector<double> LossWeights(std::span<const Sample> step, LossReduction reduction) {
  int64_t step_tokens = 0;
  for (const Sample& sample : step) step_tokens += sample.num_trained_tokens();
  std::vector<double> weights;
  for (const Sample& sample : step) {
    const int64_t sample_tokens = std::max<int64_t>(sample.num_trained_tokens(), 1);
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
  const size_t trained_begin = response_begin + static_cast<size_t>(sample.num_masked_tokens);
  batch.positions_T.resize(end);
  std::iota(batch.positions_T.end() - static_cast<std::ptrdiff_t>(length), batch.positions_T.end(),
            0);
  batch.cu_seqlens.push_back(static_cast<int64_t>(end));
  batch.loss_mask_T.resize(trained_begin, 0);
  batch.loss_mask_T.resize(end, 1);
  batch.advantages_T.resize(trained_begin, 0.0f);
  batch.advantages_T.resize(end, sample.advantage);
  batch.rollout_logprobs_T.resize(response_begin, 0.0f);
  append(batch.rollout_logprobs_T, completion.rollout_logprobs);
  batch.loss_weights_S.push_back(weight);
  batch.sample_ids_S.push_back(sample.id);
}

// A token without its experts would be trained on others than those that drew it: no padding.
void AppendRouting(const Sample& sample, RoutingRecord& routing) {
  const RoutingRecord& record = sample.completion.routed_experts;
  const int64_t rows = sample.num_tokens() - 1;
  if (record.num_tokens != rows ||
      record.size_bytes() != record.num_tokens * record.bytes_per_token()) {
    throw Error(ErrorCode::kData,
                {.where = fmt::format("sample {}", sample.id),
                 .what = "the rollout's routing record does not cover it",
                 .expected = fmt::format("the experts of {} tokens", rows),
                 .found = fmt::format("{}, in {} bytes", record.num_tokens, record.size_bytes()),
                 .todo = "Pass --no-use-rollout-routing-replay for data without routing"});
  }
  routing.Append(record);
}

// Indices of consecutive samples, `count` at a time.
std::vector<std::vector<int64_t>> PackByCount(size_t num_samples, int64_t count) {
  std::vector<std::vector<int64_t>> bins;
  for (size_t i = 0; i < num_samples; ++i) {
    if (bins.empty() || static_cast<int64_t>(bins.back().size()) == count) bins.emplace_back();
    bins.back().push_back(static_cast<int64_t>(i));
  }
  return bins;
}

// The samples of a step that run: those with a trained token, or all if there is none.
std::vector<size_t> Running(std::span<const Sample> step) {
  std::vector<size_t> running, all;
  for (size_t i = 0; i < step.size(); ++i) {
    all.push_back(i);
    if (step[i].num_trained_tokens() > 0) running.push_back(i);
  }
  return running.empty() ? all : running;
}

std::vector<TrainBatch> MakeMicroBatches(std::span<const Sample> step,
                                         const BatcherOptions& options) {
  const bool is_by_tokens = options.micro_batching == MicroBatching::kByTokens;
  const std::vector<size_t> running = Running(step);
  std::vector<int64_t> num_tokens;
  for (const size_t i : running) {
    num_tokens.push_back(step[i].num_tokens());
    if (is_by_tokens && step[i].num_tokens() > options.max_tokens_per_gpu) {
      Log().warn(
          "sample {} has {} tokens, more than --max-tokens-per-gpu {}: "
          "a micro-batch of its own",
          step[i].id, step[i].num_tokens(), options.max_tokens_per_gpu);
    }
  }
  const std::vector<double> weights = LossWeights(step, options.reduction);
  std::vector<TrainBatch> batches;
  for (const std::vector<int64_t>& indices :
       is_by_tokens ? BalanceByTokens(num_tokens, options.max_tokens_per_gpu)
                    : PackByCount(running.size(), options.micro_batch_size)) {
    std::vector<const Sample*> samples;
    std::vector<double> sample_weights;
    for (const int64_t i : indices) {
      const size_t place = running[static_cast<size_t>(i)];
      samples.push_back(&step[place]);
      sample_weights.push_back(weights[place]);
    }
    batches.push_back(MakeTrainBatch(samples, sample_weights, options.routing_replay));
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
  if (options.micro_batching == MicroBatching::kByTokens) {
    require_positive("--max-tokens-per-gpu", options.max_tokens_per_gpu);
  } else {
    require_positive("--micro-batch-size", options.micro_batch_size);
  }
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

namespace {

// k subsets under way, heaviest first; what the differencing method merges.
struct Partition {
  struct Subset {
    int64_t tokens = 0;
    std::vector<int64_t> indices;
  };
  std::vector<Subset> subsets;
  int64_t Spread() const { return subsets.front().tokens - subsets.back().tokens; }
};

// The heaviest of one joins the lightest of the other.
Partition Merge(const Partition& a, const Partition& b) {
  Partition merged = a;
  const size_t k = a.subsets.size();
  for (size_t i = 0; i < k; ++i) {
    const Partition::Subset& other = b.subsets[k - 1 - i];
    Partition::Subset& subset = merged.subsets[i];
    subset.tokens += other.tokens;
    subset.indices.insert(subset.indices.end(), other.indices.begin(), other.indices.end());
  }
  std::stable_sort(merged.subsets.begin(), merged.subsets.end(),
                   [](const auto& x, const auto& y) { return x.tokens > y.tokens; });
  return merged;
}

std::vector<std::vector<int64_t>> Difference(std::span<const int64_t> num_tokens, size_t k) {
  std::vector<Partition> partitions;
  for (size_t i = 0; i < num_tokens.size(); ++i) {
    Partition single;
    single.subsets.resize(k);
    single.subsets[0] = {num_tokens[i], {static_cast<int64_t>(i)}};
    partitions.push_back(std::move(single));
  }
  // Always the two widest, ties by age; a heap of them by (spread, age).
  const auto is_less = [](const std::pair<int64_t, size_t>& a,
                          const std::pair<int64_t, size_t>& b) {
    return a.first != b.first ? a.first < b.first : a.second > b.second;
  };
  std::vector<std::pair<int64_t, size_t>> heap;
  for (size_t i = 0; i < partitions.size(); ++i) heap.emplace_back(partitions[i].Spread(), i);
  std::make_heap(heap.begin(), heap.end(), is_less);
  const auto pop = [&] {
    std::pop_heap(heap.begin(), heap.end(), is_less);
    const size_t index = heap.back().second;
    heap.pop_back();
    return index;
  };
  while (heap.size() > 1) {
    const size_t a = pop(), b = pop();
    partitions.push_back(Merge(partitions[a], partitions[b]));
    partitions[a] = partitions[b] = {};
    heap.emplace_back(partitions.back().Spread(), partitions.size() - 1);
    std::push_heap(heap.begin(), heap.end(), is_less);
  }
  std::vector<std::vector<int64_t>> bins;
  for (Partition::Subset& subset : partitions[heap[0].second].subsets) {
    if (subset.indices.empty()) continue;
    std::sort(subset.indices.begin(), subset.indices.end());
    bins.push_back(std::move(subset.indices));
  }
  std::sort(bins.begin(), bins.end());
  return bins;
}

}  // namespace

std::vector<std::vector<int64_t>> BalanceByTokens(std::span<const int64_t> num_tokens,
                                                  int64_t max_tokens) {
  std::vector<std::vector<int64_t>> packed = PackByTokens(num_tokens, max_tokens);
  std::sort(packed.begin(), packed.end());
  if (packed.size() < 2) return packed;
  std::vector<std::vector<int64_t>> balanced = Difference(num_tokens, packed.size());
  const auto fits = [&](const std::vector<int64_t>& bin) {
    int64_t tokens = 0;
    for (const int64_t i : bin) tokens += num_tokens[static_cast<size_t>(i)];
    return tokens <= max_tokens;
  };
  const bool is_within = std::all_of(balanced.begin(), balanced.end(), fits);
  return is_within ? balanced : packed;
}

TrainBatch MakeTrainBatch(std::span<const Sample* const> samples, std::span<const double> weights,
                          RoutingReplay routing_replay) {
  QT_CHECK(samples.size() == weights.size());
  TrainBatch batch;
  batch.cu_seqlens.push_back(0);
  for (size_t i = 0; i < samples.size(); ++i) AppendSample(*samples[i], weights[i], batch);
  if (routing_replay == RoutingReplay::kOn) {
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

void CopyTokens(std::span<const std::vector<TrainBatch>> from,
                std::span<std::vector<TrainBatch>> to, std::vector<float> TrainBatch::*array) {
  struct Place {
    const TrainBatch* batch;
    size_t sequence;
  };
  std::map<int64_t, Place> places;
  for (const std::vector<TrainBatch>& step : from) {
    for (const TrainBatch& batch : step) {
      for (size_t s = 0; s < batch.sample_ids_S.size(); ++s)
        places[batch.sample_ids_S[s]] = {&batch, s};
    }
  }
  for (std::vector<TrainBatch>& step : to) {
    for (TrainBatch& batch : step) {
      (batch.*array).clear();
      for (const int64_t id : batch.sample_ids_S) {
        QT_CHECK(places.contains(id), "sample {} is not in both cuts", id);
        const auto& [source, sequence] = places[id];
        const auto begin = (source->*array).begin();
        (batch.*array)
            .insert((batch.*array).end(), begin + source->cu_seqlens[sequence],
                    begin + source->cu_seqlens[sequence + 1]);
      }
      QT_CHECK(static_cast<int64_t>((batch.*array).size()) == batch.num_tokens());
    }
  }
}

}  // namespace quatrain
