#include "cli/watching.h"

#include <cstdlib>

#include "base/log.h"

namespace quatrain {
namespace {

std::string TensorBoardFolder(const WatchFlags& flags, const std::string& save) {
  if (!flags.tensorboard_dir.empty()) return flags.tensorboard_dir;
  const char* environment = std::getenv("TENSORBOARD_DIR");
  if (environment != nullptr && *environment != '\0') return environment;
  return (std::filesystem::path(save) / "tensorboard").string();
}

}  // namespace

void AddWatchOptions(CLI::App& command, WatchFlags* flags) {
  command.add_flag("--use-tensorboard", flags->use_tensorboard,
                   "write metrics as TensorBoard event files too");
  command.add_option("--tensorboard-dir", flags->tensorboard_dir,
                     "their folder; default: $TENSORBOARD_DIR, or tensorboard/ under --save");
  command
      .add_option("--dashboard-port", flags->dashboard_port,
                  "serve the run's page there while it runs; 0: any free port")
      ->check(CLI::Range(0, 65535));
  command
      .add_option("--dashboard-host", flags->dashboard_host,
                  "the address that it listens on; there is no password")
      ->capture_default_str();
}

TrainingWatchers Watching::watchers() {
  TrainingWatchers watchers;
  watchers.on_start = [this](int64_t start, int64_t num) { Start(start, num); };
  watchers.on_note = [this](int64_t rollout, const std::string& what) {
    if (dashboard_)
      dashboard_->SetStatus(fmt::format("rollout {} of {}: {}", rollout + 1, num_rollouts_, what));
  };
  watchers.on_row = [this](const Json& row) {
    if (tensorboard_) tensorboard_->Append(row);
  };
  return watchers;
}

void Watching::Start(int64_t start_rollout, int64_t num_rollouts) {
  num_rollouts_ = num_rollouts;
  if (flags_.use_tensorboard) {
    // Rows count rollouts from 1; what was written of the first one to come is written again.
    const std::optional<int64_t> first =
        start_rollout > 0 ? std::optional(start_rollout + 1) : std::nullopt;
    tensorboard_.emplace(TensorBoardFolder(flags_, save_), first);
    Log().info("TensorBoard events go to {}", tensorboard_->path().string());
  } else if (!flags_.tensorboard_dir.empty()) {
    Log().warn("--tensorboard-dir has no effect without --use-tensorboard");
  }
  if (!flags_.dashboard_port) return;
  DashboardOptions options;
  options.run = save_;
  options.host = flags_.dashboard_host;
  options.port = *flags_.dashboard_port;
  options.html.title = "Quatrain training";
  dashboard_.emplace(options);
  Log().info("the run's page: {}", dashboard_->url());
}

}  // namespace quatrain
