// The few facts of a run that stand above its curves.
#pragma once

#include <string>
#include <vector>

#include "report/run_data.h"

namespace quatrain {

struct HeadlineFact {
  std::string label;  // "Reward"
  std::string value;  // "0.865"
  std::string note;   // "mean of the last 10 of 200 rollouts; 0.772 in the first 10"
};

// Facts for which the run logged what they need, in a fixed order: rollouts, reward, evaluation
// accuracy, train-rollout difference, code flips, time a step.
std::vector<HeadlineFact> Headline(const RunData& run);

}  // namespace quatrain
