#include "report/run_warnings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "base/resources.h"

namespace quatrain {
namespace {

constexpr size_t kRecent = 10;             // rollouts that "now" is averaged over
constexpr double kFlatGroups = 0.5;        // share of groups of one reward
constexpr double kTruncated = 0.25;        // share of samples cut off
constexpr double kEntropyLeft = 0.2;       // of the first rollouts' entropy
constexpr double kStallTimesMedian = 6.0;  // and at least kStallSeconds
constexpr double kStallSeconds = 60.0;
constexpr double kMemoryGrowth = 0.1;  // from the second to the last quarter of a run
constexpr double kLeastDisk = 2e9;     // bytes

struct Point {
  int64_t rollout;
  double value;
};
using Points = std::vector<Point>;

Points PointsOf(const RunData& run, const std::string& name) {
  Points points;
  const auto series = run.metrics.find(name);
  if (series == run.metrics.end()) return points;
  for (size_t i = 0; i < series->second.size(); ++i) {
    if (series->second[i]) points.push_back({run.rollouts[i], *series->second[i]});
  }
  return points;
}

double Mean(Points::const_iterator begin, Points::const_iterator end) {
  const double sum = std::accumulate(begin, end, 0.0,
                                     [](double s, const Point& point) { return s + point.value; });
  return sum / static_cast<double>(std::max<std::ptrdiff_t>(end - begin, 1));
}

double RecentMean(const Points& points) {
  return Mean(points.end() - static_cast<std::ptrdiff_t>(std::min(kRecent, points.size())),
              points.end());
}

double Median(const Points& points) {
  std::vector<double> values;
  for (const Point& point : points) values.push_back(point.value);
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// A number of the run's configuration, as set or by default; 0 if it has none.
double ConfigNumber(const RunData& run, const std::string& name) {
  for (const auto& [key, value] : run.config) {
    if (key == name || key == "defaults." + name) return std::strtod(value.c_str(), nullptr);
  }
  return 0.0;
}

// "3 rollouts (12, 40, 41)", the last ones if they are many.
std::string RolloutList(const std::vector<int64_t>& rollouts) {
  constexpr size_t kShown = 5;
  std::string list;
  const size_t first = rollouts.size() > kShown ? rollouts.size() - kShown : 0;
  for (size_t i = first; i < rollouts.size(); ++i) {
    list += fmt::format("{}{}", i == first ? "" : ", ", rollouts[i]);
  }
  return fmt::format("{} rollout{} ({}{})", rollouts.size(), rollouts.size() == 1 ? "" : "s",
                     first > 0 ? "the last: " : "", list);
}

using Warnings = std::vector<RunWarning>;

void CheckNothingRewarded(const RunData& run, Warnings& warnings) {
  std::vector<int64_t> empty;
  for (const Point& point : PointsOf(run, "rollout/raw_reward")) {
    if (point.value == 0.0) empty.push_back(point.rollout);
  }
  if (empty.empty()) return;
  warnings.push_back({WarningLevel::kBad, "Rollouts without any reward",
                      fmt::format("Mean reward 0 in {}. See how many answers were wrong, not found "
                                  "or not comparable, and look at samples: a reward that cannot "
                                  "read the answer trains nothing.",
                                  RolloutList(empty))});
}

void CheckFlatGroups(const RunData& run, Warnings& warnings) {
  const double groups = ConfigNumber(run, "rollout-batch-size");
  if (groups <= 0) return;
  const std::pair<const char*, const char*> kinds[] = {
      {"rollout/zero_std/count_0", "have no right answer: the prompts are too hard"},
      {"rollout/zero_std/count_1", "have no wrong answer: the prompts are too easy"}};
  double flat = 0.0;
  for (const auto& [name, what] : kinds) {
    const Points points = PointsOf(run, name);
    if (points.empty()) continue;
    const double share = RecentMean(points) / groups;
    flat += share;
    if (share < kFlatGroups) continue;
    warnings.push_back(
        {WarningLevel::kLook, fmt::format("Most groups {}", what),
         fmt::format(
             "{:.0f} % of the groups of the last {} rollouts have one reward and no "
             "gradient. Choose other prompts, or filter with --dynamic-sampling-filter-path "
             "and --over-sampling-batch-size.",
             100 * share, std::min(kRecent, points.size()))});
    return;
  }
  if (flat < kFlatGroups) return;
  warnings.push_back({WarningLevel::kLook, "Most groups have one reward",
                      fmt::format("{:.0f} % of the last groups are all right or all wrong and have "
                                  "no gradient.",
                                  100 * flat)});
}

void CheckTruncation(const RunData& run, Warnings& warnings) {
  const Points points = PointsOf(run, "rollout/truncated_ratio");
  if (points.empty() || RecentMean(points) < kTruncated) return;
  warnings.push_back({WarningLevel::kLook, "Many responses are cut off",
                      fmt::format("{:.0f} % of the last samples reached the length limit; a "
                                  "cut-off answer is counted as none. Raise "
                                  "--rollout-max-response-len.",
                                  100 * RecentMean(points))});
}

void CheckEntropy(const RunData& run, Warnings& warnings) {
  const Points points = PointsOf(run, "train/entropy_loss");
  if (points.size() < 2 * kRecent) return;
  const double first = Mean(points.begin(), points.begin() + kRecent), now = RecentMean(points);
  if (first <= 0 || now >= kEntropyLeft * first) return;
  warnings.push_back(
      {WarningLevel::kLook, "The entropy has collapsed",
       fmt::format("{:.3g} nats over the last {} rollouts, {:.3g} over the first. The policy "
                   "explores little more: lower --lr, raise --rollout-temperature or "
                   "--eps-clip-high, or give --entropy-coef.",
                   now, kRecent, first)});
}

void CheckDifference(const RunData& run, Warnings& warnings) {
  std::vector<int64_t> rollouts;
  double largest = 0.0;
  for (const Point& point : PointsOf(run, "train/train_rollout_logprob_abs_diff")) {
    if (point.value == 0.0) continue;
    rollouts.push_back(point.rollout);
    largest = std::max(largest, point.value);
  }
  if (rollouts.empty()) return;
  warnings.push_back(
      {WarningLevel::kLook, "Trainer and rollout are not one policy",
       fmt::format("The mean difference of their log-probabilities is up to {:.2g}, not 0, in {}. "
                   "That is meant where they read different weights (rollout in INT4 without "
                   "quantisation-aware training, --rollout-weights bf16) or with partial rollouts; "
                   "anywhere else it is an error of ours.",
                   largest, RolloutList(rollouts))});
}

void CheckStalls(const RunData& run, double seconds_since_row, Warnings& warnings) {
  const Points points = PointsOf(run, "perf/step_time");
  if (points.size() < 3) return;
  const double limit = std::max(kStallSeconds, kStallTimesMedian * Median(points));
  std::vector<int64_t> slow;
  for (const Point& point : points) {
    if (point.value > limit) slow.push_back(point.rollout);
  }
  if (seconds_since_row > limit) {
    warnings.push_back({WarningLevel::kBad, "No rollout has ended for long",
                        fmt::format("{:.0f} s since the last one; a step takes {:.3g} s as a rule.",
                                    seconds_since_row, Median(points))});
  }
  if (slow.empty()) return;
  warnings.push_back({WarningLevel::kLook, "Stalled steps",
                      fmt::format("Over {:.0f} s in {}, where {:.3g} s are usual. See which phase "
                                  "took it in the step times.",
                                  limit, RolloutList(slow), Median(points))});
}

void CheckDisk(const RunData& run, Warnings& warnings) {
  const Points points = PointsOf(run, "perf/disk_free_bytes");
  if (points.empty()) return;
  const double free = points.back().value;
  const auto steps = static_cast<double>(points.back().rollout - points.front().rollout);
  const double taken = steps > 0 ? (points.front().value - free) / steps : 0.0;
  const double planned = ConfigNumber(run, "num-rollout");
  const double left = planned - static_cast<double>(points.back().rollout);
  const std::string size = SizeText(static_cast<uint64_t>(free));
  if (free < kLeastDisk) {
    warnings.push_back({WarningLevel::kBad, "The disk is nearly full",
                        size + " are free. Remove old iter_ folders, or save less often."});
  } else if (taken > 0 && left > 0 && free < taken * left) {
    warnings.push_back({WarningLevel::kBad, "The disk will be full before the run ends",
                        fmt::format("{} are free, {} go a rollout, {:.0f} rollouts are to come.",
                                    size, SizeText(static_cast<uint64_t>(taken)), left)});
  }
}

void CheckMemory(const RunData& run, Warnings& warnings) {
  const Points points = PointsOf(run, "perf/resident_bytes");
  const auto quarter = static_cast<std::ptrdiff_t>(points.size() / 4);
  if (quarter < 5) return;
  const double before = Mean(points.begin() + quarter, points.begin() + 2 * quarter);
  const double now = Mean(points.end() - quarter, points.end());
  if (now < (1 + kMemoryGrowth) * before) return;
  warnings.push_back(
      {WarningLevel::kLook, "Memory grows",
       fmt::format("{} in the last quarter of the run, {} in the second.",
                   SizeText(static_cast<uint64_t>(now)), SizeText(static_cast<uint64_t>(before)))});
}

}  // namespace

std::vector<RunWarning> RunWarnings(const RunData& run, double seconds_since_row) {
  Warnings warnings;
  CheckNothingRewarded(run, warnings);
  CheckDisk(run, warnings);
  CheckStalls(run, seconds_since_row, warnings);
  CheckDifference(run, warnings);
  CheckFlatGroups(run, warnings);
  CheckTruncation(run, warnings);
  CheckEntropy(run, warnings);
  CheckMemory(run, warnings);
  std::stable_partition(warnings.begin(), warnings.end(), [](const RunWarning& warning) {
    return warning.level == WarningLevel::kBad;
  });
  return warnings;
}

}  // namespace quatrain
