// A self-contained HTML page: data as inert JSON, Chart.js and a script inlined. It opens from
// disk, needs no network and lets the browser refuse any (a Content-Security-Policy allows inline
// content only).
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "base/json.h"

namespace quatrain {

// Chart.js 3.9 as Debian and Ubuntu's libjs-chart.js installs it; set by the build.
std::filesystem::path DefaultChartJsPath();

enum class PageNetwork { kNone, kOwnServer };  // what the page may fetch

struct HtmlPage {
  std::string title;
  std::string_view style;   // CSS
  std::string_view markup;  // content of <body>
  std::string script;       // reads #report-data, draws with Chart
  Json data;                // goes into the inert script element #report-data
  PageNetwork network = PageNetwork::kNone;
  std::filesystem::path chart_js = DefaultChartJsPath();
};

// Error kIo naming the package to install if the chart library is missing.
std::string BuildHtmlPage(const HtmlPage& page);

}  // namespace quatrain
