// Who looks on while `quatrain train` runs: TensorBoard files, the live page.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "report/dashboard.h"
#include "report/tensorboard.h"
#include "rl/rl_loop.h"

namespace quatrain {

struct WatchFlags {
  bool use_tensorboard = false;
  std::string tensorboard_dir;  // empty: $TENSORBOARD_DIR, or tensorboard/ in the run directory
  std::optional<int> dashboard_port;
  std::string dashboard_host = "127.0.0.1";
};

void AddWatchOptions(CLI::App& command, WatchFlags* flags);

// Keeps what the flags ask for as long as it lives. `save`: the run directory.
class Watching {
 public:
  Watching(const WatchFlags& flags, const std::string& save) : flags_(flags), save_(save) {}

  // Functions that refer to this object.
  TrainingWatchers watchers();

 private:
  void Start(int64_t start_rollout, int64_t num_rollouts);

  WatchFlags flags_;
  std::string save_;
  int64_t num_rollouts_ = 0;
  std::optional<TensorBoardWriter> tensorboard_;
  std::optional<Dashboard> dashboard_;
};

}  // namespace quatrain
