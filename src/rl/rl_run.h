// Run: everything that lives as long as a training, and the steps that rl_loop.cc puts in order.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/metrics.h"
#include "engine/engine.h"
#include "rl/batcher.h"
#include "rl/checkpoint_store.h"
#include "rl/evaluate.h"
#include "rl/prompt_dataset.h"
#include "rl/rl_config.h"
#include "rl/rollout_sampler.h"
#include "rl/setup.h"
#include "train/dead_zone.h"
#include "train/trainer.h"

namespace quatrain {

// Shown behind the progress bar while a rollout is under way, e.g. "sampling 120/256".
using StepNote = std::function<void(const std::string& what)>;

class Run {
 public:
  Run(const RlConfig& config, const Json& flags);

  int64_t start_rollout() const { return start_rollout_; }
  int64_t num_rollouts() const { return num_rollouts_; }

  // The steps of one rollout, in order; each adds its numbers and seconds to `row`. Under
  // --load-debug-rollout-data the samples are read.
  std::vector<Sample> Generate(int64_t rollout, Json& row, const StepNote& note);
  // Some samples with what the trainer made of them, so after Train.
  void LogSamples(int64_t rollout, const std::vector<Sample>& samples,
                  const std::vector<std::vector<TrainBatch>>& steps);
  std::vector<std::vector<TrainBatch>> MakeSteps(std::vector<Sample>& samples);
  // Reference log-probabilities, and the old ones unless Train finds the same; in batches of their
  // own if --log-probs-max-tokens-per-gpu asks for them.
  void Score(const std::vector<Sample>& samples, std::vector<std::vector<TrainBatch>>& steps,
             Json& row, const StepNote& note);
  void Train(std::vector<std::vector<TrainBatch>>& steps, Json& row, const StepNote& note);
  void UpdateWeights(Json& row);
  // Every --ref-update-interval rollouts the reference takes the policy's BF16 weights.
  void UpdateReference(int64_t rollout);
  // Error kData naming step, set and sample where a number is not finite; the samples are kept.
  void Evaluate(Json& row);
  void Append(const Json& row);
  // Ends before the next rollout begins, unless --async-save.
  void Save(int64_t next_rollout);
  void WaitForSave() { store_->Wait(); }
  // Keeps the samples of a rollout that could not be trained on; returns how to repeat the step.
  std::string KeepFailedRollout(int64_t rollout, const std::vector<Sample>& samples) const;
  // The same of a rollout that the model could not finish; returns where it is, or nothing if the
  // failure was no such one.
  std::string KeepFailedGeneration(int64_t rollout);

 private:
  void ReadData();
  void Resume();
  void GoBackInLogs(const Json& sizes) const;
  void NoteChangedFlags(const Json& state) const;
  CheckpointSnapshot Snapshot(int64_t next_rollout);
  void ReportState(Json& row);
  std::vector<Sample> Sampled(int64_t rollout, const StepNote& note);
  void MakeSampler();
  EvalResult EvaluateOrKeep(const EvalSet& set, const RolloutText& text,
                            const RolloutOptions& options, const RolloutProgress& progress);
  BatcherOptions StepOptions() const;
  bool NeedsOldPass(const std::vector<std::vector<TrainBatch>>& steps) const;
  RolloutOptions TrainRolloutOptions() const;
  RolloutOptions EvalOptions() const;
  void CheckPromptsFit() const;

  RlConfig config_;
  Json flags_;
  ThreadPool pool_;
  OpContext ctx_;
  TrainingModels models_;
  std::optional<Parameters> parameters_;
  std::optional<Trainer> trainer_;
  std::optional<DeadZoneMonitor> dead_zone_;  // where codes are made
  std::optional<Engine> engine_;
  Tokenizer tokenizer_;
  std::optional<ChatTemplate> chat_template_;
  std::vector<int32_t> stop_token_ids_;
  std::unique_ptr<Reward> reward_, eval_reward_;
  std::optional<PromptDataset> dataset_;
  std::optional<RolloutSampler> sampler_;
  std::vector<EvalSet> eval_sets_;
  bool has_reported_state_ = false;
  RoutingReplay routing_replay_ = RoutingReplay::kOff;
  std::optional<CheckpointStore> store_;
  std::unique_ptr<MetricsWriter> metrics_, samples_;
  Json log_sizes_ = Json::object();  // bytes of both after the last whole rollout
  int64_t start_rollout_ = 0, num_rollouts_ = 0, policy_version_ = 0;
};

}  // namespace quatrain
