// Accuracy of a model on labelled prompts.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "rl/prompt_dataset.h"
#include "rl/rollout.h"

namespace quatrain {

struct EvalSet {
  std::string name;  // metric name: eval/<name>
  std::vector<Prompt> prompts;
};

// "[NAME] PATH" pairs of --eval-prompt-data; a single path is named by its file name without
// extension. Keys and leniency as in `data`.
std::vector<EvalSet> ReadEvalSets(const std::vector<std::string>& name_path_pairs,
                                  const PromptDatasetOptions& data);

struct EvalResult {
  int64_t num_prompts = 0, num_samples = 0;
  double accuracy = 0.0;        // mean reward over samples
  double standard_error = 0.0;  // of it, over prompts
  // pass@k for k = 1, 2, 4, ... up to the samples a prompt, and for that number itself; empty with
  // one sample a prompt.
  std::vector<std::pair<int64_t, double>> pass_at_k;
  double truncated_ratio = 0.0;
  double response_len_mean = 0.0;
};

// Probability that k of n samples, drawn without replacement, hold one of the c right ones:
// 1 - C(n - c, k) / C(n, k), the unbiased estimate of pass@k (arXiv:2107.03374 section 2.1).
double PassAtK(int64_t n, int64_t c, int64_t k);

// Every prompt n_samples_per_prompt times. Errors of GenerateSamples.
EvalResult Evaluate(Engine& engine, const RolloutText& text, const Reward& reward,
                    const EvalSet& set, const RolloutOptions& options,
                    const RolloutProgress& progress);

}  // namespace quatrain
