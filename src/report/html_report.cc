#include "report/html_report.h"

#include <set>

#include "base/error.h"
#include "report/headline.h"
#include "report/report_page.h"

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

Json RunJson(const RunData& run, const std::string& name, size_t max_samples) {
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
  json["samples"] = ThinnedSamples(run.samples, max_samples);
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

}  // namespace

std::string BuildHtmlReport(std::span<const RunData> runs, const HtmlReportOptions& options) {
  QT_CHECK(!runs.empty());
  const std::vector<std::string> names = UniqueNames(runs);
  Json data;
  data["title"] = options.title;
  data["runs"] = Json::array();
  for (size_t i = 0; i < runs.size(); ++i) {
    data["runs"].push_back(RunJson(runs[i], names[i], options.max_samples));
  }
  return BuildHtmlPage({.title = options.title,
                        .style = kReportStyle,
                        .markup = kReportMarkup,
                        .script = kReportScript,
                        .data = std::move(data),
                        .chart_js = options.chart_js});
}

}  // namespace quatrain
