// One rollout of the loop; every arrow is one owner and one type, forward only.
//
//   prompt file --> PromptDataset --Prompt--> GenerateSamples (Engine) --Sample--> reward,
//   advantage
//        --> batcher --TrainBatch--> Trainer: reference and old log-probabilities, loss, backward
//        --> Parameters::Step: AdamW on the masters, writes the INT4 codes and scales that
//        everybody reads
//        --> Engine::UpdateWeights: a version number (one process: the engine holds the same
//        Weight)
#include "rl/rl_loop.h"

#include <functional>

#include "base/file.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/resources.h"
#include "rl/rl_run.h"

namespace quatrain {
namespace {

bool IsDue(int64_t interval, int64_t rollout) {
  return interval > 0 && (rollout + 1) % interval == 0;
}

std::string NoteOf(const Json& row) {
  std::string note = fmt::format("reward {:.3f}, diff {:.1e}", row.value("rollout/raw_reward", 0.0),
                                 row.value("train/train_rollout_logprob_abs_diff", 0.0));
  for (const auto& [key, value] : row.items()) {
    if (key.starts_with("eval/") && key.find('/', 5) == std::string::npos && value.is_number()) {
      note += fmt::format(", {} {:.3f}", key, value.get<double>());
    }
  }
  return note;
}

// What a run takes from its machine, so that a leak or a filling disk shows.
void AppendResources(const std::string& save, Json& row) {
  const ProcessMemory memory = ReadProcessMemory();
  row["perf/resident_bytes"] = memory.resident_bytes;
  row["perf/peak_resident_bytes"] = memory.peak_bytes;
  row["perf/disk_free_bytes"] = FreeDiskBytes(save);
}

// A rollout that has been trained on is kept whatever becomes of its evaluation.
void EvaluateUnlessInterrupted(Run& run, Json& row) {
  if (InterruptRequested()) return;
  try {
    run.Evaluate(row);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInterrupted) throw;
  }
}

// A rollout that the model cannot finish is kept as far as it came.
std::vector<Sample> GenerateOrKeep(Run& run, int64_t rollout, Json& row, const StepNote& note) {
  try {
    return run.Generate(rollout, row, note);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kData) throw;
    throw Error(error.code(), fmt::format("rollout {}: {}{}", rollout + 1, error.what(),
                                          run.KeepFailedGeneration(rollout)));
  }
}

// Samples become a step. A rollout that cannot be trained on is kept, for the step to be repeated.
void TrainOn(Run& run, int64_t rollout, std::vector<Sample>& samples, Json& row,
             const StepNote& note) {
  try {
    std::vector<std::vector<TrainBatch>> steps = run.MakeSteps(samples);
    run.Score(samples, steps, row, note);
    run.Train(steps, row, note);
    run.LogSamples(rollout, samples, steps);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kData) throw;
    throw Error(error.code(), fmt::format("rollout {}: {} {}", rollout + 1, error.what(),
                                          run.KeepFailedRollout(rollout, samples)));
  }
  run.UpdateWeights(row);
  run.UpdateReference(rollout);
}

[[noreturn]] void StopInside(Run& run, const RlConfig& config, int64_t rollout) {
  if (rollout > run.start_rollout()) run.Save(rollout);
  run.WaitForSave();
  throw Error(ErrorCode::kInterrupted,
              fmt::format("stopped after {} of {} rollouts. To go on, run the same command "
                          "again with --load {}",
                          rollout, run.num_rollouts(), config.checkpoint.save));
}

using RowSink = std::function<void(Json&)>;

// What a rollout is doing, on the terminal and to who watches. Both outlive the result.
StepNote NoteTo(Progress& progress, const TrainingWatchers& watchers, int64_t rollout) {
  return [&progress, &watchers, rollout](const std::string& what) {
    progress.Update(rollout, what);
    if (watchers.on_note) watchers.on_note(rollout, what);
  };
}

// --debug-rollout-only: rollouts of one policy, judged, dumped and logged.
void OnlyGenerate(Run& run, const TrainingWatchers& watchers, const RowSink& append) {
  Progress progress("rollout", run.num_rollouts(), "rollouts");
  for (int64_t rollout = run.start_rollout(); rollout < run.num_rollouts(); ++rollout) {
    Json row = {{"rollout", rollout + 1}};
    const std::vector<Sample> samples =
        GenerateOrKeep(run, rollout, row, NoteTo(progress, watchers, rollout));
    run.LogSamples(rollout, samples, {});
    append(row);
    progress.Update(rollout + 1, NoteOf(row));
  }
}

}  // namespace

void RunTraining(const RlConfig& config, const Json& flags, const TrainingWatchers& watchers) {
  Run run(config, flags);
  const int64_t num_rollouts = run.num_rollouts();
  if (watchers.on_start) watchers.on_start(run.start_rollout(), num_rollouts);
  const auto append = [&](Json& row) {
    AppendResources(config.checkpoint.save, row);
    run.Append(row);
    if (watchers.on_row) watchers.on_row(row);
  };
  if (config.debug.rollout_only) return OnlyGenerate(run, watchers, append);
  if (run.start_rollout() == 0 && !config.eval.skip_eval_before_train) {
    Json row = {{"rollout", 0}, {"step", 0}};
    run.Evaluate(row);
    if (row.size() > 2) append(row);
  }
  Progress progress("train", num_rollouts, "rollouts");
  for (int64_t rollout = run.start_rollout(); rollout < num_rollouts; ++rollout) {
    Json row = {{"rollout", rollout + 1}};
    Timer timer;
    const StepNote note = NoteTo(progress, watchers, rollout);
    try {
      std::vector<Sample> samples = GenerateOrKeep(run, rollout, row, note);
      TrainOn(run, rollout, samples, row, note);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInterrupted) throw;
      StopInside(run, config, rollout);
    }
    row["perf/step_time"] = timer.seconds();
    const bool is_last =
        rollout + 1 == num_rollouts || InterruptRequested() ||
        (config.debug.exit_after_rollout > 0 && rollout + 1 >= config.debug.exit_after_rollout);
    if (IsDue(config.eval.eval_interval, rollout) || (is_last && config.eval.eval_interval > 0))
      EvaluateUnlessInterrupted(run, row);
    append(row);
    progress.Update(rollout + 1, NoteOf(row));
    if (IsDue(config.checkpoint.save_interval, rollout) || is_last) run.Save(rollout + 1);
    if (is_last) run.WaitForSave();
    if (is_last && rollout + 1 < num_rollouts) {
      throw Error(ErrorCode::kInterrupted,
                  fmt::format("stopped after {} of {} rollouts, saved. To go on, run the same "
                              "command again with --load {}",
                              rollout + 1, num_rollouts, config.checkpoint.save));
    }
  }
}

}  // namespace quatrain
