#include "rl/rl_run.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "base/file.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/progress.h"
#include "quant/metadata.h"
#include "rl/advantage.h"
#include "rl/rollout_metrics.h"
#include "rl/run_folder.h"
#include "rl/sample_io.h"
#include "rl/sample_log.h"
#include "rl/state_bytes.h"
#include "text/generation_config.h"

namespace quatrain {
namespace {

constexpr const char* kMetricsFile = "metrics.jsonl";
constexpr const char* kSamplesFile = "samples.jsonl";
constexpr int64_t kSamplesLogged = 4;  // per rollout, from different prompts

[[noreturn]] void DamagedState(const std::filesystem::path& file, const std::string& expected,
                               const std::string& found) {
  throw Error(ErrorCode::kData,
              {.where = file.string(),
               .what = "the checkpoint is damaged",
               .expected = expected,
               .found = found,
               .todo = "Take another one with --ckpt-step, or train without --load"});
}

// The field's own check of replayed routing: below 1 % of the pairs (Miles,
// MILES_TEST_R3_THRESHOLD).
void WarnIfRoutedElsewhere(const RoutingOverlap& routing) {
  constexpr double kMostDisjoint = 0.01;
  if (routing.disjoint() < kMostDisjoint) return;
  Log().warn(
      "{:.1f} % of the (token, layer) pairs are trained through none of the experts that the "
      "router "
      "would choose now: the weights have moved far since the rollout, or the record is of another "
      "model",
      100 * routing.disjoint());
}

bool IsSameFolder(const std::filesystem::path& a, const std::filesystem::path& b) {
  std::error_code absent;
  return std::filesystem::equivalent(a, b, absent);
}

// A counter of state.json.
int64_t CountOf(const Json& state, const char* key, const std::filesystem::path& folder) {
  const Json value = state.value(key, Json());
  if (!value.is_number_integer() || value.get<int64_t>() < 0) {
    DamagedState(folder / "state.json", fmt::format("a count under \"{}\"", key), value.dump());
  }
  return value.get<int64_t>();
}

std::filesystem::path FailedRolloutFile(const RlConfig& config, int64_t rollout) {
  return std::filesystem::path(config.checkpoint.save) /
         fmt::format("failed_rollout_{:07}.cbor", rollout + 1);
}

// The name of an evaluation as part of a file's: it comes from a flag.
std::string FileNamePart(std::string name) {
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '_') c = '_';
  }
  return name;
}

RoutingReplay RoutingReplayOf(const RolloutArgs& rollout, const ModelConfig& model) {
  const bool has_experts = model.num_moe_layers() > 0;
  if (rollout.use_rollout_routing_replay.value_or(false) && !has_experts) {
    throw Error(ErrorCode::kUsage, {.where = "--use-rollout-routing-replay",
                                    .what = "the model has no experts to route to",
                                    .expected = "a mixture of experts",
                                    .found = "a dense model",
                                    .todo = "Drop the flag"});
  }
  return rollout.use_rollout_routing_replay.value_or(has_experts) ? RoutingReplay::kOn
                                                                  : RoutingReplay::kOff;
}

RewardNormalization NormalizationOf(const AlgorithmArgs& algorithm) {
  if (algorithm.advantage_estimator == AdvantageEstimator::kReinforcePlusPlus)
    return RewardNormalization::kNone;
  if (algorithm.advantage_estimator == AdvantageEstimator::kReinforcePlusPlusBaseline)
    return RewardNormalization::kMean;
  if (algorithm.disable_rewards_normalization) return RewardNormalization::kNone;
  return algorithm.disable_grpo_std_normalization ? RewardNormalization::kMean
                                                  : RewardNormalization::kMeanAndStd;
}

}  // namespace

Run::Run(const RlConfig& config, const Json& flags)
    : config_(config),
      flags_(flags),
      pool_(config.threads),
      ctx_{pool_},
      models_(config),
      tokenizer_(Tokenizer::Load(config.checkpoint.hf_checkpoint)) {
  if (config_.rollout.apply_chat_template)
    chat_template_.emplace(ChatTemplate::Load(config.checkpoint.hf_checkpoint));
  stop_token_ids_ =
      LoadGenerationConfig(config.checkpoint.hf_checkpoint, tokenizer_).stop_token_ids;
  RewardOptions reward = config_.rollout.reward;
  reward_ = MakeReward(reward);
  if (!config_.rollout.eval_reward_key.empty()) reward.reward_key = config_.rollout.eval_reward_key;
  eval_reward_ = MakeReward(reward);
  routing_replay_ = RoutingReplayOf(config_.rollout, models_.hf().config());
  ReadData();
  parameters_.emplace(ctx_, models_.start_weights(), &models_.trained(), models_.separate_rollout(),
                      config_.optimizer, models_.scheme().value_or(QuantScheme{}),
                      config_.qat.qat_init_calibrated ? MasterStart::kCodes : MasterStart::kValues);
  models_.ReleaseStart();
  if (const ModelWeights* quantized = models_.quantized_table()) dead_zone_.emplace(*quantized);
  trainer_.emplace(
      ctx_, models_.trained_decoder(), *parameters_,
      TrainerConfig{config_.algorithm.loss, static_cast<float>(config_.rollout.rollout_temperature),
                    config_.batch.trace_bytes});
  if (!config_.debug.train_only) {
    EngineConfig engine;
    engine.scheduler.max_num_seqs = 256;
    engine_.emplace(ctx_, models_.rollout_decoder(), engine);
    MakeSampler();
  }
  // Nothing is written before all of the above has been found sound.
  const std::filesystem::path save = config_.checkpoint.save;
  PrepareRunFolder(save, config_.checkpoint.load);
  OpenLogFile(save / "train.log");
  store_.emplace(CheckpointStoreOptions{.run = save,
                                        .num_kept = config_.checkpoint.keep_last_n,
                                        .save_hf = config_.checkpoint.save_hf});
  Resume();
  WriteFileAtomic(save / "config.json", flags.dump(2) + "\n");
  metrics_ = std::make_unique<MetricsWriter>(save / kMetricsFile);
  samples_ = std::make_unique<MetricsWriter>(save / kSamplesFile);
  Log().info("{}: {} weights, {} of them quantised{}; {} threads", models_.hf().name(),
             models_.trained().size(), models_.num_quantized(),
             models_.scheme() ? " as " + models_.scheme()->Name() : "", pool_.num_threads());
}

void Run::ReadData() {
  PromptDatasetOptions data;
  data.input_key = config_.rollout.input_key;
  data.label_key = config_.rollout.label_key;
  data.metadata_key = config_.rollout.metadata_key;
  data.tool_key = config_.rollout.tool_key;
  data.max_malformed_fraction = config_.rollout.max_malformed_fraction;
  data.order = config_.rollout.rollout_shuffle ? PromptOrder::kShuffled : PromptOrder::kFile;
  data.seed = config_.rollout.rollout_seed;
  dataset_.emplace(ReadPrompts(config_.rollout.prompt_data, data), data);
  eval_sets_ = ReadEvalSets(config_.eval.eval_prompt_data, data);
  CheckPromptsFit();
  num_rollouts_ = config_.rollout.num_rollout > 0
                      ? config_.rollout.num_rollout
                      : NumRollouts(dataset_->size(), config_.rollout.rollout_batch_size,
                                    config_.rollout.num_epoch);
}

void Run::CheckPromptsFit() const {
  const int64_t context = models_.hf().config().max_position_embeddings;
  const RolloutText text{tokenizer_, chat_template_ ? &*chat_template_ : nullptr};
  RolloutOptions options;
  options.apply_chat_template = config_.rollout.apply_chat_template;
  for (const Prompt& prompt : dataset_->prompts()) {
    const auto length = static_cast<int64_t>(PromptIds(text, prompt, options).size());
    if (length == 0 || length >= context) {
      throw Error(ErrorCode::kData,
                  {.where = fmt::format("{}: row {}", config_.rollout.prompt_data, prompt.id + 1),
                   .what = length == 0 ? "the prompt has no tokens"
                                       : "the prompt is longer than the context",
                   .expected = fmt::format("1 to {} tokens", context - 1),
                   .found = fmt::format("{}", length),
                   .todo = "Shorten or remove the row"});
    }
  }
}

void Run::Resume() {
  const std::filesystem::path load = config_.checkpoint.load;
  if (load.empty()) return;
  const auto iteration = FindCheckpoint(load, config_.checkpoint.ckpt_step);
  if (!iteration.has_value()) {
    GoBackInLogs({{kMetricsFile, 0u}, {kSamplesFile, 0u}});
    Log().info("{} holds no checkpoint; training starts from {}", load.string(),
               models_.start().name());
    return;
  }
  const std::filesystem::path folder = *iteration / "state";
  const Json state = LoadTrainingState(ctx_, folder, *parameters_);
  if (dead_zone_) dead_zone_->Restore(folder);
  if (models_.reference() != nullptr && std::filesystem::exists(*iteration / "reference")) {
    const ModelWeights saved = LoadWeights(Checkpoint(*iteration / "reference"), at::kBFloat16);
    for (size_t i = 0; i < saved.size(); ++i) {
      (*models_.reference())[i].dense.copy_(saved[i].dense);
    }
  }
  start_rollout_ = CountOf(state, "next_rollout", folder);
  policy_version_ = CountOf(state, "policy_version", folder);
  dataset_->Restore(state.value("dataset", Json::object()));
  const std::filesystem::path partial = folder / kPartialFile;
  if (std::filesystem::exists(partial) && sampler_) {
    const Json kept = Json::from_cbor(ReadFile(partial), true, false);
    if (kept.is_discarded()) DamagedState(partial, "CBOR", "other bytes");
    sampler_->Restore(kept, *dataset_);
  }
  if (engine_) engine_->UpdateWeights(policy_version_);
  NoteChangedFlags(state);
  if (config_.checkpoint.ckpt_step > 0 && IsSameFolder(load, config_.checkpoint.save))
    WriteFileAtomic(load / kLatestFile, fmt::format("{}\n", start_rollout_));
  GoBackInLogs(state.value("log_sizes", Json::object()));
  Log().info("resumed from {} after {} rollouts", iteration->string(), start_rollout_);
}

// Metrics and samples of rollouts that the checkpoint does not know are run again; a run that was
// killed and resumed then has the rows of one that was not.
void Run::GoBackInLogs(const Json& sizes) const {
  const std::filesystem::path save = config_.checkpoint.save;
  if (!IsSameFolder(save, config_.checkpoint.load)) return;
  std::error_code absent;
  for (const auto& [name, value] : sizes.items()) {
    const bool is_ours = name == kMetricsFile || name == kSamplesFile;
    const uint64_t size = std::filesystem::file_size(save / name, absent);
    if (absent || !is_ours || !value.is_number_unsigned() || value.get<uint64_t>() >= size)
      continue;
    std::filesystem::resize_file(save / name, value.get<uint64_t>(), absent);
  }
}

void Run::NoteChangedFlags(const Json& state) const {
  const Json before = state.value("config", Json::object());
  std::string changes;
  const auto note = [&](const std::string& name) {
    const bool is_about_this_start = name == "load" || name == "save" || name == "threads" ||
                                     name == "defaults" || name.starts_with("debug-");
    const Json was = before.value(name, Json("unset")), is = flags_.value(name, Json("unset"));
    if (is_about_this_start || was == is) return;
    changes += fmt::format(" {} {} -> {};", name, DumpJson(was), DumpJson(is));
  };
  for (const auto& [name, value] : before.items()) note(name);
  for (const auto& [name, value] : flags_.items()) {
    if (!before.contains(name)) note(name);
  }
  if (!before.empty() && !changes.empty())
    Log().warn("flags that differ from those of the checkpoint:{}", changes);
}

RolloutOptions Run::TrainRolloutOptions() const {
  RolloutOptions options;
  options.sampling.temperature = static_cast<float>(config_.rollout.rollout_temperature);
  options.sampling.top_p = static_cast<float>(config_.rollout.rollout_top_p);
  options.sampling.top_k = config_.rollout.rollout_top_k;
  options.sampling.max_new_tokens = config_.rollout.rollout_max_response_len;
  options.sampling.stop_token_ids = stop_token_ids_;
  options.n_samples_per_prompt = config_.rollout.n_samples_per_prompt;
  options.seed = config_.rollout.rollout_seed;
  options.apply_chat_template = config_.rollout.apply_chat_template;
  options.record_routing = routing_replay_ == RoutingReplay::kOn;
  return options;
}

RolloutOptions Run::EvalOptions() const {
  RolloutOptions options = TrainRolloutOptions();
  const EvalArgs& eval = config_.eval;
  options.sampling.temperature =
      static_cast<float>(eval.eval_temperature.value_or(config_.rollout.rollout_temperature));
  options.sampling.top_p =
      static_cast<float>(eval.eval_top_p.value_or(config_.rollout.rollout_top_p));
  options.sampling.top_k = eval.eval_top_k.value_or(config_.rollout.rollout_top_k);
  options.sampling.max_new_tokens =
      eval.eval_max_response_len.value_or(config_.rollout.rollout_max_response_len);
  options.n_samples_per_prompt = eval.n_samples_per_eval_prompt;
  options.record_routing = false;
  return options;
}

void Run::MakeSampler() {
  SamplerOptions options;
  options.rollout = TrainRolloutOptions();
  options.rollout_batch_size = config_.rollout.rollout_batch_size;
  options.over_sampling_batch_size =
      std::max(config_.rollout.over_sampling_batch_size, options.rollout_batch_size);
  options.filter = config_.rollout.group_filter;
  options.stopped = config_.rollout.partial_rollout ? StoppedGroups::kResume : StoppedGroups::kDrop;
  const RolloutText text{tokenizer_, chat_template_ ? &*chat_template_ : nullptr};
  sampler_.emplace(*engine_, text, *reward_, options);
}

std::vector<Sample> Run::Sampled(int64_t rollout, const StepNote& note) {
  const RolloutArgs& args = config_.rollout;
  const int64_t total = args.rollout_batch_size * args.n_samples_per_prompt;
  const std::string& load = config_.debug.load_rollout_data;
  if (load.empty()) {
    return sampler_->Next(*dataset_, rollout,
                          [&](int64_t done) { note(fmt::format("sampled {}/{}", done, total)); });
  }
  const RolloutText text{tokenizer_, chat_template_ ? &*chat_template_ : nullptr};
  const std::string path = WithRolloutId(load, rollout + 1);
  std::vector<Sample> samples = LoadRolloutData(path, text);
  if (static_cast<int64_t>(samples.size()) != total) {
    throw Error(ErrorCode::kUsage,
                {.where = path,
                 .what = "the rollout has another number of samples",
                 .expected = fmt::format("--rollout-batch-size {} times "
                                         "--n-samples-per-prompt {}",
                                         args.rollout_batch_size, args.n_samples_per_prompt),
                 .found = fmt::format("{}", samples.size())});
  }
  return samples;
}

std::vector<Sample> Run::Generate(int64_t rollout, Json& row, const StepNote& note) {
  Timer timer;
  const RolloutArgs& args = config_.rollout;
  std::vector<Sample> samples = Sampled(rollout, note);
  if (!config_.debug.save_rollout_data.empty()) {
    SaveRolloutData(WithRolloutId(config_.debug.save_rollout_data, rollout + 1), rollout + 1,
                    samples);
  }
  if (args.mask_offpolicy_in_partial_rollout) {
    for (Sample& sample : samples)
      sample.num_masked_tokens = sample.completion.num_offpolicy_tokens;
  }
  AssignAdvantages(samples, NormalizationOf(config_.algorithm));
  const RolloutMetrics metrics = ComputeRolloutMetrics(samples);
  WarnIfNothingRewarded(metrics);
  metrics.AppendTo(row);
  const bool is_selective = args.partial_rollout || args.group_filter != GroupFilter::kNone ||
                            args.over_sampling_batch_size > args.rollout_batch_size;
  if (is_selective && sampler_) sampler_->stats().AppendTo(row);
  if (routing_replay_ == RoutingReplay::kOn) {
    int64_t bytes = 0;
    for (const Sample& sample : samples) bytes += sample.completion.routed_experts.size_bytes();
    row["rollout/routing_bytes"] = bytes;
  }
  row["perf/rollout_time"] = timer.seconds();
  return samples;
}

void Run::LogSamples(int64_t rollout, const std::vector<Sample>& samples,
                     const std::vector<std::vector<TrainBatch>>& steps) {
  const int64_t step = config_.rollout.n_samples_per_prompt;
  for (int64_t i = 0; i < kSamplesLogged && i * step < static_cast<int64_t>(samples.size()); ++i) {
    const Sample& sample = samples[static_cast<size_t>(i * step)];
    const auto num_prompt_tokens = static_cast<int64_t>(sample.prompt_ids.size());
    samples_->Append(SampleRow(rollout + 1, sample, tokenizer_,
                               TrainedTokensOf(steps, sample.id, num_prompt_tokens)));
  }
}

BatcherOptions Run::StepOptions() const {
  const BatchArgs& batch = config_.batch;
  BatcherOptions options;
  options.global_batch_size = batch.global_batch_size;
  options.micro_batching =
      batch.use_dynamic_batch_size ? MicroBatching::kByTokens : MicroBatching::kByCount;
  options.max_tokens_per_gpu = batch.max_tokens_per_gpu;
  options.micro_batch_size = batch.micro_batch_size;
  options.reduction =
      batch.calculate_per_token_loss ? LossReduction::kTokenMean : LossReduction::kSampleMean;
  options.routing_replay = routing_replay_;
  return options;
}

std::vector<std::vector<TrainBatch>> Run::MakeSteps(std::vector<Sample>& samples) {
  return MakeTrainSteps(samples, StepOptions());
}

// The only step of a rollout sees its old log-probabilities in its own forward, to the bit, unless
// the advantages need them before.
bool Run::NeedsOldPass(const std::vector<std::vector<TrainBatch>>& steps) const {
  const bool skips = config_.batch.skip_actor_forward_only.value_or(steps.size() == 1 &&
                                                                    config_.algorithm.kl_coef == 0);
  return !skips;
}

void Run::Score(const std::vector<Sample>& samples, std::vector<std::vector<TrainBatch>>& steps,
                Json& row, const StepNote& note) {
  Timer timer;
  note("scoring");
  BatcherOptions options = StepOptions();
  const int64_t max_tokens = config_.batch.log_probs_max_tokens_per_gpu;
  const bool scores_old = NeedsOldPass(steps);
  const bool scores = scores_old || models_.reference_decoder() != nullptr;
  const bool is_cut_anew = scores && config_.batch.use_dynamic_batch_size && max_tokens > 0 &&
                           max_tokens != options.max_tokens_per_gpu;
  std::vector<std::vector<TrainBatch>> scored;
  if (is_cut_anew) {
    options.max_tokens_per_gpu = max_tokens;
    scored = MakeTrainSteps(samples, options);
  }
  std::vector<std::vector<TrainBatch>>& cut = is_cut_anew ? scored : steps;
  if (const Decoder* reference = models_.reference_decoder()) {
    for (auto& step : cut) {
      for (TrainBatch& batch : step) {
        batch.ref_logprobs_T = ScoreBatch(ctx_, *reference, batch,
                                          static_cast<float>(config_.rollout.rollout_temperature),
                                          Entropy::kSkip, RoutingSource::kRouter)
                                   .logprobs_T;
      }
    }
    if (is_cut_anew) CopyTokens(scored, steps, &TrainBatch::ref_logprobs_T);
    row["perf/ref_log_probs_time"] = timer.seconds();
    timer.Restart();
  }
  if (scores_old) {
    for (auto& step : cut) trainer_->ScoreOld(step);
    if (is_cut_anew) CopyTokens(scored, steps, &TrainBatch::old_logprobs_T);
    row["perf/log_probs_time"] = timer.seconds();
  }
  const AlgorithmArgs& algorithm = config_.algorithm;
  AssignTokenAdvantages({.estimator = algorithm.advantage_estimator,
                         .kl_coef = algorithm.kl_coef,
                         .kl_type = algorithm.kl_type,
                         .gamma = algorithm.gamma,
                         .normalize = algorithm.normalize_advantages},
                        steps);
}

void Run::Train(std::vector<std::vector<TrainBatch>>& steps, Json& row, const StepNote& note) {
  Timer timer;
  for (std::vector<TrainBatch>& step : steps) {
    const TrainStepResult result = trainer_->Step(step, config_.optimizer.lr, [&](size_t done) {
      note(fmt::format("trained {}/{} micro-batches", done, step.size()));
    });
    if (dead_zone_) dead_zone_->Observe(ctx_, *parameters_);
    // With several steps a rollout the last one's numbers stand in the row.
    result.loss.AppendTo(row);
    row["train/grad_norm"] = result.grad_norm;
    row["train/lr"] = config_.optimizer.lr;
    if (result.optimizer.num_codes > 0) {
      row["train/code_flip_rate"] = static_cast<double>(result.optimizer.num_flipped_codes) /
                                    static_cast<double>(result.optimizer.num_codes);
      row["train/scale_change_rate"] = static_cast<double>(result.optimizer.num_changed_scales) /
                                       static_cast<double>(result.optimizer.num_scales);
    }
    if (result.routing.num_choices > 0) {
      row["train/routing_overlap"] = result.routing.shared();
      row["train/routing_disjoint"] = result.routing.disjoint();
      WarnIfRoutedElsewhere(result.routing);
    }
    row["perf/optimizer_time"] = row.value("perf/optimizer_time", 0.0) + result.optimizer_seconds;
  }
  if (dead_zone_) dead_zone_->AppendTo(row);
  if (!has_reported_state_) ReportState(row);
  row["step"] = parameters_->step();
  row["perf/actor_train_time"] = timer.seconds();
}

void Run::ReportState(Json& row) {
  has_reported_state_ = true;
  const StateBytes state = MeasureState(models_, *parameters_, trainer_->gradient_bytes(),
                                        dead_zone_ ? dead_zone_->size_bytes() : 0);
  Log().info("{}", state.Text());
  state.AppendTo(row);
}

void Run::UpdateWeights(Json& row) {
  Timer timer;
  ++policy_version_;
  if (engine_) engine_->UpdateWeights(policy_version_);
  row["perf/update_weights_time"] = timer.seconds();
  if (config_.debug.check_weight_update_equal) parameters_->CheckWeights(ctx_);
}

void Run::UpdateReference(int64_t rollout) {
  const int64_t interval = config_.algorithm.ref_update_interval;
  ModelWeights* reference = models_.reference();
  if (reference == nullptr || interval == 0 || (rollout + 1) % interval != 0) return;
  for (size_t i = 0; i < parameters_->size(); ++i) {
    (*reference)[i].dense.copy_(parameters_->master(i));
  }
  Log().info("the reference is now the policy after {} rollouts", rollout + 1);
}

// A failure names step and set, and its samples are kept.
EvalResult Run::EvaluateOrKeep(const EvalSet& set, const RolloutText& text,
                               const RolloutOptions& options, const RolloutProgress& progress) {
  try {
    return quatrain::Evaluate(*engine_, text, *eval_reward_, set, options, progress);
  } catch (const FailedGeneration& failure) {
    const int64_t step = parameters_->step();
    const std::filesystem::path path =
        std::filesystem::path(config_.checkpoint.save) /
        fmt::format("failed_eval_{}_{:07}.cbor", FileNamePart(set.name), step);
    SaveRolloutData(path, step, failure.samples());
    throw Error(failure.code(),
                fmt::format("evaluation of {} after {} optimizer steps: {} What the samples had "
                            "until then is kept in {}",
                            set.name, step, failure.what(), path.string()));
  }
}

void Run::Evaluate(Json& row) {
  if (!engine_) return;
  Timer timer;
  const RolloutText text{tokenizer_, chat_template_ ? &*chat_template_ : nullptr};
  for (const EvalSet& set : eval_sets_) {
    const RolloutOptions options = EvalOptions();
    Progress progress("eval " + set.name,
                      static_cast<int64_t>(set.prompts.size()) * options.n_samples_per_prompt,
                      "samples");
    const EvalResult result =
        EvaluateOrKeep(set, text, options, [&](int64_t done) { progress.Update(done); });
    row["eval/" + set.name] = result.accuracy;
    row["eval/" + set.name + "/standard_error"] = result.standard_error;
    row["eval/" + set.name + "/truncated_ratio"] = result.truncated_ratio;
    row["eval/" + set.name + "/response_len_mean"] = result.response_len_mean;
    for (const auto& [k, share] : result.pass_at_k)
      row[fmt::format("eval/{}/pass@{}", set.name, k)] = share;
  }
  if (!eval_sets_.empty()) row["perf/eval_time"] = timer.seconds();
}

void Run::Append(const Json& row) {
  metrics_->Append(row);
  for (const char* name : {kMetricsFile, kSamplesFile}) {
    std::error_code absent;
    const uint64_t size =
        std::filesystem::file_size(std::filesystem::path(config_.checkpoint.save) / name, absent);
    if (!absent) log_sizes_[name] = size;
  }
}

CheckpointSnapshot Run::Snapshot(int64_t next_rollout) {
  CheckpointSnapshot snapshot;
  snapshot.next_rollout = next_rollout;
  snapshot.source = &models_.start();
  std::vector<Weight> dense;
  for (size_t i = 0; i < parameters_->size(); ++i) {
    dense.push_back({parameters_->spec(i), parameters_->master(i).to(at::kBFloat16), {}});
  }
  snapshot.bf16.emplace(std::move(dense));
  if (const ModelWeights* quantized = models_.quantized_table()) {
    snapshot.quantized.emplace(CopyWeights(*quantized));
    snapshot.quantized_format = {
        *models_.scheme(),
        MakeMetadata({models_.scheme()->scale_rule, models_.scheme()->grid(), config_.seed})};
  }
  if (config_.algorithm.ref_update_interval > 0 && models_.reference() != nullptr)
    snapshot.reference.emplace(CopyWeights(*models_.reference()));
  const bool is_async = config_.checkpoint.async_save;
  snapshot.training = SnapshotTraining(*parameters_,
                                       {{"next_rollout", next_rollout},
                                        {"policy_version", policy_version_},
                                        {"dataset", dataset_->State()},
                                        {"log_sizes", log_sizes_},
                                        {"config", flags_}},
                                       is_async ? SnapshotMode::kCopy : SnapshotMode::kBorrow);
  if (dead_zone_) dead_zone_->AddTo(snapshot.training);
  if (config_.rollout.partial_rollout && sampler_) {
    const std::vector<uint8_t> bytes = Json::to_cbor(sampler_->State());
    snapshot.partial_rollouts.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return snapshot;
}

void Run::Save(int64_t next_rollout) {
  store_->Save(Snapshot(next_rollout),
               config_.checkpoint.async_save ? SaveMode::kInBackground : SaveMode::kNow);
}

std::string Run::KeepFailedGeneration(int64_t rollout) {
  const std::vector<Sample> samples = sampler_ ? sampler_->TakeFailed() : std::vector<Sample>();
  if (samples.empty()) return "";
  const std::filesystem::path path = FailedRolloutFile(config_, rollout);
  SaveRolloutData(path, rollout + 1, samples);
  return fmt::format(
      " What the samples had until then is kept in {}. The same command comes here again, also "
      "from a checkpoint (--load {})",
      path.string(), config_.checkpoint.save);
}

std::string Run::KeepFailedRollout(int64_t rollout, const std::vector<Sample>& samples) const {
  const std::filesystem::path path = FailedRolloutFile(config_, rollout);
  SaveRolloutData(path, rollout + 1, samples);
  return fmt::format("Its samples are kept: --debug-train-only --load-debug-rollout-data {}",
                     path.string());
}

}  // namespace quatrain
