// Everything that decides a training run, in one place: logged, saved with the run, compared on
// resume. Names and defaults are the field's (Miles/slime arguments) where the meaning is the same.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rl/advantage.h"
#include "rl/reward.h"
#include "train/parameter.h"
#include "train/policy_loss.h"

namespace quatrain {

struct CheckpointArgs {
  std::string hf_checkpoint;  // format of the rollout weights: INT4 (QAT) or BF16
  std::string ref_load;       // BF16: starting point when --load is empty, and the KL reference
  std::string load;           // resume from here if it holds a checkpoint
  std::string save;           // run directory; checkpoints, metrics, samples
  int64_t save_interval = 0;  // rollouts; 0: only at the end
  int64_t ckpt_step = 0;      // resume from this checkpoint; 0: the newest
  int64_t keep_last_n = 0;    // checkpoints; 0: all
  std::string save_hf;        // a folder for the weights alone at every save; may hold {rollout_id}
  bool async_save = false;    // write while training goes on
};

struct RolloutArgs {
  std::string prompt_data;
  std::string input_key = "input";
  std::string label_key;
  std::string metadata_key = "metadata";
  std::string tool_key = "tools";
  double max_malformed_fraction = 0.0;  // of the lines of a data file
  bool apply_chat_template = false;
  bool rollout_shuffle = false;
  RewardOptions reward;         // --rm-type and its flags
  std::string eval_reward_key;  // --eval-reward-key; empty: the reward's own
  int64_t num_rollout = 0;
  int64_t num_epoch = 0;
  int64_t rollout_batch_size = 0;  // prompts
  int64_t n_samples_per_prompt = 1;
  int64_t over_sampling_batch_size = 0;  // prompts submitted at a time; 0: rollout_batch_size
  GroupFilter group_filter = GroupFilter::kNone;
  bool partial_rollout = false;
  bool mask_offpolicy_in_partial_rollout = false;
  int64_t rollout_max_response_len = 1024;
  double rollout_temperature = 1.0;
  double rollout_top_p = 1.0;
  int64_t rollout_top_k = -1;
  uint64_t rollout_seed = 42;
  // --use-rollout-routing-replay and --no-...; empty: on for models with experts.
  std::optional<bool> use_rollout_routing_replay;
};

struct EvalArgs {
  int64_t eval_interval = 0;                  // rollouts; 0: none
  std::vector<std::string> eval_prompt_data;  // [NAME] PATH pairs
  int64_t n_samples_per_eval_prompt = 1;
  std::optional<double> eval_temperature;  // falls back to the rollout's
  std::optional<double> eval_top_p;
  std::optional<int64_t> eval_top_k;
  std::optional<int64_t> eval_max_response_len;
  bool skip_eval_before_train = false;
};

struct BatchArgs {
  int64_t global_batch_size = 0;      // samples per optimizer step; 0: the whole rollout
  int64_t num_steps_per_rollout = 0;  // 0: from global_batch_size
  int64_t micro_batch_size = 1;       // samples, without use_dynamic_batch_size
  bool use_dynamic_batch_size = false;
  int64_t max_tokens_per_gpu = 8192;         // token budget of a micro-batch, with it
  int64_t log_probs_max_tokens_per_gpu = 0;  // of a scoring batch; 0: max_tokens_per_gpu
  bool calculate_per_token_loss = false;
  // Old log-probabilities come from the training forward instead of a pass of their own. Absent: as
  // far as that gives the same numbers.
  std::optional<bool> skip_actor_forward_only;
  // What layers have computed is kept for the backward up to here; beyond, layers run again.
  // --recompute-granularity full keeps nothing.
  int64_t trace_bytes = int64_t{256} << 20;
};

struct AlgorithmArgs {
  AdvantageEstimator advantage_estimator = AdvantageEstimator::kGrpo;
  double kl_coef = 0.0;  // of the KL penalty in the reward; needs the reference
  double gamma = 1.0;
  bool normalize_advantages = false;
  KlLossType kl_type = KlLossType::kK1;  // of the penalty and of the loss
  int64_t ref_update_interval = 0;       // rollouts; 0: the reference stays
  bool disable_grpo_std_normalization = false;
  bool disable_rewards_normalization = false;
  PolicyLossConfig loss;
};

// How weights are quantised in training and rollout (docs/int4_format.md, the table of four).
enum class QatMode {
  kQat,                   // training and rollout read the same codes
  kBf16,                  // both read the same BF16
  kBf16TrainInt4Rollout,  // mismatched: rollout re-quantised after every step
  kQatTrainBf16Rollout,   // mismatched: asked for by --rollout-weights bf16
};

struct QatArgs {
  std::optional<bool> fake_qat_flag;             // OPEN_TRAINING_INT4_FAKE_QAT_FLAG, or its flag
  std::optional<int64_t> group_size;             // OPEN_TRAINING_INT4_GROUP_SIZE
  std::optional<int64_t> requantise_group_size;  // allows another group size than the checkpoint's
  bool frozen_scales = false;        // --scale-rule frozen: the checkpoint's scales stay
  bool qat_init_calibrated = false;  // --qat-init calibrated: so do its codes, at first
  std::string rollout_weights;       // "" or "bf16"
  int64_t quant_group_size = 0;      // with rollout_weights bf16
  std::string scope;                 // with rollout_weights bf16: experts or all-linear
  int64_t code_max = 0;  // --code-max; 0: the INT4 checkpoint's, or all that the bits hold
};

struct DebugArgs {
  bool rollout_only = false;      // --debug-rollout-only: generate and judge, do not train
  bool train_only = false;        // --debug-train-only: train on loaded rollouts, do not generate
  std::string save_rollout_data;  // paths in which {rollout_id} is the rollout's number
  std::string load_rollout_data;
  bool check_weight_update_equal = false;
  int64_t exit_after_rollout = 0;
};

struct RlConfig {
  CheckpointArgs checkpoint;
  RolloutArgs rollout;
  EvalArgs eval;
  BatchArgs batch;
  AlgorithmArgs algorithm;
  OptimizerConfig optimizer;
  QatArgs qat;
  uint64_t seed = 1234;
  int threads = 0;
  DebugArgs debug;
};

}  // namespace quatrain
