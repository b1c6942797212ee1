#include "report/conversion_page.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"

namespace quatrain {
namespace {

Json SmallReport() { return {{"source", "</script><b>x</b>"}, {"modules", Json::array()}}; }

TEST(ConversionPage, HoldsTheDataAsInertJsonAndNeedsNoNetwork) {
  if (!std::filesystem::exists(DefaultChartJsPath())) GTEST_SKIP() << "libjs-chart.js is missing";
  const std::string page = BuildConversionPage(SmallReport());
  EXPECT_EQ(page.find("</script><b>"), std::string::npos);
  EXPECT_NE(page.find("\\u003c/script\\u003e\\u003cb\\u003e"), std::string::npos);
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  EXPECT_NE(page.find("error-chart"), std::string::npos);
}

TEST(ConversionPage, MissingChartLibraryNamesThePackage) {
  try {
    BuildConversionPage(SmallReport(), "/no/such/chart.js");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("libjs-chart.js"), std::string::npos);
  }
}

}  // namespace
}  // namespace quatrain
