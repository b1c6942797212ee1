// Accuracy of a model on labelled prompts.
#pragma once

#include <string>
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
  double truncated_ratio = 0.0;
  double response_len_mean = 0.0;
};

// Every prompt n_samples_per_prompt times. Errors of GenerateSamples.
EvalResult Evaluate(Engine& engine, const RolloutText& text, const Reward& reward,
                    const EvalSet& set, const RolloutOptions& options,
                    const RolloutProgress& progress);

}  // namespace quatrain
