// What a run directory holds for a report: metrics, evaluations, samples and configuration.
//
//   metrics.jsonl  one object a rollout: "rollout" (0: before training) and numbers under names
//                  such as "train/pg_loss", "rollout/raw_reward", "eval/<data set>",
//                  "perf/step_time", "train/code_flip_rate". Several objects of one rollout are
//                  joined and later ones win, since a resumed run writes a rollout again.
//   eval.json      optional: an array of flat objects, one row of the accuracy table each
//   samples.jsonl  optional: {"rollout", "prompt", "response", "label", "reward", "verdict", ...}
//   config.json    optional: the run's configuration
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace quatrain {

// A number a rollout, or nothing where the rollout did not log it.
using MetricSeries = std::vector<std::optional<double>>;

struct RunData {
  std::string name;                             // for legends
  std::vector<int64_t> rollouts;                // ascending
  std::map<std::string, MetricSeries> metrics;  // each as long as `rollouts`
  std::vector<Json> evaluations;                // rows of the accuracy table
  std::vector<Json> samples;
  std::vector<std::pair<std::string, std::string>> config;  // dotted names, values as text
};

enum class EmptyRun { kRefuse, kAllow };

struct ReadRunOptions {
  EmptyRun empty = EmptyRun::kRefuse;      // kAllow: no metrics yet is a run without rollouts
  uint64_t max_sample_bytes = UINT64_MAX;  // of samples.jsonl, from its end
};

// Error kData naming file and line: no metrics.jsonl, no complete rollout in it, a row that is no
// object or has no "rollout". A last line without its newline is a run that is being written or was
// killed: it is ignored.
RunData ReadRun(const std::filesystem::path& folder, const ReadRunOptions& options = {});

// Rows of an accuracy table from a JSON array or a JSONL file. Error kData naming the file.
std::vector<Json> ReadEvaluations(const std::filesystem::path& path);

}  // namespace quatrain
