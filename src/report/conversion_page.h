// The page about one conversion: quality, errors of every weight, experts, codes, sizes, serving.
#pragma once

#include <string>

#include "base/json.h"
#include "report/html_page.h"

namespace quatrain {

// `report` is the content of conversion_report.json. Error kIo as BuildHtmlPage.
std::string BuildConversionPage(const Json& report,
                                const std::filesystem::path& chart_js = DefaultChartJsPath());

}  // namespace quatrain
