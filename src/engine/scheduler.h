// Continuous batching: which sequences run in the next step, and how many of their tokens.
//
// Every step first serves running sequences in order of admission (one token each when decoding,
// the rest of the prompt when a prefill was cut), then admits waiting ones while tokens, sequences
// and blocks last. When blocks run out the youngest running sequence is preempted: its blocks go,
// it returns to the head of the queue and is computed again from its tokens, with the same bits.
// Not thread-safe: the engine's thread owns it. Source: vLLM v1's scheduler.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/request.h"

namespace quatrain {

// A request on its way.
struct Sequence {
  Request request;
  std::vector<int32_t> token_ids;  // prompt + generated
  std::vector<float> logprobs;     // of the generated
  int64_t num_cached_tokens = 0;   // keys and values in the cache
  int64_t num_scheduled_tokens = 0;
  std::vector<int32_t> block_table;
  RoutingRecord routed_experts;  // of the cached tokens
  int64_t policy_version_min = 0, policy_version_max = 0;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_generated() const {
    return num_tokens() - static_cast<int64_t>(request.prompt_ids.size());
  }
};

struct SchedulerConfig {
  int64_t max_num_seqs = 256;             // running at once
  int64_t max_num_batched_tokens = 4096;  // per step
};

class Scheduler {
 public:
  Scheduler(const SchedulerConfig& config, KvCache& cache) : config_(config), cache_(cache) {}

  void Add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }
  bool HasUnfinished() const { return !waiting_.empty() || !running_.empty(); }

  // Sequences of the next step with num_scheduled_tokens set and blocks reserved; empty only when
  // nothing is unfinished.
  std::vector<Sequence*> Schedule();

  // Takes a finished sequence out and frees its blocks.
  std::unique_ptr<Sequence> Finish(Sequence* sequence);

  // Everything out, those that ran first, in order of admission; nothing is unfinished then.
  std::vector<std::unique_ptr<Sequence>> TakeAll();

  // Everything running goes back to the queue, nothing cached remains (the weights changed).
  void PreemptAll();

  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  bool TryServe(Sequence& sequence, int64_t budget);
  void PreemptLast();

  SchedulerConfig config_;
  KvCache& cache_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  int64_t num_preemptions_ = 0;
};

}  // namespace quatrain
