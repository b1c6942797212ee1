// One self-contained HTML file about one or several runs: curves, tables, sample texts. It opens
// from disk, needs no network and lets the browser refuse any (a Content-Security-Policy allows
// inline content only).
//
// Text of runs enters the page as JSON in an inert script element and is shown through textContent
// alone, so that nothing a model writes can become markup.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "report/html_page.h"
#include "report/run_data.h"

namespace quatrain {

struct HtmlReportOptions {
  std::string title = "Quatrain run report";
  std::filesystem::path chart_js = DefaultChartJsPath();
  size_t max_samples = 400;  // of each run, thinned evenly over its rollouts
  // Of each run, for the colours; the newest samples have them, older ones are text only.
  size_t max_tokens = 400'000;
  double seconds_since_row = -1.0;  // of a run that goes on
};

// What the page shows, as JSON: {"title", "runs": [...]}. `runs` is not empty.
Json ReportData(std::span<const RunData> runs, const HtmlReportOptions& options);

// The page. Curves of several runs share one chart each. Error kIo naming the package to install if
// the chart library is missing; kData if `runs` is empty.
std::string BuildHtmlReport(std::span<const RunData> runs, const HtmlReportOptions& options);

// A page that asks its own server for ReportData (data.json) when status.json names another
// version: {"version", "what", "seconds_since_row"}.
std::string BuildLivePage(const HtmlReportOptions& options);

}  // namespace quatrain
