#include "cli/reward_options.h"

#include <CLI/CLI.hpp>

#include "cli/option_checks.h"

namespace quatrain {

void AddRewardOptions(CLI::App& command, RewardOptions* options) {
  command
      .add_option("--rm-type", options->rm_type,
                  "reward: deepscaler, math, dapo, f1, gpqa, random, deterministic_random or "
                  "remote_rm, or one behind boxed_")
      ->capture_default_str();
  command.add_option("--reward-key", options->reward_key,
                     "which number of a reward counts: score or acc of dapo, a key of remote_rm");
  command.add_option("--rm-url", options->rm_url, "server of --rm-type remote_rm");
  command.add_option("--rm-timeout", options->rm_timeout, "seconds it may take to answer")
      ->check(Positive())
      ->capture_default_str();
  command.add_option("--rm-max-attempts", options->rm_max_attempts, "requests for one reward")
      ->check(Positive())
      ->capture_default_str();
  command
      .add_option("--rm-backoff", options->rm_backoff, "seconds before the second, then doubled")
      ->check(NonNegative())
      ->capture_default_str();
}

}  // namespace quatrain
