// The groups of a training rollout: which prompts are sampled, which groups count, what is kept.
//
// Prompts are submitted --over-sampling-batch-size at a time until --rollout-batch-size groups are
// complete and kept by the filter; what is then unfinished is stopped. With partial rollouts the
// stopped groups, and complete ones that were not needed, are the first of the next rollout: their
// samples go on where they stood, under the new weights. Which groups those are depends on the
// samples' lengths alone, not on threads or time; so a run resumed from State() goes on bit for
// bit.
//
// Stopping the rest favours short responses, as in the field: the long ones are still under way
// when enough groups are complete. Partial rollouts give them back.
#pragma once

#include <deque>
#include <span>
#include <string>
#include <vector>

#include "rl/advantage.h"
#include "rl/prompt_dataset.h"
#include "rl/rollout.h"

namespace quatrain {

enum class StoppedGroups {
  kDrop,
  kResume,  // --partial-rollout
};

struct SamplerOptions {
  RolloutOptions rollout;
  int64_t rollout_batch_size = 0;        // groups a rollout
  int64_t over_sampling_batch_size = 0;  // groups submitted at a time; at least the above
  GroupFilter filter = GroupFilter::kNone;
  StoppedGroups stopped = StoppedGroups::kDrop;
};

// Of the last rollout.
struct SamplerStats {
  int64_t num_groups_resumed = 0;    // begun in an earlier rollout
  int64_t num_groups_filtered = 0;   // complete, and dropped by the filter
  int64_t num_groups_kept = 0;       // for the next rollout
  int64_t num_samples_stopped = 0;   // unfinished
  int64_t num_offpolicy_tokens = 0;  // of the returned samples: drawn before this rollout

  void AppendTo(Json& row) const;
};

class RolloutSampler {
 public:
  // Borrows what it is given.
  RolloutSampler(Engine& engine, const RolloutText& text, const Reward& reward,
                 const SamplerOptions& options);

  // rollout_batch_size groups in the order in which their prompts were first taken, rewards set,
  // ids 0 to n - 1. A sample's draws depend on (seed, the rollout that began it, its index there).
  // Error kInterrupted on Ctrl-C: the cursor of `dataset` and the kept groups are then as before;
  // kData if the filter has dropped a whole data set in a row, or a number that the model computes
  // is not finite: the message then names the sample, and TakeFailed has all of them.
  std::vector<Sample> Next(PromptDataset& dataset, int64_t rollout,
                           const RolloutProgress& progress);

  // The samples of a Next that failed in the model, with what they had until then: those under way
  // have FinishReason::kAbort. Empty unless it did.
  std::vector<Sample> TakeFailed() { return std::move(failed_); }

  const SamplerStats& stats() const { return stats_; }
  int64_t num_kept() const { return static_cast<int64_t>(kept_.size()); }

  // The kept groups, with binary values (CBOR writes them; JSON text does not).
  Json State() const;
  // Error kData if a prompt is not in `dataset`, or the state is damaged.
  void Restore(const Json& state, const PromptDataset& dataset);

 private:
  struct Group {
    int64_t serial = 0;  // in the order of first submission
    std::vector<Sample> samples;
    int64_t num_finished = 0;
    bool IsComplete() const { return num_finished == static_cast<int64_t>(samples.size()); }
  };
  struct Rollout;

  Group Begin(Prompt prompt, Rollout& rollout);
  void Submit(PromptDataset& dataset, Rollout& rollout);
  void Step(Rollout& rollout);
  std::vector<RequestOutput> RunEngine(Rollout& rollout);
  void KeepFailed(Rollout& rollout);
  void Judge(Rollout& rollout, const PromptDataset& dataset);
  void Stop(Rollout& rollout);
  bool IsWorthTraining(const Group& group) const;

  Engine& engine_;
  RolloutText text_;
  const Reward& reward_;
  SamplerOptions options_;
  std::deque<Group> kept_;
  int64_t next_serial_ = 0;
  SamplerStats stats_;
  std::vector<Sample> failed_;
};

}  // namespace quatrain
