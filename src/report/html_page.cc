#include "report/html_page.h"

#include "base/error.h"
#include "base/file.h"

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

}  // namespace

std::filesystem::path DefaultChartJsPath() { return QT_CHART_JS; }

std::string BuildHtmlPage(const HtmlPage& page) {
  std::string text =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
      "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:";
  text += page.network == PageNetwork::kOwnServer ? "; connect-src 'self'\">\n" : "\">\n";
  text += "<title>" + EscapeHtml(page.title) + "</title>\n<style>\n";
  text += page.style;
  text += "</style>\n</head>\n<body>\n";
  text += page.markup;
  text += "<script id=\"report-data\" type=\"application/json\">" + EmbeddableJson(page.data);
  text += "</script>\n<script>\n" + ReadChartJs(page.chart_js);
  text += "\n</script>\n<script>\n";
  text += page.script;
  text += "</script>\n</body>\n</html>\n";
  return text;
}

}  // namespace quatrain
