// Memory of a trainer by part, measured from the buffers that it holds. The field's trainer has 18
// bytes a parameter: BF16 weight 2, FP32 gradient 4, moments 8, FP32 master 4; rollout comes on
// top.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "rl/setup.h"

namespace quatrain {

struct StateBytes {
  int64_t num_parameters = 0;
  // "masters", "moments", "gradients", "weights" (of training, and of rollout where it shares
  // them), "rollout_weights" (a table of its own), "reference", "code_history"; those that are not
  // 0.
  std::vector<std::pair<std::string, int64_t>> parts;

  int64_t total() const;
  double PerParameter(int64_t bytes) const;
  // One line for the log.
  std::string Text() const;
  // "memory/<part>_bytes_per_parameter", "memory/state_bytes_per_parameter".
  void AppendTo(Json& row) const;
};

// Buffers that two tables share count once.
StateBytes MeasureState(TrainingModels& models, Parameters& parameters, int64_t gradient_bytes,
                        int64_t code_history_bytes);

}  // namespace quatrain
