#include "cli/algorithm_options.h"

#include <CLI/CLI.hpp>

#include "base/log.h"
#include "cli/option_checks.h"

namespace quatrain {
namespace {

// Miles and slime name a Python function; ours are built in, and the two that ship with the field's
// trainers are known by their names.
TisMode ParseTisFunction(const std::string& path) {
  if (path.empty() || path.ends_with("vanilla_tis_function")) return TisMode::kTruncate;
  if (path.ends_with("icepop_function")) return TisMode::kIcePop;
  throw Error(ErrorCode::kUsage,
              {.where = "--custom-tis-function-path",
               .what = "no Python is run, and no built-in correction has this name",
               .expected = "a path that ends in icepop_function or vanilla_tis_function",
               .found = "'" + path + "'"});
}

void WarnIfAlone(bool is_set, bool is_useful, const char* flag, const char* needs) {
  if (is_set && !is_useful) Log().warn("{} has no effect without {}", flag, needs);
}

void AddPolicyOptions(CLI::App& command, AlgorithmFlags* flags, AlgorithmArgs* args) {
  command
      .add_option("--advantage-estimator", flags->advantage_estimator,
                  "grpo, gspo, reinforce_plus_plus or reinforce_plus_plus_baseline")
      ->capture_default_str();
  command.add_flag("--disable-grpo-std-normalization", args->disable_grpo_std_normalization,
                   "advantage = reward - group mean");
  command.add_flag("--disable-rewards-normalization", args->disable_rewards_normalization,
                   "advantage = reward");
  command.add_flag("--normalize-advantages", args->normalize_advantages,
                   "whiten advantages over the tokens of a rollout");
  command.add_option("--gamma", args->gamma, "discount of reinforce_plus_plus")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--eps-clip", flags->eps_clip, "lower clip of the ratio")
      ->capture_default_str();
  command.add_option("--eps-clip-high", flags->eps_clip_high, "upper clip; default: --eps-clip");
  command.add_option("--eps-clip-c", flags->eps_clip_c, "dual clip, above 1");
  command.add_option("--entropy-coef", args->loss.entropy_coef, "entropy bonus")
      ->capture_default_str();
}

void AddKlOptions(CLI::App& command, AlgorithmFlags* flags, AlgorithmArgs* args) {
  command
      .add_option("--kl-coef", args->kl_coef,
                  "KL penalty in the reward (reinforce_plus_plus estimators); loads the reference")
      ->capture_default_str();
  command.add_flag("--use-kl-loss", flags->use_kl_loss,
                   "load the reference and add its KL to the loss");
  command.add_option("--kl-loss-coef", flags->kl_loss_coef, "its coefficient")
      ->capture_default_str();
  command.add_option("--kl-loss-type", flags->kl_loss_type, "k1, k2, k3 or low_var_kl")
      ->capture_default_str();
  command.add_flag("--use-unbiased-kl", flags->use_unbiased_kl,
                   "weight the KL of a token by its ratio");
  command
      .add_option("--ref-update-interval", args->ref_update_interval,
                  "rollouts after which the reference becomes the policy; default: never")
      ->check(Positive());
}

void AddCorrectionOptions(CLI::App& command, AlgorithmFlags* flags) {
  command.add_flag("--use-tis", flags->use_tis,
                   "truncated importance sampling against the rollout's log-probabilities");
  command.add_option("--tis-clip", flags->tis_clip, "upper bound")->capture_default_str();
  command.add_option("--tis-clip-low", flags->tis_clip_low, "lower bound")->capture_default_str();
  command.add_option("--custom-tis-function-path", flags->custom_tis_function_path,
                     "a name ending in icepop_function: tokens outside the bounds are left out");
  command.add_flag("--use-rollout-logprobs", flags->use_rollout_logprobs,
                   "the ratio starts from the rollout's log-probabilities");
  command.add_flag("--use-opsm", flags->use_opsm,
                   "mask sequences of negative advantage that have drifted (OPSM)");
  command.add_option("--opsm-delta", flags->opsm_delta, "drift that is allowed, nats a token")
      ->capture_default_str();
}

}  // namespace

void AddAlgorithmOptions(CLI::App& command, AlgorithmFlags* flags, AlgorithmArgs* args) {
  AddPolicyOptions(command, flags, args);
  AddKlOptions(command, flags, args);
  AddCorrectionOptions(command, flags);
}

void FinishAlgorithm(const AlgorithmFlags& flags, AlgorithmArgs* args) {
  args->advantage_estimator = ParseAdvantageEstimator(flags.advantage_estimator);
  args->kl_type = ParseKlLossType(flags.kl_loss_type);
  PolicyLossConfig& loss = args->loss;
  if (args->advantage_estimator == AdvantageEstimator::kGspo)
    loss.ratio_level = RatioLevel::kSequence;
  loss.clip_eps_low = flags.eps_clip;
  loss.clip_eps_high = flags.eps_clip_high.value_or(flags.eps_clip);
  loss.clip_eps_c = flags.eps_clip_c;
  if (flags.use_tis) {
    loss.tis = TisOptions{flags.tis_clip, flags.tis_clip_low,
                          ParseTisFunction(flags.custom_tis_function_path)};
  }
  if (flags.use_kl_loss)
    loss.kl_loss = KlLossOptions{args->kl_type, flags.kl_loss_coef, flags.use_unbiased_kl};
  if (flags.use_rollout_logprobs) loss.old_logprobs = OldLogprobs::kRollout;
  if (flags.use_opsm) loss.opsm_delta = flags.opsm_delta;

  const bool is_reinforce =
      args->advantage_estimator == AdvantageEstimator::kReinforcePlusPlus ||
      args->advantage_estimator == AdvantageEstimator::kReinforcePlusPlusBaseline;
  WarnIfAlone(flags.kl_loss_coef != 0.0, flags.use_kl_loss, "--kl-loss-coef", "--use-kl-loss");
  WarnIfAlone(flags.use_unbiased_kl, flags.use_kl_loss, "--use-unbiased-kl", "--use-kl-loss");
  WarnIfAlone(!flags.custom_tis_function_path.empty(), flags.use_tis, "--custom-tis-function-path",
              "--use-tis");
  WarnIfAlone(args->kl_coef != 0.0, is_reinforce, "--kl-coef",
              "an estimator of the reinforce_plus_plus family");
  WarnIfAlone(args->gamma != 1.0,
              args->advantage_estimator == AdvantageEstimator::kReinforcePlusPlus, "--gamma",
              "--advantage-estimator reinforce_plus_plus");
  WarnIfAlone(args->ref_update_interval > 0, flags.use_kl_loss || args->kl_coef != 0.0,
              "--ref-update-interval", "--use-kl-loss or --kl-coef");
}

}  // namespace quatrain
