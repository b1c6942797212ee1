#include "report/headline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace quatrain {
namespace {

constexpr size_t kEdge = 10;  // rollouts averaged at either end

std::vector<double> ValuesOf(const RunData& run, const std::string& name) {
  std::vector<double> values;
  const auto series = run.metrics.find(name);
  if (series == run.metrics.end()) return values;
  for (const std::optional<double>& value : series->second) {
    if (value) values.push_back(*value);
  }
  return values;
}

double Mean(std::vector<double>::const_iterator begin, std::vector<double>::const_iterator end) {
  return std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin);
}

// "12.3 s", "4 min 05 s", "1 h 02 min".
std::string Duration(double seconds) {
  if (seconds < 100) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

// Rollouts that trained: an evaluation before training has a row of its own.
void AddRollouts(const RunData& run, std::vector<HeadlineFact>& facts) {
  if (run.rollouts.empty()) return;
  const size_t trained = ValuesOf(run, "rollout/raw_reward").size();
  facts.push_back({"Rollouts", fmt::format("{}", trained),
                   fmt::format("metrics up to rollout {}", run.rollouts.back())});
}

void AddReward(const RunData& run, std::vector<HeadlineFact>& facts) {
  const std::vector<double> reward = ValuesOf(run, "rollout/raw_reward");
  if (reward.empty()) return;
  const size_t edge = std::min(kEdge, (reward.size() + 1) / 2);
  const auto n = static_cast<std::ptrdiff_t>(edge);
  facts.push_back({"Reward", fmt::format("{:.3f}", Mean(reward.end() - n, reward.end())),
                   fmt::format("mean of the last {} rollouts; {:.3f} in the first {}", edge,
                               Mean(reward.begin(), reward.begin() + n), edge)});
}

void AddEvaluations(const RunData& run, std::vector<HeadlineFact>& facts) {
  for (const auto& [name, series] : run.metrics) {
    const bool is_accuracy = name.starts_with("eval/") && !name.ends_with("truncated_ratio") &&
                             name.find('/', 5) == std::string::npos;
    if (!is_accuracy) continue;
    const std::vector<double> values = ValuesOf(run, name);
    if (values.empty()) continue;
    facts.push_back({"Eval " + name.substr(5), fmt::format("{:.3f}", values.back()),
                     values.size() == 1 ? "one evaluation"
                                        : fmt::format("last of {} evaluations; {:.3f} in the first",
                                                      values.size(), values.front())});
  }
}

void AddMismatch(const RunData& run, std::vector<HeadlineFact>& facts) {
  const std::vector<double> diff = ValuesOf(run, "train/train_rollout_logprob_abs_diff");
  if (diff.empty()) return;
  const double worst = *std::max_element(diff.begin(), diff.end());
  facts.push_back(
      {"Train-rollout difference", worst == 0 ? "0" : fmt::format("{:.2g}", worst),
       worst == 0 ? fmt::format("of log-probabilities, exactly, in all {} rollouts", diff.size())
                  : "of log-probabilities, the largest of all rollouts"});
}

void AddCodeFlips(const RunData& run, std::vector<HeadlineFact>& facts) {
  const std::vector<double> flips = ValuesOf(run, "train/code_flip_rate");
  if (flips.empty()) return;
  facts.push_back({"INT4 codes flipped a step",
                   fmt::format("{:.2g} %", 100 * Mean(flips.begin(), flips.end())), "mean"});
}

void AddTime(const RunData& run, std::vector<HeadlineFact>& facts) {
  const std::vector<double> time = ValuesOf(run, "perf/step_time");
  if (time.empty()) return;
  const double sum = std::accumulate(time.begin(), time.end(), 0.0);
  facts.push_back(
      {"Time a step", Duration(sum / static_cast<double>(time.size())), Duration(sum) + " in all"});
}

}  // namespace

std::vector<HeadlineFact> Headline(const RunData& run) {
  std::vector<HeadlineFact> facts;
  AddRollouts(run, facts);
  AddReward(run, facts);
  AddEvaluations(run, facts);
  AddMismatch(run, facts);
  AddCodeFlips(run, facts);
  AddTime(run, facts);
  return facts;
}

}  // namespace quatrain
