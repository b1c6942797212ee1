#include "report/html_report.h"

#include <set>

#include "base/error.h"
#include "base/file.h"
#include "report/headline.h"
#include "report/report_page.h"

#ifndef QT_CHART_JS
#define QT_CHART_JS "/usr/share/javascript/chart.js/chart.min.js"
#endif

namespace quatrain {
namespace {

std::string ReadChartJs(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) {
    throw Error(ErrorCode::kIo,
                {.where = path.string(),
                 .what = "the chart library is missing",
                 .expected = "chart.min.js of Chart.js 3.9",
                 .todo = "Install the package libjs-chart.js (apt-get install libjs-chart.js) or "
                         "name the file with --chart-js"});
  }
  std::string script = ReadFile(path);
  if (script.find("Chart.js v") == std::string::npos ||
      script.find("</script") != std::string::npos) {
    throw Error(ErrorCode::kData, {.where = path.string(),
                                   .what = "not a Chart.js that can be put into a page",
                                   .expected = "chart.min.js of Chart.js 3.9"});
  }
  return script;
}

// JSON that no HTML parser can take for markup: the characters that could open or close a tag are
// written as escapes, which JSON allows inside strings, the only place where they occur.
std::string EmbeddableJson(const Json& json) {
  std::string result;
  for (const char c : DumpJson(json)) {
    switch (c) {
      case '<':
        result += "\\u003c";
        break;
      case '>':
        result += "\\u003e";
        break;
      case '&':
        result += "\\u0026";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string EscapeHtml(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '&':
        result += "&amp;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

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

std::filesystem::path DefaultChartJsPath() { return QT_CHART_JS; }

std::string BuildHtmlReport(std::span<const RunData> runs, const HtmlReportOptions& options) {
  QT_CHECK(!runs.empty());
  const std::vector<std::string> names = UniqueNames(runs);
  Json data;
  data["title"] = options.title;
  data["runs"] = Json::array();
  for (size_t i = 0; i < runs.size(); ++i) {
    data["runs"].push_back(RunJson(runs[i], names[i], options.max_samples));
  }
  std::string page =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
      "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:\">\n";
  page += "<title>" + EscapeHtml(options.title) + "</title>\n<style>\n";
  page += kReportStyle;
  page += "</style>\n</head>\n<body>\n";
  page += kReportMarkup;
  page += "<script id=\"report-data\" type=\"application/json\">" + EmbeddableJson(data);
  page += "</script>\n<script>\n" + ReadChartJs(options.chart_js);
  page += "\n</script>\n<script>\n";
  page += kReportScript;
  page += "</script>\n</body>\n</html>\n";
  return page;
}

}  // namespace quatrain
