#include "rl/evaluate.h"

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

EvalResult Evaluate(Engine& engine, const RolloutText& text, const Reward& reward,
                    const EvalSet& set, const RolloutOptions& options,
                    const RolloutProgress& progress) {
  const std::vector<Sample> samples =
      GenerateSamples(engine, text, reward, set.prompts, options, kEvalStream, progress);
  EvalResult result;
  result.num_prompts = static_cast<int64_t>(set.prompts.size());
  result.num_samples = static_cast<int64_t>(samples.size());
  std::vector<double> by_prompt(set.prompts.size(), 0.0);
  for (const Sample& sample : samples) {
    by_prompt[static_cast<size_t>(sample.group_id)] +=
        sample.reward.reward / static_cast<double>(options.n_samples_per_prompt);
    result.truncated_ratio += sample.completion.finish_reason == FinishReason::kLength ? 1.0 : 0.0;
    result.response_len_mean += static_cast<double>(sample.response_length());
  }
  const auto num_prompts = static_cast<double>(by_prompt.size());
  for (const double accuracy : by_prompt) result.accuracy += accuracy / num_prompts;
  double variance = 0.0;
  for (const double accuracy : by_prompt) variance += std::pow(accuracy - result.accuracy, 2);
  if (by_prompt.size() > 1)
    result.standard_error = std::sqrt(variance / (num_prompts - 1.0) / num_prompts);
  result.truncated_ratio /= static_cast<double>(samples.size());
  result.response_len_mean /= static_cast<double>(samples.size());
  return result;
}

}  // namespace quatrain
