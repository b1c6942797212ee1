// The rollout engine: continuous batching over one Decoder, which may be the one that trains.
//
//   Engine engine(ctx, decoder, {});
//   engine.Add({.id = 0, .prompt_ids = ids, .sampling = {.temperature = 0.8f, .seed = 1}});
//   while (engine.HasUnfinished()) for (RequestOutput& output : engine.Step()) ...
//
// A sequence's tokens and log-probabilities depend on its prompt, its sampling parameters and the
// weights; not on what else runs, the cache's size, preemptions or threads. Not thread-safe: one
// thread owns it.
#pragma once

#include <memory>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "models/decoder.h"

namespace quatrain {

struct EngineConfig {
  SchedulerConfig scheduler;
  int64_t block_size = 16;  // tokens
  int64_t kv_cache_tokens =
      0;  // 0: what max_num_seqs sequences of the model's context need, at most kv_cache_bytes
  int64_t kv_cache_bytes = int64_t{1} << 30;
};

struct EngineStats {
  int64_t num_steps = 0;
  int64_t num_prompt_tokens = 0;  // prefilled (again after a preemption)
  int64_t num_generated_tokens = 0;
  int64_t num_preemptions = 0;
};

class Engine {
 public:
  // Borrows the decoder. Error kResource if the cache cannot be had.
  Engine(const OpContext& ctx, const Decoder& decoder, const EngineConfig& config);

  // Queues a request. Error kData: empty prompt, a prompt that leaves no room in the context, token
  // ids outside the vocabulary; kResource: a request longer than the whole cache. max_new_tokens is
  // cut to the context.
  void Add(Request request);
  bool HasUnfinished() const { return scheduler_.HasUnfinished(); }

  // One forward pass; returns the requests that it finished, in order of admission.
  std::vector<RequestOutput> Step();

  // Stops everything unfinished: what was generated so far, without routing, for Request's resumed_
  // fields. A request resumed under the same weights generates the same tokens as one never
  // stopped.
  std::vector<RequestOutput> TakeUnfinished();

  // Weights changed in place: cached keys and values are dropped (running sequences are computed
  // again), and later tokens carry the new version.
  void UpdateWeights(int64_t policy_version);

  EngineStats stats() const;

 private:
  void RunModel(const std::vector<Sequence*>& scheduled);
  void KeepRouting(const std::vector<Sequence*>& scheduled, const RoutedExperts& record);
  void SampleNext(const std::vector<Sequence*>& sequences, const at::Tensor& hidden_SD);
  RequestOutput OutputOf(std::unique_ptr<Sequence> sequence, FinishReason reason) const;

  OpContext ctx_;
  const Decoder& decoder_;
  EngineConfig config_;
  KvCache cache_;
  Scheduler scheduler_;
  int64_t policy_version_ = 0;
  EngineStats stats_;
};

}  // namespace quatrain
