#include "cli/foreign_flags.h"

#include <algorithm>

#include "base/error.h"

namespace quatrain {
namespace {

using Values = ForeignFlag::Values;
using Treatment = ForeignFlag::Treatment;

constexpr Values kNone = Values::kNone, kOne = Values::kOne, kMany = Values::kMany;
constexpr Treatment kAccepted = Treatment::kAccepted, kRefused = Treatment::kRefused;

constexpr std::string_view kParallel = "one process trains and rolls out the whole model";
constexpr std::string_view kMemory = "--recompute-granularity full recomputes every layer; exact";
constexpr std::string_view kOffload = "masters and moments stay where they are";
constexpr std::string_view kExact = "sums are FP32 in a fixed order always";
constexpr std::string_view kEngine = "our engine rolls out; no SGLang runs";
constexpr std::string_view kConfig = "read from config.json of --hf-checkpoint";
constexpr std::string_view kUpdate = "rollout reads the trained weights in place; nothing is sent";
constexpr std::string_view kTracker =
    "metrics go to metrics.jsonl under --save; see --use-tensorboard, --dashboard-port";
constexpr std::string_view kPython =
    "no Python is run; take a built-in --rm-type, or remote_rm with --rm-url";
constexpr std::string_view kNoPython = "no Python is run; drop it";

std::vector<ForeignFlag> ClusterFlags() {
  return {
      {"--actor-num-nodes", kOne, kAccepted, kParallel},
      {"--actor-num-gpus-per-node", kOne, kAccepted, kParallel},
      {"--rollout-num-gpus", kOne, kAccepted, kParallel},
      {"--rollout-num-gpus-per-engine", kOne, kAccepted, kParallel},
      {"--num-gpus-per-node", kOne, kAccepted, kParallel},
      {"--colocate", kNone, kAccepted, "training and rollout share one process always"},
      {"--offload", kNone, kAccepted, kOffload},
      {"--offload-train", kNone, kAccepted, kOffload},
      {"--offload-rollout", kNone, kAccepted, kOffload},
      {"--offload-rollout-level", kMany, kAccepted, kOffload},
      {"--train-backend", kOne, kAccepted, "our own trainer; neither Megatron nor FSDP"},
      {"--qkv-format", kOne, kAccepted, "sequences are packed without padding", "thd"},
      {"--train-memory-margin-bytes", kOne, kAccepted, "memory is checked before a run"},
      {"--megatron-to-hf-mode", kOne, kAccepted, "checkpoints are Hugging Face folders"},
      {"--tensor-model-parallel-size", kOne, kAccepted, kParallel},
      {"--sequence-parallel", kNone, kAccepted, kParallel},
      {"--pipeline-model-parallel-size", kOne, kAccepted, kParallel},
      {"--decoder-last-pipeline-num-layers", kOne, kAccepted, kParallel},
      {"--decoder-first-pipeline-num-layers", kOne, kAccepted, kParallel},
      {"--context-parallel-size", kOne, kAccepted, kParallel},
      {"--expert-model-parallel-size", kOne, kAccepted, kParallel},
      {"--expert-tensor-parallel-size", kOne, kAccepted, kParallel},
      {"--use-fault-tolerance", kNone, kAccepted, "one process: resume with --load"},
      {"--rollout-health-check-*", kOne, kAccepted, "one process: nothing to watch"},
  };
}

std::vector<ForeignFlag> TrainingFlags() {
  return {
      {"--recompute-method", kOne, kAccepted, kMemory},
      {"--recompute-num-layers", kOne, kAccepted, kMemory},
      {"--optimizer-cpu-offload", kNone, kAccepted, kOffload},
      {"--overlap-cpu-optimizer-d2h-h2d", kNone, kAccepted, kOffload},
      {"--use-precision-aware-optimizer", kNone, kAccepted, "masters and moments are FP32"},
      {"--use-distributed-optimizer", kNone, kAccepted, kParallel},
      {"--attention-dropout", kOne, kAccepted, "there is no dropout", "0 0.0"},
      {"--hidden-dropout", kOne, kAccepted, "there is no dropout", "0 0.0"},
      {"--accumulate-allreduce-grads-in-fp32", kNone, kAccepted, kExact},
      {"--attention-softmax-in-fp32", kNone, kAccepted, kExact},
      {"--attention-backend", kOne, kAccepted, "our own attention kernel"},
      {"--data-pad-size-multiplier", kOne, kAccepted, "nothing is padded"},
      {"--balance-by-flops", kNone, kAccepted, "micro-batches are balanced by tokens"},
      {"--allow-partial-train-step", kNone, kRefused,
       "take --global-batch-size that divides the rollout"},
      {"--lambd", kOne, kAccepted, "only PPO has it", "1 1.0"},
      {"--keep-old-actor", kNone, kAccepted, "old log-probabilities are scored before the steps"},
      {"--get-mismatch-metrics", kNone, kAccepted, "they are always in the metrics"},
      {"--max-weight-staleness", kOne, kAccepted, "a rollout begins with the newest weights"},
      {"--use-routing-replay", kNone, kAccepted,
       "scoring and training choose the same experts by exact kernels"},
      {"--fully-async", kNone, kRefused, "rollout and training take turns; drop it"},
      {"--fp16", kNone, kRefused, "training is BF16; drop it"},
      {"--bf16", kNone, kAccepted, "training is BF16"},
      {"--no-check-for-nan-in-loss-and-grad", kNone, kAccepted, "it has no counterpart"},
      {"--lr-warmup-iters", kOne, kAccepted, "the rate is constant", "0"},
      {"--lr-warmup-fraction", kOne, kAccepted, "the rate is constant", "0 0.0"},
      {"--min-lr", kOne, kAccepted, "the rate is constant"},
      {"--mtp-num-layers", kOne, kAccepted, "there is no multi-token prediction", "0"},
      {"--enable-mtp-training", kNone, kRefused, "multi-token prediction is not trained; drop it"},
      {"--mtp-loss-scaling-factor", kOne, kAccepted, "there is no multi-token prediction"},
      {"--only-train-params-name-list", kMany, kRefused, "all weights train; drop it"},
      {"--freeze-params-name-list", kMany, kRefused, "all weights train; drop it"},
      {"--no-save-optim", kNone, kRefused, "checkpoints always hold the optimizer; drop it"},
      {"--no-load-optim", kNone, kRefused, "start anew from --ref-load instead of --load"},
      {"--no-load-rng", kNone, kAccepted, "draws are keyed; there is no generator's state"},
      {"--finetune", kNone, kRefused, "start anew: --ref-load without --load"},
      {"--true-on-policy-mode", kNone, kAccepted, "log-probabilities agree bit for bit always"},
      {"--deterministic-mode", kNone, kAccepted, "always deterministic"},
      {"--loss-type", kOne, kAccepted, "the policy loss", "policy_loss"},
      {"--custom-loss-function-path", kOne, kRefused, kNoPython},
  };
}

std::vector<ForeignFlag> RolloutFlags() {
  return {
      {"--sglang-*", kMany, kAccepted, kEngine},
      {"--update-weight-buffer-size", kOne, kAccepted, kUpdate},
      {"--update-weights-interval", kOne, kAccepted, "after every rollout", "1"},
      {"--pause-generation-mode", kOne, kAccepted, kUpdate},
      {"--update-weight-transfer-mode", kOne, kAccepted, kUpdate},
      {"--p2p-transfer-*", kOne, kAccepted, kUpdate},
      {"--rollout-stop", kMany, kRefused, "generation stops at the model's stop tokens; drop it"},
      {"--rollout-stop-token-ids", kMany, kRefused,
       "set eos_token_id in generation_config.json of --hf-checkpoint"},
      {"--rollout-skip-special-tokens", kNone, kAccepted, "rewards read special tokens"},
      {"--rollout-global-dataset", kNone, kAccepted, "--prompt-data is the data set"},
      {"--start-rollout-id", kOne, kRefused, "resume with --load"},
      {"--eval-num-gpus", kOne, kAccepted, "the rollout's engine evaluates", "0"},
      {"--eval-hf-dir", kOne, kRefused, "use quatrain eval for another checkpoint"},
      {"--eval-max-in-flight", kOne, kAccepted, "evaluation waits for its end"},
      {"--eval-keep-snapshots", kOne, kAccepted, "evaluation reads the weights in place"},
      {"--rollout-function-path", kOne, kRefused, kNoPython},
      {"--eval-function-path", kOne, kRefused, kNoPython},
      {"--custom-generate-function-path", kOne, kRefused, kNoPython},
      {"--custom-rm-path", kOne, kRefused, kPython},
      {"--group-rm", kNone, kRefused, kPython},
      {"--custom-reward-post-process-path", kOne, kRefused, kNoPython},
      {"--buffer-filter-path", kOne, kRefused, kNoPython},
      {"--custom-config-path", kOne, kRefused, "use --config FILE (TOML)"},
      {"--chat-template-path", kOne, kRefused,
       "put chat_template.jinja into the folder of --hf-checkpoint"},
  };
}

std::vector<ForeignFlag> WatchingFlags() {
  return {
      {"--use-wandb", kNone, kAccepted, kTracker},
      {"--wandb-*", kOne, kAccepted, kTracker},
      {"--use-mlflow", kNone, kAccepted, kTracker},
      {"--use-prometheus", kNone, kAccepted, kTracker},
      {"--use-miles-dashboard", kNone, kAccepted, kTracker},
      {"--tb-project-name", kOne, kAccepted, "--tensorboard-dir says where the files go"},
      {"--tb-experiment-name", kOne, kAccepted, "--tensorboard-dir says where the files go"},
      {"--dump-details", kOne, kAccepted, "samples.jsonl under --save"},
      {"--save-debug-train-data", kOne, kRefused, "not written; drop it"},
      {"--ci-inject-rollout-data-path", kOne, kRefused, "use --load-debug-rollout-data"},
      {"--debug-disable-optimizer", kNone, kRefused, "use --lr 0, which changes no weight"},
      {"--debug-skip-weight-update", kNone, kRefused, kUpdate},
      {"--debug-deterministic-collective", kNone, kAccepted, "always deterministic"},
      {"--log-passrate", kNone, kAccepted, kTracker},
      {"--save-trigger-sentinel", kOne, kRefused, "Ctrl-C saves and ends; --save-interval saves"},
      {"--ckpt-format", kOne, kAccepted, "safetensors"},
  };
}

// What scripts/models/*.sh of the field pass to Megatron.
std::vector<ForeignFlag> ModelFlags() {
  std::vector<ForeignFlag> flags;
  for (const std::string_view name : {"--num-layers",
                                      "--hidden-size",
                                      "--ffn-hidden-size",
                                      "--num-attention-heads",
                                      "--num-query-groups",
                                      "--kv-channels",
                                      "--normalization",
                                      "--norm-epsilon",
                                      "--rotary-base",
                                      "--rotary-percent",
                                      "--rotary-scaling-factor",
                                      "--vocab-size",
                                      "--make-vocab-size-divisible-by",
                                      "--max-position-embeddings",
                                      "--seq-length",
                                      "--moe-ffn-hidden-size",
                                      "--moe-router-score-function",
                                      "--moe-token-dispatcher-type",
                                      "--moe-router-topk",
                                      "--moe-router-num-groups",
                                      "--moe-router-group-topk",
                                      "--moe-router-topk-scaling-factor",
                                      "--moe-router-bias-update-rate",
                                      "--moe-router-load-balancing-type",
                                      "--moe-shared-expert-intermediate-size",
                                      "--moe-layer-freq",
                                      "--num-experts",
                                      "--moe-token-drop-policy",
                                      "--moe-router-dtype",
                                      "--q-lora-rank",
                                      "--kv-lora-rank",
                                      "--qk-head-dim",
                                      "--qk-pos-emb-head-dim",
                                      "--v-head-dim",
                                      "--mscale",
                                      "--mscale-all-dim",
                                      "--original-max-position-embeddings",
                                      "--position-embedding-type",
                                      "--beta-fast",
                                      "--beta-slow"}) {
    flags.push_back({name, kOne, kAccepted, kConfig});
  }
  for (const std::string_view name :
       {"--swiglu", "--group-query-attention", "--use-rotary-position-embeddings",
        "--disable-bias-linear", "--add-qkv-bias", "--qk-layernorm", "--moe-grouped-gemm",
        "--moe-permute-fusion", "--moe-router-pre-softmax", "--moe-router-enable-expert-bias",
        "--moe-shared-expert-overlap", "--untie-embeddings-and-output-weights",
        "--multi-latent-attention", "--no-rope-fusion", "--moe-enable-deepep"}) {
    flags.push_back({name, kNone, kAccepted, kConfig});
  }
  flags.push_back(
      {"--moe-aux-loss-coeff", kOne, kAccepted, "there is no auxiliary loss", "0 0.0 0e0"});
  return flags;
}

[[noreturn]] void Refuse(const std::string& name, const std::string& what,
                         const std::string& expected, std::string_view todo) {
  throw Error(
      ErrorCode::kUsage,
      {.where = name, .what = what, .expected = expected, .todo = "Instead: " + std::string(todo)});
}

bool IsListed(std::string_view list, const std::string& value) {
  return (" " + std::string(list) + " ").find(" " + value + " ") != std::string::npos;
}

}  // namespace

const std::vector<ForeignFlag>& ForeignFlags() {
  static const std::vector<ForeignFlag> kFlags = [] {
    std::vector<ForeignFlag> all;
    for (const auto& group :
         {ClusterFlags(), TrainingFlags(), RolloutFlags(), WatchingFlags(), ModelFlags()}) {
      all.insert(all.end(), group.begin(), group.end());
    }
    return all;
  }();
  return kFlags;
}

const ForeignFlag* FindForeignFlag(std::string_view name) {
  const ForeignFlag* found = nullptr;
  for (const ForeignFlag& flag : ForeignFlags()) {
    if (flag.name == name) return &flag;
    const bool is_pattern = flag.name.ends_with('*');
    if (is_pattern && name.starts_with(flag.name.substr(0, flag.name.size() - 1))) found = &flag;
  }
  return found;
}

std::string TreatForeignFlag(const ForeignFlag& flag, const std::string& name,
                             const std::vector<std::string>& values) {
  if (flag.treatment == Treatment::kRefused) Refuse(name, "not supported", "", flag.note);
  if (flag.values == kNone && !values.empty())
    Refuse(name, "it takes no value", "none", "drop '" + values[0] + "'");
  if (flag.values == kOne && values.size() != 1)
    Refuse(name, fmt::format("{} values", values.size()), "one value", "correct it");
  const bool is_honoured = flag.accepted_values.empty() ||
                           (values.size() == 1 && IsListed(flag.accepted_values, values[0]));
  if (!is_honoured) {
    Refuse(name,
           "value " + (values.empty() ? std::string("none") : values[0]) + " cannot be honoured",
           std::string(flag.accepted_values), std::string(flag.note) + "; drop it");
  }
  return fmt::format("{}: no effect here; {}", name, flag.note);
}

}  // namespace quatrain
