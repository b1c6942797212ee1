#include "rl/evaluate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

namespace quatrain {
namespace {

// Evaluation draws from another stream than any rollout.
constexpr int64_t kEvalStream = int64_t{1} << 40;

}  // namespace

std::vector<EvalSet> ReadEvalSets(const std::vector<std::string>& pairs,
                                  const PromptDatasetOptions& options) {
  std::vector<EvalSet> sets;
  if (pairs.size() == 1) {
    return {{std::filesystem::path(pairs[0]).stem().string(), ReadPrompts(pairs[0], options)}};
  }
  if (pairs.size() % 2 != 0) {
    throw Error(ErrorCode::kUsage, {.where = "--eval-prompt-data",
                                    .what = "names and paths do not pair up",
                                    .expected = "one PATH, or NAME PATH NAME PATH ...",
                                    .found = fmt::format("{} values", pairs.size())});
  }
  for (size_t i = 0; i < pairs.size(); i += 2)
    sets.push_back({pairs[i], ReadPrompts(pairs[i + 1], options)});
  return sets;
}

double PassAtK(int64_t n, int64_t c, int64_t k) {
  if (n - c < k) return 1.0;
  double none = 1.0;
  for (int64_t i = n - c + 1; i <= n; ++i)
    none *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  return 1.0 - none;
}

namespace {

std::vector<std::pair<int64_t, double>> PassRates(const std::vector<int64_t>& num_right,
                                                  int64_t num_samples) {
  std::vector<std::pair<int64_t, double>> rates;
  for (int64_t k = 1; num_samples > 1; k = std::min(2 * k, num_samples)) {
    double sum = 0.0;
    for (const int64_t right : num_right) sum += PassAtK(num_samples, right, k);
    rates.emplace_back(k, sum / static_cast<double>(num_right.size()));
    if (k == num_samples) break;
  }
  return rates;
}

}  // namespace

EvalResult Evaluate(Engine& engine, const RolloutText& text, const Reward& reward,
                    const EvalSet& set, const RolloutOptions& options,
                    const RolloutProgress& progress) {
  const std::vector<Sample> samples =
      GenerateSamples(engine, text, reward, set.prompts, options, kEvalStream, progress);
  EvalResult result;
  result.num_prompts = static_cast<int64_t>(set.prompts.size());
  result.num_samples = static_cast<int64_t>(samples.size());
  std::vector<double> by_prompt(set.prompts.size(), 0.0);
  std::vector<int64_t> num_right(set.prompts.size(), 0);
  for (const Sample& sample : samples) {
    by_prompt[static_cast<size_t>(sample.group_id)] +=
        sample.reward.reward / static_cast<double>(options.n_samples_per_prompt);
    num_right[static_cast<size_t>(sample.group_id)] +=
        sample.reward.verdict == RewardVerdict::kCorrect ? 1 : 0;
    result.truncated_ratio += sample.completion.finish_reason == FinishReason::kLength ? 1.0 : 0.0;
    result.response_len_mean += static_cast<double>(sample.response_length());
  }
  const auto num_prompts = static_cast<double>(by_prompt.size());
  for (const double accuracy : by_prompt) result.accuracy += accuracy / num_prompts;
  double variance = 0.0;
  for (const double accuracy : by_prompt) variance += std::pow(accuracy - result.accuracy, 2);
  if (by_prompt.size() > 1)
    result.standard_error = std::sqrt(variance / (num_prompts - 1.0) / num_prompts);
  result.pass_at_k = PassRates(num_right, options.n_samples_per_prompt);
  result.truncated_ratio /= static_cast<double>(samples.size());
  result.response_len_mean /= static_cast<double>(samples.size());
  return result;
}

}  // namespace quatrain
