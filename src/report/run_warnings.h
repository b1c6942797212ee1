// What deserves a look in the metrics of a run, as a list for the top of its page.
//
// The thresholds are those of the field's dashboard where it has one (Miles): groups without spread
// from half of a batch, truncation from 25 %, a stalled step from 6 times the median.
#pragma once

#include <string>
#include <vector>

#include "report/run_data.h"

namespace quatrain {

enum class WarningLevel { kLook, kBad };

struct RunWarning {
  WarningLevel level = WarningLevel::kLook;
  std::string title;   // "Most groups have no wrong answer"
  std::string detail;  // figures, since which rollout, and what to do
};

// In order of weight. `seconds_since_row` is the age of the last row of a run that goes on, and
// negative for one that ended.
std::vector<RunWarning> RunWarnings(const RunData& run, double seconds_since_row);

}  // namespace quatrain
