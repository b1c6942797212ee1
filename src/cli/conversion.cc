#include "cli/conversion.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/resources.h"
#include "cli/conversion_report.h"
#include "cli/conversion_run.h"
#include "io/content_hash.h"
#include "quant/consistency.h"
#include "quant/metadata.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

void CheckOutput(const ConversionConfig& config) {
  const fs::path& output = config.output_dir;
  if (!fs::exists(output)) return;
  if (fs::exists(config.input_dir) && fs::equivalent(output, config.input_dir)) {
    throw Error(ErrorCode::kUsage, {.where = "--output-dir",
                                    .what = "it is the input directory",
                                    .todo = "Choose another directory."});
  }
  if (!fs::is_directory(output)) {
    throw Error(ErrorCode::kUsage, {.where = "--output-dir " + output.string(),
                                    .expected = "a directory or nothing",
                                    .found = "a file"});
  }
  if (fs::is_empty(output)) return;
  const bool is_ours = fs::exists(output / kMetadataFile) && fs::exists(output / "config.json");
  if (config.existing_output == ExistingOutput::kOverwrite && is_ours) return;
  throw Error(
      ErrorCode::kUsage,
      {.where = "--output-dir " + output.string(),
       .what = is_ours ? "it holds an earlier conversion" : "it is not empty",
       .todo = is_ours ? "Pass --overwrite to replace it, or choose another directory."
                       : "Choose another directory; only the result of an earlier conversion is "
                         "ever replaced."});
}

void CheckIsNotQuantized(const Checkpoint& source) {
  if (!source.scheme().has_value()) return;
  throw Error(ErrorCode::kUsage, {.where = "--input-dir " + source.name(),
                                  .what = "the model is quantised already",
                                  .expected = "a BF16 model",
                                  .found = source.scheme()->Name(),
                                  .todo = "Convert the BF16 directory that it was made from."});
}

void CheckFamily(const ConversionConfig& config, const Checkpoint& source) {
  if (source.has_config()) return;
  const std::string type = source.repo().config().value("model_type", std::string("none"));
  if (config.calibrate.method != CalibrateMethod::kRtn) {
    throw Error(ErrorCode::kUsage,
                {.where = "--method " + CalibrateMethodName(config.calibrate.method),
                 .what = "model_type '" + type + "' cannot be run here, so it cannot be calibrated",
                 .todo = "Pass --method rtn, which needs the names of the weights alone."});
  }
  Log().warn(
      "model_type '{}' is unknown: its linears are told by their names. Look at the list of "
      "what was quantised and what was not before the result is used",
      type);
}

QuantScope ScopeOf(const ConversionConfig& config, const Checkpoint& source) {
  if (config.scope.has_value()) return *config.scope;
  const std::vector<WeightSpec>& table = source.table();
  const bool has_experts = std::any_of(table.begin(), table.end(), [](const WeightSpec& spec) {
    return spec.role == WeightRole::kExpert;
  });
  return has_experts ? QuantScope::kExperts : QuantScope::kAllLinear;
}

// Linears that no row of the table knows (MTP layers, vision towers) stay as they are, so
// config.json must say so.
void IgnoreUnknownLinears(const Checkpoint& source, const std::vector<std::string>& unknown,
                          QuantScheme& scheme) {
  constexpr std::string_view kSuffix = ".weight";
  for (const std::string& name : unknown) {
    const TensorView& tensor = source.repo().tensors().Get(name);
    const bool is_fused_experts = tensor.shape.size() == 3 && name.find(".experts.") != name.npos;
    if (is_fused_experts) scheme.ignore.push_back(name);
    if (name.ends_with(kSuffix) && tensor.shape.size() == 2) {
      scheme.ignore.push_back(name.substr(0, name.size() - kSuffix.size()));
    }
  }
}

// What quatrain.json keeps: nothing that another run of the same conversion would find otherwise.
Json MetadataReport(const ConversionConfig& config, const ConversionSummary& summary) {
  Json modules = Json::array();
  for (const ModuleReport& module : summary.modules) modules.push_back(module.ToJson());
  Json report = {{"made_by", "quatrain convert"},
                 {"method", CalibrateMethodName(config.calibrate.method)},
                 {"source", config.input_dir.filename().string()},
                 {"scope", summary.scope.Name()},
                 {"quantized_weights", summary.num_quantized},
                 {"kept_in_bf16", summary.kept},
                 {"copied_tensors", summary.copied},
                 {"cast_to_bf16", summary.cast}};
  if (config.calibrate.method != CalibrateMethod::kRtn) {
    report["dampening_frac"] = config.calibrate.dampening_frac;
    report["data"] = summary.data;
    if (summary.fidelity.has_value()) report["heldout"] = FidelityJson(*summary.fidelity);
    report["modules"] = std::move(modules);
  }
  return report;
}

void CheckMemory(const ConversionPlan& plan) {
  RequireMemory("convert this model", plan.memory_bytes,
                "Use shorter samples (--max-sequence-length), or a machine with more.");
  Log().info(
      "plan: up to {} of memory beside the program itself ({} available); {} of output and {} of "
      "cache on disk; {}",
      SizeText(plan.memory_bytes), SizeText(AvailableMemoryBytes()), SizeText(plan.output_bytes),
      SizeText(plan.cache_bytes), GuessText(plan.seconds));
}

void CheckDisk(uint64_t needed, const fs::path& output) {
  RequireDisk(output, needed, "Free some, or choose a directory on another disk.");
}

// Everything that decides the result, by the name that a user knows it by.
Json RequestOf(const ConversionConfig& config, const ConversionSummary& summary,
               const Checkpoint& source) {
  const bool is_calibrated = config.calibrate.method != CalibrateMethod::kRtn;
  Json request = {
      {"program", "quatrain 0.1.0, work folder 1"},
      {"--method", CalibrateMethodName(config.calibrate.method)},
      {"--quant-type", config.scheme.num_bits == 8 ? "W8A16" : "W4A16"},
      {"--quant-group-size",
       config.scheme.is_per_channel() ? Json("channel") : Json(config.scheme.group_size)},
      {"--scale-rule", ScaleRuleName(config.scheme.scale_rule)},
      {"--code-max", config.scheme.grid().hi},
      {"--scope", summary.scope.Name()},
      {"--keep-indivisible", config.indivisible == Indivisible::kKeep},
      {"--max-shard-size", config.max_shard_bytes},
      {"--seed", config.seed}};
  const Json files = SourceFingerprint(config.input_dir, source.repo().tensors());
  for (const auto& [name, facts] : files.items()) {
    request["--input-dir, file " + name] = facts;
  }
  if (!is_calibrated) return request;
  request["--dampening-frac"] = config.calibrate.dampening_frac;
  request["--actorder"] = config.calibrate.actorder == ActOrder::kNone ? "none" : "static";
  request["--num-calibration-samples"] = config.data.num_samples;
  request["--max-sequence-length"] = config.data.max_sequence_length;
  request["--num-heldout-samples"] = config.data.num_heldout_samples;
  request["--no-shuffle-calibration-samples"] = config.data.order == CalibrationOrder::kAsStored;
  request["--data-dir, tokens of the text"] = summary.data.at("fingerprint");
  return request;
}

// Sums up the records of all stages.
void TakeRecords(const ConversionJournal& journal, ConversionSummary& summary) {
  for (const Json& stage : journal.stages()) {
    for (const Json& module : stage.value("modules", Json::array())) {
      summary.modules.push_back(ModuleReport::FromJson(module));
    }
    const auto counts = stage.at("code_counts").get<std::vector<int64_t>>();
    summary.code_counts.resize(counts.size());
    for (size_t i = 0; i < counts.size(); ++i) summary.code_counts[i] += counts[i];
    if (stage.contains("fidelity")) {
      const Json& json = stage["fidelity"];
      summary.fidelity =
          Fidelity{.num_positions = json.at("positions").get<int64_t>(),
                   .abs_logprob_difference = json.at("abs_logprob_difference").get<double>(),
                   .kl = json.at("kl").get<double>(),
                   .loss = json.at("loss").get<double>(),
                   .reference_loss = json.at("reference_loss").get<double>()};
    }
    summary.seconds += stage.at("seconds").get<double>();
    summary.peak_memory_bytes =
        std::max(summary.peak_memory_bytes, stage.at("peak_memory_bytes").get<uint64_t>());
  }
}

// Runs the stages. An error that stops it says what is kept, and whether the disk is the reason.
void RunStages(ConversionRun& run, const WorkFolder& work, const ConversionJournal& journal,
               const fs::path& output) try {
  CheckDisk(run.RemainingBytes(), output);
  run.Run();
} catch (const Error& error) {
  const size_t num_done = journal.stages().size();
  std::string message = error.what();
  ErrorCode code = error.code();
  const uint64_t needed = run.RemainingBytes(), free = FreeDiskBytes(output);
  if (code == ErrorCode::kIo && needed > free) {
    code = ErrorCode::kResource;
    message += fmt::format(" {} are still to be written and {} are free: the disk lacks {}.",
                           SizeText(needed), SizeText(free), SizeText(needed - free));
  }
  if (num_done == 0) throw Error(code, message);
  throw Error(code, fmt::format("{} {} of {} stages are done and kept in {}; run the same command "
                                "again to go on.",
                                message, num_done, run.num_stages(), work.path().string()));
}

// A run that was killed between giving the output its name and removing its work folder.
constexpr const char* kPublishedFile = "published";

std::string PublishedMark(const fs::path& directory) {
  const fs::path metadata = directory / kMetadataFile;
  if (!fs::exists(metadata)) return "none";
  const std::string text = ReadFile(metadata);
  return fmt::format("{:016x}", ContentHash(std::as_bytes(std::span(text))));
}

bool IsPublished(const ConversionConfig& config) {
  const fs::path work = WorkFolder::PathFor(config.output_dir);
  return config.earlier_work == EarlierWork::kContinue && fs::exists(work / kPublishedFile) &&
         ReadFile(work / kPublishedFile) == PublishedMark(config.output_dir);
}

CalibrationData LoadData(const ConversionConfig& config, const Checkpoint& source) {
  if (config.calibrate.method == CalibrateMethod::kRtn) return {};
  CalibrationRequest request = config.data;
  request.chat_template = config.input_dir;
  const int64_t context = source.config().max_position_embeddings;
  if (request.max_sequence_length > context) {
    Log().warn("--max-sequence-length {} is beyond the model's context; samples are cut at {}",
               request.max_sequence_length, context);
    request.max_sequence_length = context;
  }
  CalibrationData data =
      LoadCalibrationData(request, Tokenizer::Load(config.input_dir), source.config().vocab_size);
  if (static_cast<int64_t>(data.samples.size()) < request.num_samples) {
    Log().warn("{} has text in {} rows only, fewer than --num-calibration-samples {}; all are used",
               request.source.string(), data.samples.size(), request.num_samples);
  }
  if (static_cast<int64_t>(data.heldout.size()) < request.num_heldout_samples) {
    Log().warn(
        "only {} rows are left to measure the result on, fewer than --num-heldout-samples {}",
        data.heldout.size(), request.num_heldout_samples);
  }
  Log().info("calibration: {} samples, {} tokens of {}", data.samples.size(), data.num_tokens,
             request.source.string());
  return data;
}

}  // namespace

std::string CalibrateMethodName(CalibrateMethod method) {
  switch (method) {
    case CalibrateMethod::kGptq:
      return "gptq";
    case CalibrateMethod::kReference:
      return "reference";
    case CalibrateMethod::kRtn:
      return "rtn";
  }
  QT_CHECK(false, "method {}", static_cast<int>(method));
  return {};
}

std::vector<std::string> ConversionSummary::ColdModules() const {
  std::vector<std::string> cold;
  for (const ModuleReport& module : modules) {
    if (module.num_tokens == 0) cold.push_back(module.module);
  }
  return cold;
}

double ConversionSummary::FallbackFraction() const {
  if (modules.empty()) return 0.0;
  return static_cast<double>(Fallbacks().size()) / static_cast<double>(modules.size());
}

std::vector<const ModuleReport*> ConversionSummary::Fallbacks() const {
  std::vector<const ModuleReport*> fallbacks;
  for (const ModuleReport& module : modules) {
    if (!module.fallback.empty()) fallbacks.push_back(&module);
  }
  return fallbacks;
}

namespace {

// What is known before any work: the lists of the report, sizes, the plan.
ConversionSummary Describe(ThreadPool& pool, const ConversionConfig& config,
                           const Checkpoint& source, const QuantPlan& plan,
                           const CalibrationData* data) {
  ConversionSummary summary{.num_quantized = plan.num_quantized,
                            .kept = plan.kept,
                            .copied = source.UnknownTensors(),
                            .cast = source.CastTensors()};
  summary.scope = ScopeOf(config, source);
  summary.scheme = plan.scheme;
  summary.output_dir = config.output_dir;
  summary.source_bytes = source.repo().tensors().total_bytes();
  for (const WeightSpec& spec : source.table()) summary.num_weights += spec.is_quantisable();
  if (data != nullptr) {
    summary.data = data->Report();
    summary.data["source"] = config.data.source.filename().string();
  }
  summary.plan = PlanConversion(pool, source, plan, config.calibrate, data);
  return summary;
}

// Empties a work folder in which there is nothing to go on with, or is not to be.
void PrepareWork(const ConversionConfig& config, WorkFolder& work) {
  if (config.earlier_work == EarlierWork::kRestart || !ConversionJournal::HasStages(work.path())) {
    work.Clear();
  } else {
    work.Keep();
  }
}

// Completes, checks and publishes the directory.
void Publish(ThreadPool& pool, const ConversionConfig& config, WorkFolder& work, ConversionRun& run,
             ConversionSummary& summary) {
  const QuantMetadata metadata{.scale_rule = summary.scheme.scale_rule,
                               .grid = summary.scheme.grid(),
                               .seed = config.seed,
                               .report = MetadataReport(config, summary)};
  run.Finish({.scheme = summary.scheme, .quatrain_json = MakeMetadata(metadata)});
  summary.inspection = InspectModel(pool, work.output(), std::nullopt);
  ThrowIfInconsistent(summary.inspection.problems, work.output().string());
  summary.inspection.directory = config.output_dir.string();
  WriteConversionReport(work.output(), config, summary);
  WriteFileAtomic(work.path() / kPublishedFile, PublishedMark(work.output()));
  work.Publish();
}

}  // namespace

ConversionSummary Convert(ThreadPool& pool, const ConversionConfig& config,
                          const CalibrateProgress& progress) {
  const bool is_published = IsPublished(config);
  if (!is_published) CheckOutput(config);
  const Checkpoint source(config.input_dir, UnknownFamily::kByNames);
  CheckIsNotQuantized(source);
  CheckFamily(config, source);
  QuantPlan plan =
      MakeQuantPlan(source.table(), config.scheme, ScopeOf(config, source), config.indivisible);
  IgnoreUnknownLinears(source, source.UnknownTensors(), plan.scheme);
  const CalibrationData loaded = LoadData(config, source);
  const bool is_calibrated = config.calibrate.method != CalibrateMethod::kRtn;
  const CalibrationData* const data = is_calibrated ? &loaded : nullptr;
  ConversionSummary summary = Describe(pool, config, source, plan, data);
  CheckMemory(summary.plan);

  WorkFolder work(config.output_dir);
  PrepareWork(config, work);
  ConversionJournal journal(work.path(), RequestOf(config, summary, source));
  summary.num_resumed_stages = static_cast<int64_t>(journal.stages().size());
  if (is_published) {
    Log().info("an earlier run had finished it, but for its work folder");
    TakeRecords(journal, summary);
    summary.inspection = InspectModel(pool, config.output_dir, std::nullopt);
    work.Clear();
    return summary;
  }
  if (summary.num_resumed_stages == 0) {
    CheckDisk(summary.plan.output_bytes + summary.plan.cache_bytes, config.output_dir);
  }
  const OpContext ctx{pool};
  const ConversionJob job{ctx, config, source, plan, data, progress};
  ConversionRun run(job, work, journal);
  if (summary.num_resumed_stages > 0) {
    Log().info("going on in {}: {} of {} stages are done", work.path().string(),
               summary.num_resumed_stages, run.num_stages());
  }
  RunStages(run, work, journal, config.output_dir);
  TakeRecords(journal, summary);
  Publish(pool, config, work, run, summary);
  return summary;
}

}  // namespace quatrain
