#include "cli/train.h"

#include <malloc.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <memory>
#include <set>

#include "base/log.h"
#include "cli/algorithm_options.h"
#include "cli/environment.h"
#include "cli/loaded_model.h"
#include "cli/option_checks.h"
#include "cli/reward_options.h"
#include "cli/train_arguments.h"
#include "cli/watching.h"
#include "rl/rl_loop.h"

namespace quatrain {
namespace {

struct TrainArgs {
  RlConfig config;
  AlgorithmFlags algorithm;
  std::string group_filter;
  bool balance_data = false;
  WatchFlags watch;
  std::string config_file;  // read before CLI11, by train_arguments
  std::string optimizer = "adam", lr_decay_style = "constant";
};

void AddCheckpointOptions(CLI::App& command, CheckpointArgs& args) {
  command
      .add_option("--hf-checkpoint", args.hf_checkpoint,
                  "rollout format: INT4 directory for QAT, or BF16")
      ->required();
  command.add_option("--ref-load", args.ref_load,
                     "BF16 directory: start of training and KL reference");
  command.add_option("--load", args.load,
                     "resume from this run directory if it holds a checkpoint");
  command
      .add_option("--ckpt-step", args.ckpt_step,
                  "resume from the checkpoint of that rollout, not from the newest")
      ->check(Positive());
  command.add_option("--save", args.save, "run directory")->required();
  command
      .add_option("--save-interval", args.save_interval,
                  "rollouts between checkpoints; 0: only the last")
      ->check(NonNegative());
  command.add_option("--keep-last-n", args.keep_last_n, "checkpoints that stay; default: all")
      ->check(Positive());
  command.add_option("--save-hf", args.save_hf,
                     "folder for the rollout's weights alone at every checkpoint; {rollout_id} in "
                     "it stands for the rollout");
  command.add_flag("--async-save", args.async_save, "write checkpoints while training goes on");
}

void AddRolloutOptions(CLI::App& command, RolloutArgs& args) {
  command.add_option("--prompt-data", args.prompt_data, "jsonl or parquet of prompts")->required();
  command.add_option("--input-key", args.input_key, "key of the prompt")->capture_default_str();
  command.add_option("--label-key", args.label_key, "key of the right answer");
  command.add_option("--metadata-key", args.metadata_key, "key of the metadata")
      ->capture_default_str();
  command.add_option("--tool-key", args.tool_key, "key of the tools for the chat template")
      ->capture_default_str();
  command
      .add_option("--max-malformed-fraction", args.max_malformed_fraction,
                  "share of a file's lines that may be no JSON and are skipped")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  command.add_flag("--apply-chat-template", args.apply_chat_template,
                   "render prompts by the model's template");
  command.add_flag("--rollout-shuffle", args.rollout_shuffle, "shuffle prompts, anew every epoch");
  AddRewardOptions(command, &args.reward);
  command.add_option("--eval-reward-key", args.eval_reward_key,
                     "--reward-key of evaluations; default: the same");
  command.add_option("--num-rollout", args.num_rollout, "rollouts")->check(Positive());
  command.add_option("--num-epoch", args.num_epoch, "epochs, instead of --num-rollout")
      ->check(Positive());
  command.add_option("--rollout-batch-size", args.rollout_batch_size, "prompts a rollout")
      ->required()
      ->check(Positive());
  command.add_option("--n-samples-per-prompt", args.n_samples_per_prompt, "samples a prompt")
      ->check(Positive())
      ->capture_default_str();
  command
      .add_option("--over-sampling-batch-size", args.over_sampling_batch_size,
                  "prompts submitted at a time; default: --rollout-batch-size")
      ->check(Positive());
  command.add_flag("--partial-rollout", args.partial_rollout,
                   "unfinished samples go on in the next rollout");
  command.add_flag("--mask-offpolicy-in-partial-rollout", args.mask_offpolicy_in_partial_rollout,
                   "do not train on tokens drawn before the rollout that finished them");
  command.add_option("--rollout-max-response-len", args.rollout_max_response_len, "tokens")
      ->check(Positive())
      ->capture_default_str();
  command.add_option("--rollout-temperature", args.rollout_temperature, "sampling temperature")
      ->check(Positive())
      ->capture_default_str();
  command.add_option("--rollout-top-p", args.rollout_top_p, "nucleus")
      ->check(Between(1e-6, 1.0))
      ->capture_default_str();
  command.add_option("--rollout-top-k", args.rollout_top_k, "-1: off")->capture_default_str();
  command.add_option("--rollout-seed", args.rollout_seed, "of prompts' order and draws")
      ->capture_default_str();
  command.add_flag_callback(
      "--use-rollout-routing-replay", [&args] { args.use_rollout_routing_replay = true; },
      "train with the experts that the rollout chose (R3): the default for models with experts");
  command.add_flag_callback(
      "--no-use-rollout-routing-replay", [&args] { args.use_rollout_routing_replay = false; },
      "the training forward routes anew");
}

void AddEvalOptions(CLI::App& command, EvalArgs& args) {
  command.add_option("--eval-interval", args.eval_interval, "rollouts between evaluations")
      ->check(Positive());
  command.add_option("--eval-prompt-data", args.eval_prompt_data, "PATH, or NAME PATH pairs");
  command
      .add_option("--n-samples-per-eval-prompt", args.n_samples_per_eval_prompt, "samples a prompt")
      ->check(Positive())
      ->capture_default_str();
  command
      .add_option("--eval-temperature", args.eval_temperature,
                  "0 is greedy; default: the rollout's")
      ->check(NonNegative());
  command.add_option("--eval-top-p", args.eval_top_p, "default: the rollout's")
      ->check(Between(1e-6, 1.0));
  command.add_option("--eval-top-k", args.eval_top_k, "default: the rollout's");
  command
      .add_option("--eval-max-response-len", args.eval_max_response_len, "default: the rollout's")
      ->check(Positive());
  command.add_flag("--skip-eval-before-train", args.skip_eval_before_train,
                   "no evaluation of the start");
}

void AddBatchOptions(CLI::App& command, TrainArgs& args) {
  BatchArgs& batch = args.config.batch;
  command
      .add_option("--global-batch-size", batch.global_batch_size,
                  "samples an optimizer step; default: the whole rollout")
      ->check(Positive());
  command
      .add_option("--num-steps-per-rollout", batch.num_steps_per_rollout,
                  "instead of --global-batch-size")
      ->check(Positive());
  command
      .add_option("--micro-batch-size", batch.micro_batch_size,
                  "samples a micro-batch, without --use-dynamic-batch-size")
      ->check(Positive())
      ->capture_default_str();
  command.add_flag("--use-dynamic-batch-size", batch.use_dynamic_batch_size,
                   "fill micro-batches to a token budget, balanced");
  command
      .add_option("--max-tokens-per-gpu", batch.max_tokens_per_gpu,
                  "token budget of a micro-batch, with --use-dynamic-batch-size")
      ->check(Positive())
      ->capture_default_str();
  command
      .add_option("--log-probs-max-tokens-per-gpu", batch.log_probs_max_tokens_per_gpu,
                  "the same for batches that are only scored; default: --max-tokens-per-gpu")
      ->check(Positive());
  command
      .add_option_function<std::string>(
          "--recompute-granularity",
          [&batch](const std::string& what) {
            if (what == "full") batch.trace_bytes = 0;
          },
          "full: the backward runs every layer again; selective (default): those whose results "
          "fill more than 256 MiB")
      ->check(CLI::IsMember({"full", "selective"}));
  command.add_flag("--balance-data", args.balance_data,
                   "spread samples evenly over ranks: there is one");
  command.add_flag("--calculate-per-token-loss", batch.calculate_per_token_loss,
                   "mean over tokens, not over samples");
  command.add_flag_callback(
      "--skip-actor-forward-only", [&batch] { batch.skip_actor_forward_only = true; },
      "old log-probabilities are the detached new ones: by default with one optimizer step a "
      "rollout, where a pass of their own finds the same");
  command.add_flag_callback(
      "--no-skip-actor-forward-only", [&batch] { batch.skip_actor_forward_only = false; },
      "score old log-probabilities in a pass of their own");
}

void AddOptimizerOptions(CLI::App& command, TrainArgs& args) {
  OptimizerConfig& optimizer = args.config.optimizer;
  command.add_option("--optimizer", args.optimizer, "adam")
      ->check(CLI::IsMember({"adam"}))
      ->capture_default_str();
  command.add_option("--lr", optimizer.lr, "learning rate")
      ->check(NonNegative())
      ->capture_default_str();
  command.add_option("--lr-decay-style", args.lr_decay_style, "constant")
      ->check(CLI::IsMember({"constant"}))
      ->capture_default_str();
  command.add_option("--weight-decay", optimizer.weight_decay, "of matrices")
      ->check(NonNegative())
      ->capture_default_str();
  command.add_option("--adam-beta1", optimizer.adam_beta1)
      ->check(Between(0.0, 0.999999))
      ->capture_default_str();
  command.add_option("--adam-beta2", optimizer.adam_beta2)
      ->check(Between(0.0, 0.999999))
      ->capture_default_str();
  command.add_option("--adam-eps", optimizer.adam_eps)->check(Positive())->capture_default_str();
  command.add_option("--clip-grad", optimizer.clip_grad, "global norm; 0: off")
      ->check(NonNegative())
      ->capture_default_str();
  command.add_option("--seed", args.config.seed, "recorded with every checkpoint")
      ->capture_default_str();
}

void AddDebugOptions(CLI::App& command, DebugArgs& args) {
  command
      .add_option("--debug-exit-after-rollout", args.exit_after_rollout,
                  "stop cleanly after that many rollouts")
      ->check(Positive());
  command.add_flag("--debug-rollout-only", args.rollout_only, "generate and judge, do not train");
  command.add_flag("--debug-train-only", args.train_only,
                   "train on --load-debug-rollout-data; no engine, no evaluation");
  command.add_option("--save-debug-rollout-data", args.save_rollout_data,
                     "file for the samples of each rollout; {rollout_id} in it stands for the "
                     "rollout");
  command.add_option("--load-debug-rollout-data", args.load_rollout_data,
                     "read samples from there instead of generating; implies --debug-train-only");
  command.add_flag("--check-weight-update-equal", args.check_weight_update_equal,
                   "after every update make all weights anew from their masters and compare bits");
}

void AddQatOptions(CLI::App& command, QatArgs& args) {
  command
      .add_option_function<std::string>(
          "--scale-rule",
          [&args](const std::string& rule) { args.frozen_scales |= rule == "frozen"; },
          "absmax/7: scales from the weights after every step (default); frozen: the checkpoint's")
      ->check(CLI::IsMember({"absmax/7", "frozen"}));
  command
      .add_option_function<std::string>(
          "--qat-init",
          [&args](const std::string& init) {
            args.qat_init_calibrated = init == "calibrated";
            args.frozen_scales |= args.qat_init_calibrated;
          },
          "weights: codes follow from the BF16 weights (default); calibrated: the first rollout "
          "samples from the checkpoint's own codes, under frozen scales")
      ->check(CLI::IsMember({"weights", "calibrated"}));
  command
      .add_option("--requantise-group-size", args.requantise_group_size,
                  "another group size than the INT4 checkpoint's")
      ->check(Positive());
  command
      .add_option("--rollout-weights", args.rollout_weights,
                  "bf16: train INT4, roll out BF16 (a mismatched case)")
      ->check(CLI::IsMember({"bf16"}));
  command.add_option("--quant-group-size", args.quant_group_size, "with --rollout-weights bf16")
      ->check(Positive());
  command.add_option("--scope", args.scope, "with --rollout-weights bf16")
      ->check(CLI::IsMember({"experts", "all-linear"}));
  command
      .add_option("--code-max", args.code_max,
                  "largest code with --rollout-weights bf16: 7, or less for a narrower grid; an "
                  "INT4 checkpoint brings its own")
      ->check(Between(1, 7));
}

// Miles and slime name a Python function; the one that they ship is built in.
GroupFilter ParseGroupFilter(const std::string& path) {
  if (path.empty()) return GroupFilter::kNone;
  if (path.ends_with("check_reward_nonzero_std")) return GroupFilter::kNonzeroRewardStd;
  throw Error(ErrorCode::kUsage, {.where = "--dynamic-sampling-filter-path",
                                  .what = "no Python is run, and no built-in filter has this name",
                                  .expected = "a path that ends in check_reward_nonzero_std",
                                  .found = "'" + path + "'"});
}

void FinishRollout(const TrainArgs& args, RolloutArgs* rollout) {
  rollout->group_filter = ParseGroupFilter(args.group_filter);
  const int64_t over = rollout->over_sampling_batch_size;
  if (over != 0 && over < rollout->rollout_batch_size) {
    throw Error(ErrorCode::kUsage, {.where = "--over-sampling-batch-size",
                                    .what = "fewer prompts than a rollout needs",
                                    .expected = fmt::format("at least --rollout-batch-size {}",
                                                            rollout->rollout_batch_size),
                                    .found = fmt::format("{}", over)});
  }
  const bool is_over =
      over > rollout->rollout_batch_size || rollout->group_filter != GroupFilter::kNone;
  if (rollout->partial_rollout && !is_over) {
    Log().warn(
        "--partial-rollout has no effect without --over-sampling-batch-size above "
        "--rollout-batch-size: nothing is left unfinished");
  }
  if (rollout->mask_offpolicy_in_partial_rollout && !rollout->partial_rollout)
    Log().warn("--mask-offpolicy-in-partial-rollout has no effect without --partial-rollout");
}

void NoteBatching(const TrainArgs& args, const BatchArgs& batch, bool has_token_budget) {
  if (args.balance_data)
    Log().info("--balance-data: one rank trains, so there is nothing to spread");
  if (has_token_budget && !batch.use_dynamic_batch_size) {
    Log().warn(
        "--max-tokens-per-gpu has no effect without --use-dynamic-batch-size; micro-batches "
        "are of --micro-batch-size {} samples",
        batch.micro_batch_size);
  }
}

void FinishDebug(DebugArgs* debug) {
  if (!debug->load_rollout_data.empty()) debug->train_only = true;
  if (debug->rollout_only && debug->train_only) {
    throw Error(ErrorCode::kUsage, {.where = "--debug-rollout-only, --debug-train-only",
                                    .what = "each leaves out what the other does",
                                    .expected = "one of them"});
  }
  if (debug->train_only && debug->load_rollout_data.empty()) {
    throw Error(ErrorCode::kUsage, {.where = "--debug-train-only",
                                    .what = "there is nothing to train on",
                                    .expected = "--load-debug-rollout-data FILE",
                                    .found = "none",
                                    .todo = "Write one with --save-debug-rollout-data FILE"});
  }
}

// A rollout lives in memory until it has been trained on.
void CheckRolloutSize(const RolloutArgs& rollout) {
  constexpr int64_t kMostSamples = int64_t{1} << 20;
  if (rollout.rollout_batch_size <= kMostSamples / rollout.n_samples_per_prompt) return;
  throw Error(ErrorCode::kUsage, {.where = "--rollout-batch-size, --n-samples-per-prompt",
                                  .what = "a rollout of so many samples cannot be kept in memory",
                                  .expected = fmt::format("a product of at most {}", kMostSamples),
                                  .found = fmt::format("{} x {}", rollout.rollout_batch_size,
                                                       rollout.n_samples_per_prompt)});
}

// Flags that only act together become the loss and batch configuration; ignored ones warn.
void Finish(TrainArgs& args, bool has_token_budget) {
  RlConfig& config = args.config;
  FinishRollout(args, &config.rollout);
  NoteBatching(args, config.batch, has_token_budget);
  FinishAlgorithm(args.algorithm, &config.algorithm);
  FinishDebug(&config.debug);
  if (config.checkpoint.ckpt_step > 0 && config.checkpoint.load.empty())
    Log().warn("--ckpt-step has no effect without --load");
  if ((config.rollout.num_rollout > 0) == (config.rollout.num_epoch > 0)) {
    throw Error(ErrorCode::kUsage, {.where = "--num-rollout, --num-epoch",
                                    .what = "one of them says how long to train",
                                    .expected = "exactly one"});
  }
  const std::string& rm_type = config.rollout.reward.rm_type;
  const bool needs_labels = !rm_type.ends_with("random") && !rm_type.ends_with("remote_rm");
  if (config.rollout.label_key.empty() && needs_labels) {
    throw Error(ErrorCode::kUsage, {.where = "--label-key",
                                    .what = "the reward needs the right answers",
                                    .expected = "the key of the label in --prompt-data",
                                    .found = "none"});
  }
  CheckRolloutSize(config.rollout);
  BatchArgs& batch = config.batch;
  const int64_t samples = config.rollout.rollout_batch_size * config.rollout.n_samples_per_prompt;
  const int64_t from_steps =
      batch.num_steps_per_rollout > 0 ? samples / batch.num_steps_per_rollout : samples;
  if (batch.global_batch_size == 0) batch.global_batch_size = from_steps;
  if (samples % batch.global_batch_size != 0 ||
      (batch.num_steps_per_rollout > 0 &&
       batch.global_batch_size * batch.num_steps_per_rollout != samples)) {
    throw Error(ErrorCode::kUsage,
                {.where = "--global-batch-size",
                 .what = "a rollout is no whole number of optimizer steps",
                 .expected = fmt::format(
                     "a divisor of rollout-batch-size x n-samples-per-prompt = {}", samples),
                 .found = fmt::format("{}", batch.global_batch_size)});
  }
  if (config.eval.eval_interval > 0 && config.eval.eval_prompt_data.empty()) {
    throw Error(ErrorCode::kUsage, {.where = "--eval-interval",
                                    .what = "there is nothing to evaluate",
                                    .expected = "--eval-prompt-data",
                                    .found = "none"});
  }
}

Json ValuesOf(const std::vector<std::string>& values) {
  return values.size() == 1 ? Json(values[0]) : Json(values);
}

// Every option that was set, by its name, and under "defaults" the others that have a value.
Json FlagsOf(const CLI::App& command, const QatArgs& qat) {
  Json flags, defaults;
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_lnames().empty() || option->get_lnames()[0] == "config") continue;
    const std::string& name = option->get_lnames()[0];
    if (option->count() > 0) {
      flags[name] = ValuesOf(option->results());
    } else if (!option->get_default_str().empty()) {
      defaults[name] = option->get_default_str();
    }
  }
  if (qat.fake_qat_flag) flags["OPEN_TRAINING_INT4_FAKE_QAT_FLAG"] = *qat.fake_qat_flag ? 1 : 0;
  if (qat.group_size) flags["OPEN_TRAINING_INT4_GROUP_SIZE"] = *qat.group_size;
  flags["defaults"] = std::move(defaults);
  return flags;
}

void LogConfiguration(const Json& flags, const RlConfig& config) {
  std::string line;
  for (const auto& [name, value] : flags.items()) {
    if (!value.is_object()) line += fmt::format(" {}={}", name, DumpJson(value));
  }
  Log().info("configuration:{}", line);
  Log().info("defaults: {}", DumpJson(flags["defaults"]));
  const char* omp = std::getenv("OMP_NUM_THREADS");
  Log().info("threads: {}{}",
             config.threads > 0 ? fmt::format("{} (--threads)", config.threads)
                                : "all CPUs of this process (--threads 0)",
             omp != nullptr ? fmt::format("; OMP_NUM_THREADS={} is not heeded", omp) : "");
}

// Every rollout and every step want the memory again that the one before gave back: from the system
// it would come as pages to be cleared, one fault each. 32 MiB is the most that glibc takes.
void KeepFreedMemory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

}  // namespace

void AddTrainCommand(CLI::App& app) {
  auto args = std::make_shared<TrainArgs>();
  CLI::App* command =
      app.add_subcommand("train", "GRPO in which training and rollout read the same INT4 weights");
  command->footer(
      "Quantisation-aware training is switched on by OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1 (and "
      "OPEN_TRAINING_INT4_GROUP_SIZE, "
      "checked against the checkpoint).\nExample: OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1 "
      "OPEN_TRAINING_INT4_GROUP_SIZE=32 "
      "quatrain train --hf-checkpoint runs/int4 --ref-load examples/models/tiny-qwen3-moe --save "
      "runs/qat "
      "--prompt-data examples/data/arithmetic/train.jsonl --input-key prompt --label-key label "
      "--apply-chat-template "
      "--num-rollout 25 --rollout-batch-size 32 --n-samples-per-prompt 8 --rollout-temperature 0.8 "
      "--lr 3e-5");
  command->add_option("--config", args->config_file,
                      "TOML with these flags; the command line wins");
  AddCheckpointOptions(*command, args->config.checkpoint);
  AddRolloutOptions(*command, args->config.rollout);
  command->add_option("--dynamic-sampling-filter-path", args->group_filter,
                      "a name ending in check_reward_nonzero_std: drop groups of one reward");
  AddEvalOptions(*command, args->config.eval);
  AddAlgorithmOptions(*command, &args->algorithm, &args->config.algorithm);
  AddBatchOptions(*command, *args);
  AddOptimizerOptions(*command, *args);
  AddDebugOptions(*command, args->config.debug);
  AddQatOptions(*command, args->config.qat);
  AddWatchOptions(*command, &args->watch);
  AddThreadsOption(*command, &args->config.threads);
  command->callback([args, command] {
    ReadQatEnvironment(&args->config.qat);
    Finish(*args, command->count("--max-tokens-per-gpu") > 0);
    const Json flags = FlagsOf(*command, args->config.qat);
    LogConfiguration(flags, args->config);
    KeepFreedMemory();
    Watching watching(args->watch, args->config.checkpoint.save);
    RunTraining(args->config, flags, watching.watchers());
  });
}

std::vector<std::string> PrepareTrainCommand(const CLI::App& app,
                                             const std::vector<std::string>& arguments) {
  std::set<std::string> own_flags;
  for (const CLI::Option* option : app.get_subcommand("train")->get_options()) {
    for (const std::string& name : option->get_lnames()) own_flags.insert("--" + name);
  }
  const TrainArguments prepared =
      PrepareTrainArguments({arguments.begin() + 1, arguments.end()}, own_flags);
  for (const std::string& note : prepared.notes) Log().info("{}", note);
  std::vector<std::string> all = {arguments[0]};
  all.insert(all.end(), prepared.own.begin(), prepared.own.end());
  return all;
}

}  // namespace quatrain
