// The page of the report: markup, style and script, without data. html_report.cc joins them.
#pragma once

#include <string_view>

namespace quatrain {

extern const std::string_view kReportMarkup;  // content of <body>
extern const std::string_view kReportStyle;
// One script in three parts: reads #report-data, draws with Chart, takes new data from an event.
extern const std::string_view kReportCurvesScript;
extern const std::string_view kReportPanelsScript;
extern const std::string_view kReportSamplesScript;
// For a page that its run serves: asks for news and hands new data to the script above.
extern const std::string_view kReportLiveScript;

}  // namespace quatrain
