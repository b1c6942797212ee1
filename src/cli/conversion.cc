#include "cli/conversion.h"

#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "cli/inspection.h"
#include "models/loader.h"
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

int64_t ElementsOf(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

// Upper bounds of what the conversion will take.
struct ResourcePlan {
  uint64_t memory_bytes = 0;
  uint64_t disk_bytes = 0;
};

// Memory: all weights in BF16, the samples' hidden states, and one layer's Hessians with a factor
// of the largest.
ResourcePlan PlanResources(const Checkpoint& source, const std::vector<WeightSpec>& table,
                           const QuantPlan& plan, int64_t num_tokens) {
  int64_t weights = 0, disk = 0, largest_layer = 0, largest_input = 0;
  std::vector<int64_t> layer_hessians(static_cast<size_t>(source.config().num_hidden_layers));
  for (size_t i = 0; i < table.size(); ++i) {
    const std::vector<int64_t>& shape = table[i].shape;
    weights += 2 * ElementsOf(shape);
    if (!plan.is_quantized[i]) {
      disk += 2 * ElementsOf(shape);
      continue;
    }
    disk += FileBytes(shape[0], shape[1], plan.scheme.num_bits, plan.scheme.GroupSizeFor(shape[1]));
    const int64_t hessian = 4 * shape[1] * shape[1];
    int64_t& layer = layer_hessians[static_cast<size_t>(table[i].layer)];
    layer += hessian;
    largest_layer = std::max(largest_layer, layer);
    largest_input = std::max(largest_input, hessian);
  }
  const int64_t hidden_states = 2 * 2 * num_tokens * source.config().hidden_size;
  int64_t memory = weights;
  if (num_tokens > 0) memory += hidden_states + largest_layer + 2 * largest_input;
  return {static_cast<uint64_t>(memory), static_cast<uint64_t>(disk)};
}

// "1.25 GB" or "31.0 MB".
std::string SizeText(uint64_t bytes) {
  const double value = static_cast<double>(bytes);
  return value >= 1e9 ? fmt::format("{:.2f} GB", value / 1e9)
                      : fmt::format("{:.1f} MB", value / 1e6);
}

void CheckResources(const ResourcePlan& plan, const fs::path& output) {
  const uint64_t memory = AvailableMemoryBytes();
  if (plan.memory_bytes > memory) {
    throw Error(
        ErrorCode::kResource,
        {.what = "not enough memory for this conversion",
         .expected = SizeText(plan.memory_bytes),
         .found = SizeText(memory) + " available",
         .todo = "Use fewer calibration samples or shorter ones (--num-calibration-samples, "
                 "--max-sequence-length), or a machine with more memory."});
  }
  const uint64_t disk = FreeDiskBytes(output);
  if (plan.disk_bytes > disk) {
    throw Error(ErrorCode::kResource,
                {.where = "--output-dir " + output.string(),
                 .what = "not enough room on the disk",
                 .expected = SizeText(plan.disk_bytes),
                 .found = SizeText(disk) + " free",
                 .todo = "Free some, or choose a directory on another disk."});
  }
  Log().info("plan: up to {} of memory ({} available), {} on disk", SizeText(plan.memory_bytes),
             SizeText(memory), SizeText(plan.disk_bytes));
}

// Linears that no row of the table knows (MTP layers, vision towers) stay as they are, so
// config.json must say so.
void IgnoreUnknownLinears(const Checkpoint& source, const std::vector<std::string>& unknown,
                          QuantScheme& scheme) {
  constexpr std::string_view kSuffix = ".weight";
  for (const std::string& name : unknown) {
    const TensorView& tensor = source.repo().tensors().Get(name);
    if (name.ends_with(kSuffix) && tensor.shape.size() == 2) {
      scheme.ignore.push_back(name.substr(0, name.size() - kSuffix.size()));
    }
  }
}

std::vector<std::string> CastTensors(const Checkpoint& source,
                                     const std::vector<WeightSpec>& table) {
  std::vector<std::string> cast;
  for (const WeightSpec& spec : table) {
    const TensorView* tensor = source.repo().tensors().Find(spec.name);
    if (tensor != nullptr && tensor->dtype != DType::kBF16) cast.push_back(spec.name);
  }
  return cast;
}

Json ReportJson(const ConversionConfig& config, const ConversionSummary& summary) {
  Json modules = Json::array();
  for (const ModuleReport& module : summary.modules) modules.push_back(module.ToJson());
  Json report = {{"made_by", "quatrain convert"},
                 {"method", CalibrateMethodName(config.calibrate.method)},
                 {"source", config.input_dir.filename().string()},
                 {"scope", config.scope.Name()},
                 {"quantized_weights", summary.num_quantized},
                 {"kept_in_bf16", summary.kept},
                 {"copied_tensors", summary.copied},
                 {"cast_to_bf16", summary.cast}};
  if (config.calibrate.method != CalibrateMethod::kRtn) {
    report["dampening_frac"] = config.calibrate.dampening_frac;
    report["data"] = summary.data;
    report["modules"] = std::move(modules);
  }
  return report;
}

bool SameWeight(const Weight& a, const Weight& b) {
  if (a.is_quantized() != b.is_quantized()) return false;
  if (!a.is_quantized()) {
    return a.dense.nbytes() == b.dense.nbytes() &&
           std::memcmp(a.dense.const_data_ptr(), b.dense.const_data_ptr(), a.dense.nbytes()) == 0;
  }
  const auto same_scale = [](BFloat16 x, BFloat16 y) { return x.bits == y.bits; };
  return a.codes.num_bits == b.codes.num_bits && a.codes.group_size == b.codes.group_size &&
         a.codes.packed == b.codes.packed &&
         std::equal(a.codes.scale.begin(), a.codes.scale.end(), b.codes.scale.begin(),
                    b.codes.scale.end(), same_scale);
}

// The written directory, read back: the same codes, scales and BF16 weights, and a config.json that
// fits them.
void CheckWritten(ThreadPool& pool, const fs::path& folder, const ModelWeights& weights) {
  const Checkpoint written(folder);
  for (size_t i = 0; i < weights.size(); ++i) {
    QT_CHECK(SameWeight(weights[i], written.Load(weights[i].spec, at::kBFloat16)),
             "{} reads back differently", weights[i].spec.name);
  }
  ThrowIfInconsistent(InspectModel(pool, folder, std::nullopt).problems, folder.string());
}

CalibrationData LoadData(const ConversionConfig& config, const Checkpoint& source) {
  if (config.calibrate.method == CalibrateMethod::kRtn) return {};
  CalibrationRequest request = config.data;
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

std::vector<const ModuleReport*> ConversionSummary::Fallbacks() const {
  std::vector<const ModuleReport*> fallbacks;
  for (const ModuleReport& module : modules) {
    if (!module.fallback.empty()) fallbacks.push_back(&module);
  }
  return fallbacks;
}

ConversionSummary Convert(ThreadPool& pool, const ConversionConfig& config,
                          const CalibrateProgress& progress) {
  CheckOutput(config);
  const Checkpoint source(config.input_dir);
  CheckIsNotQuantized(source);
  const std::vector<WeightSpec> table = WeightTableOf(source.config());
  QuantPlan plan = MakeQuantPlan(table, config.scheme, config.scope, config.indivisible);
  ConversionSummary summary{.num_quantized = plan.num_quantized, .kept = plan.kept};
  summary.copied = source.UnknownTensors();
  summary.cast = CastTensors(source, table);
  summary.output_dir = config.output_dir;
  IgnoreUnknownLinears(source, summary.copied, plan.scheme);
  for (const WeightSpec& spec : table) summary.num_weights += spec.is_quantisable();

  const CalibrationData data = LoadData(config, source);
  CheckResources(PlanResources(source, table, plan, data.num_tokens), config.output_dir);
  ModelWeights weights = LoadWeights(source, at::kBFloat16);
  const OpContext ctx{pool};
  if (config.calibrate.method == CalibrateMethod::kRtn) {
    RoundModel(ctx, plan, weights, progress);
  } else {
    summary.data = data.Report();
    summary.data["source"] = config.data.source.filename().string();
    summary.modules =
        CalibrateModel(ctx, source.config(), plan, config.calibrate, data, weights, progress);
  }

  AtomicFolder folder(config.output_dir);
  const QuantMetadata metadata{.scale_rule = plan.scheme.scale_rule,
                               .grid = plan.scheme.grid(),
                               .seed = config.seed,
                               .report = ReportJson(config, summary)};
  ExportModel(source, weights, {.scheme = plan.scheme, .quatrain_json = MakeMetadata(metadata)},
              folder.path());
  CheckWritten(pool, folder.path(), weights);
  folder.Commit();
  return summary;
}

}  // namespace quatrain
