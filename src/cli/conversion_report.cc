#include "cli/conversion_report.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "report/conversion_page.h"

namespace quatrain {
namespace {

// Tokens that were routed to each expert, by layer: the most that any of its weights saw.
Json ExpertTokensJson(const std::vector<ModuleReport>& modules) {
  constexpr std::string_view kExperts = ".experts.";
  std::map<std::string, std::map<int64_t, int64_t>> tokens;
  std::vector<std::string> order;
  for (const ModuleReport& module : modules) {
    const size_t at = module.module.find(kExperts);
    if (at == std::string::npos) continue;
    const std::string layer = module.module.substr(0, at);
    if (!tokens.contains(layer)) order.push_back(layer);
    int64_t& count = tokens[layer][std::stoll(module.module.substr(at + kExperts.size()))];
    count = std::max(count, module.num_tokens);
  }
  Json layers = Json::array();
  for (const std::string& layer : order) {
    Json counts = Json::array();
    for (const auto& [expert, count] : tokens[layer]) counts.push_back(count);
    layers.push_back({{"layer", layer}, {"tokens", std::move(counts)}});
  }
  return layers;
}

Json ErrorsJson(const std::vector<ModuleReport>& modules) {
  double ours = 0.0, rtn = 0.0;
  for (const ModuleReport& module : modules) {
    ours += module.relative_error;
    rtn += module.rtn_relative_error;
  }
  const double count = static_cast<double>(modules.size());
  return {{"mean_relative_error", ours / count}, {"mean_rtn_relative_error", rtn / count}};
}

Json CodesJson(const ConversionSummary& summary) {
  return {{"lowest", -(1 << (summary.scheme.num_bits - 1))}, {"counts", summary.code_counts}};
}

}  // namespace

Json FidelityJson(const Fidelity& fidelity) {
  return {{"positions", fidelity.num_positions},
          {"perplexity", fidelity.perplexity()},
          {"perplexity_bf16", fidelity.reference_perplexity()},
          {"mean_kl", fidelity.mean_kl()},
          {"mean_abs_logprob_difference", fidelity.mean_abs_logprob_difference()}};
}

Json ConversionReportJson(const ConversionConfig& config, const ConversionSummary& summary) {
  const Json inspection = InspectionJson(summary.inspection);
  Json report = {{"format_version", 1},
                 {"source", config.input_dir.filename().string()},
                 {"method", CalibrateMethodName(config.calibrate.method)},
                 {"scheme", summary.scheme.Name()},
                 {"scale_rule", ScaleRuleName(summary.scheme.scale_rule)},
                 {"scope", summary.scope.Name()},
                 {"seed", config.seed},
                 {"quantized_weights", summary.num_quantized},
                 {"weights", summary.num_weights},
                 {"kept_in_bf16", summary.kept},
                 {"copied_tensors", summary.copied},
                 {"cast_to_bf16", summary.cast},
                 {"bytes_before", summary.source_bytes},
                 {"bytes_after", summary.inspection.total_bytes()},
                 {"sizes", inspection.at("sizes")},
                 {"codes", CodesJson(summary)},
                 {"tensor_parallel", inspection.at("tensor_parallel")},
                 {"seconds", summary.seconds},
                 {"peak_memory_bytes", summary.peak_memory_bytes},
                 {"planned",
                  {{"seconds", summary.plan.seconds},
                   {"memory_bytes", summary.plan.memory_bytes},
                   {"output_bytes", summary.plan.output_bytes},
                   {"cache_bytes", summary.plan.cache_bytes}}},
                 {"resumed_stages", summary.num_resumed_stages}};
  if (summary.modules.empty()) return report;
  report["dampening_frac"] = config.calibrate.dampening_frac;
  report["data"] = summary.data;
  report["errors"] = ErrorsJson(summary.modules);
  if (summary.fidelity.has_value()) report["heldout"] = FidelityJson(*summary.fidelity);
  report["expert_tokens"] = ExpertTokensJson(summary.modules);
  report["cold_modules"] = summary.ColdModules();
  report["fallbacks"] = Json::array();
  for (const ModuleReport* module : summary.Fallbacks()) {
    report["fallbacks"].push_back({{"module", module->module}, {"reason", module->fallback}});
  }
  report["modules"] = Json::array();
  for (const ModuleReport& module : summary.modules) report["modules"].push_back(module.ToJson());
  return report;
}

void WriteConversionReport(const std::filesystem::path& folder, const ConversionConfig& config,
                           const ConversionSummary& summary) {
  const Json report = ConversionReportJson(config, summary);
  WriteFileAtomic(folder / kConversionReportJson, report.dump(1) + "\n");
  try {
    WriteFileAtomic(folder / kConversionReportHtml, BuildConversionPage(report));
  } catch (const Error& error) {
    Log().warn("{} is not written: {}", kConversionReportHtml, error.what());
  }
}

}  // namespace quatrain
