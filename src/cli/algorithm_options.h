// The flags of quatrain train that say what is optimised: estimator, clips, KL, corrections.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "rl/rl_config.h"

namespace CLI {
class App;
}

namespace quatrain {

// As typed; some flags act only together.
struct AlgorithmFlags {
  std::string advantage_estimator = "grpo";
  double eps_clip = 0.2;
  std::optional<double> eps_clip_high, eps_clip_c;
  bool use_kl_loss = false, use_unbiased_kl = false;
  double kl_loss_coef = 0.0;
  std::string kl_loss_type = "k1";
  bool use_tis = false;
  double tis_clip = 2.0, tis_clip_low = 0.0;
  std::string custom_tis_function_path;
  bool use_rollout_logprobs = false;
  bool use_opsm = false;
  double opsm_delta = 1e-4;
};

// Adds the options; what needs no second thought is written to `args` at once.
void AddAlgorithmOptions(CLI::App& command, AlgorithmFlags* flags, AlgorithmArgs* args);

// The rest of `args`. A flag that has no effect without another warns. Error kUsage naming the flag
// whose value means nothing.
void FinishAlgorithm(const AlgorithmFlags& flags, AlgorithmArgs* args);

}  // namespace quatrain
