#include "report/html_report.h"

#include <set>

#include "base/error.h"
#include "report/headline.h"
#include "report/report_page.h"
#include "report/run_warnings.h"

namespace quatrain {
namespace {

// At most `limit` samples, whole stretches left out evenly.
Json ThinnedSamples(const std::vector<Json>& samples, size_t limit) {
  Json kept = Json::array();
  const size_t n = samples.size();
  for (size_t i = 0; i < n; ++i) {
    const bool is_kept = n <= limit || (i * limit) / n != ((i + 1) * limit) / n;
    if (is_kept) kept.push_back(samples[i]);
  }
  return kept;
}

Json SeriesJson(const MetricSeries& series) {
  Json values = Json::array();
  for (const std::optional<double>& value : series) values.push_back(value ? Json(*value) : Json());
  return values;
}

constexpr const char* kTokenKeys[] = {"tokens", "rollout_logprobs", "logprob_differences",
                                      "advantages"};

// Leaves the token lists to the newest samples, `max_tokens` in all.
void BoundTokens(size_t max_tokens, Json& samples) {
  size_t num_tokens = 0;
  for (auto sample = samples.rbegin(); sample != samples.rend(); ++sample) {
    if (!sample->contains("tokens")) continue;
    num_tokens += sample->at("tokens").size();
    if (num_tokens <= max_tokens) continue;
    for (const char* key : kTokenKeys) sample->erase(key);
  }
}

Json WarningsJson(const RunData& run, double seconds_since_row) {
  Json warnings = Json::array();
  for (const RunWarning& warning : RunWarnings(run, seconds_since_row)) {
    warnings.push_back({{"level", warning.level == WarningLevel::kBad ? "bad" : "look"},
                        {"title", warning.title},
                        {"detail", warning.detail}});
  }
  return warnings;
}

Json RunJson(const RunData& run, const std::string& name, const HtmlReportOptions& options) {
  Json facts = Json::array();
  for (const HeadlineFact& fact : Headline(run)) {
    facts.push_back({{"label", fact.label}, {"value", fact.value}, {"note", fact.note}});
  }
  Json metrics = Json::object();
  for (const auto& [metric, series] : run.metrics) metrics[metric] = SeriesJson(series);
  Json config = Json::array();
  for (const auto& [key, value] : run.config) config.push_back(Json::array({key, value}));
  Json json;
  json["name"] = name;
  json["facts"] = std::move(facts);
  json["rollouts"] = run.rollouts;
  json["metrics"] = std::move(metrics);
  json["evaluations"] = run.evaluations;
  json["num_samples"] = run.samples.size();
  json["samples"] = ThinnedSamples(run.samples, options.max_samples);
  BoundTokens(options.max_tokens, json["samples"]);
  json["warnings"] = WarningsJson(run, options.seconds_since_row);
  json["config"] = std::move(config);
  return json;
}

// Runs of one name get a number behind it.
std::vector<std::string> UniqueNames(std::span<const RunData> runs) {
  std::vector<std::string> names;
  std::set<std::string> taken;
  for (const RunData& run : runs) {
    std::string name = run.name;
    for (int i = 2; !taken.insert(name).second; ++i) name = fmt::format("{} ({})", run.name, i);
    names.push_back(name);
  }
  return names;
}

std::string ReportScript() {
  return fmt::format("{}{}{}", kReportCurvesScript, kReportPanelsScript, kReportSamplesScript);
}

}  // namespace

Json ReportData(std::span<const RunData> runs, const HtmlReportOptions& options) {
  QT_CHECK(!runs.empty());
  const std::vector<std::string> names = UniqueNames(runs);
  Json data;
  data["title"] = options.title;
  data["runs"] = Json::array();
  for (size_t i = 0; i < runs.size(); ++i) {
    data["runs"].push_back(RunJson(runs[i], names[i], options));
  }
  return data;
}

std::string BuildHtmlReport(std::span<const RunData> runs, const HtmlReportOptions& options) {
  return BuildHtmlPage({.title = options.title,
                        .style = kReportStyle,
                        .markup = kReportMarkup,
                        .script = ReportScript(),
                        .data = ReportData(runs, options),
                        .chart_js = options.chart_js});
}

std::string BuildLivePage(const HtmlReportOptions& options) {
  RunData none;
  none.name = "no rollout yet";
  return BuildHtmlPage({.title = options.title,
                        .style = kReportStyle,
                        .markup = kReportMarkup,
                        .script = ReportScript() + std::string(kReportLiveScript),
                        .data = ReportData(std::vector<RunData>{none}, options),
                        .network = PageNetwork::kOwnServer,
                        .chart_js = options.chart_js});
}

}  // namespace quatrain
