#include "engine/scheduler.h"

#include <algorithm>

namespace quatrain {

bool Scheduler::TryServe(Sequence& sequence, int64_t budget) {
  const int64_t wanted = sequence.num_tokens() - sequence.num_cached_tokens;
  const int64_t count = std::min(wanted, budget);
  if (!cache_.TryReserve(sequence.num_cached_tokens + count, &sequence.block_table)) return false;
  sequence.num_scheduled_tokens = count;
  return true;
}

void Scheduler::PreemptLast() {
  std::unique_ptr<Sequence> last = std::move(running_.back());
  running_.pop_back();
  cache_.Release(&last->block_table);
  last->num_cached_tokens = 0;
  last->num_scheduled_tokens = 0;
  last->routed_experts.Clear();
  waiting_.push_front(std::move(last));
  ++num_preemptions_;
}

std::vector<Sequence*> Scheduler::Schedule() {
  std::vector<Sequence*> scheduled;
  int64_t budget = config_.max_num_batched_tokens;
  bool has_preempted = false;
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    while (!TryServe(*running_[i], budget)) {
      has_preempted = true;
      const bool is_self = i + 1 == running_.size();
      PreemptLast();
      if (is_self) break;
    }
    if (i >= running_.size()) break;
    budget -= running_[i]->num_scheduled_tokens;
    scheduled.push_back(running_[i].get());
  }
  // After a preemption nobody is admitted in this step: the blocks just freed are for those who
  // run.
  while (!has_preempted && !waiting_.empty() && budget > 0 &&
         static_cast<int64_t>(running_.size()) < config_.max_num_seqs) {
    if (!TryServe(*waiting_.front(), budget)) break;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    budget -= running_.back()->num_scheduled_tokens;
    scheduled.push_back(running_.back().get());
  }
  QT_CHECK(!scheduled.empty() || !HasUnfinished(), "no sequence fits the KV cache");
  return scheduled;
}

std::unique_ptr<Sequence> Scheduler::Finish(Sequence* sequence) {
  const auto found =
      std::find_if(running_.begin(), running_.end(),
                   [&](const std::unique_ptr<Sequence>& other) { return other.get() == sequence; });
  QT_CHECK(found != running_.end(), "sequence is not running");
  std::unique_ptr<Sequence> finished = std::move(*found);
  running_.erase(found);
  cache_.Release(&finished->block_table);
  return finished;
}

std::vector<std::unique_ptr<Sequence>> Scheduler::TakeAll() {
  PreemptAll();
  std::vector<std::unique_ptr<Sequence>> all;
  for (std::unique_ptr<Sequence>& sequence : waiting_) all.push_back(std::move(sequence));
  waiting_.clear();
  return all;
}

void Scheduler::PreemptAll() {
  while (!running_.empty()) PreemptLast();
}

}  // namespace quatrain
