// The page of the report: markup, style and script, without data. html_report.cc joins them.
#pragma once

#include <string_view>

namespace quatrain {

extern const std::string_view kReportMarkup;  // content of <body>
extern const std::string_view kReportStyle;
extern const std::string_view kReportScript;  // reads #report-data, draws with Chart

}  // namespace quatrain
