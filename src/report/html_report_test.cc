#include "report/html_report.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

constexpr const char* kHostile =
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'";

RunData MakeRun(const std::string& name) {
  RunData run;
  run.name = name;
  run.rollouts = {0, 1, 2};
  run.metrics["rollout/raw_reward"] = {0.5, std::nullopt, 0.75};
  run.metrics["train/train_rollout_logprob_abs_diff"] = {0.0, 0.0, 0.0};
  run.evaluations = {{{"model", "INT4 trained"}, {"greedy_accuracy", 0.91}}};
  run.samples = {{{"rollout", 0}, {"prompt", "2+2?"}, {"response", kHostile}, {"reward", 0}}};
  run.config = {{"rollout.rollout_batch_size", "32"}};
  return run;
}

// A stand-in, so that these tests need no package.
std::filesystem::path StandInChartJs() {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "chart.min.js";
  std::ofstream(path) << "/* Chart.js v3.9.1 stand-in */ window.Chart = class {};";
  return path;
}

std::string Build(const std::vector<RunData>& runs) {
  return BuildHtmlReport(runs,
                         {.title = "T <&>", .chart_js = StandInChartJs(), .max_samples = 400});
}

// What the browser's parser would hand to JSON.parse.
std::string DataElement(const std::string& page) {
  const std::string open = "<script id=\"report-data\" type=\"application/json\">";
  const size_t begin = page.find(open) + open.size();
  return page.substr(begin, page.find("</script", begin) - begin);
}

TEST(HtmlReport, CarriesTheDataOfTheRuns) {
  const Json data = ParseJson(DataElement(Build({MakeRun("a"), MakeRun("b")})), "page");
  ASSERT_EQ(data["runs"].size(), 2u);
  const Json& run = data["runs"][0];
  EXPECT_EQ(run["name"], "a");
  EXPECT_EQ(run["rollouts"], Json::parse("[0, 1, 2]"));
  EXPECT_EQ(run["metrics"]["rollout/raw_reward"], Json::parse("[0.5, null, 0.75]"));
  EXPECT_EQ(run["evaluations"][0]["greedy_accuracy"], 0.91);
  EXPECT_EQ(run["config"][0], Json::parse(R"(["rollout.rollout_batch_size", "32"])"));
}

TEST(HtmlReport, HostileTextStaysText) {
  const std::string page = Build({MakeRun(kHostile)});
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_EQ(page.find("<img"), std::string::npos);
  const Json data = ParseJson(DataElement(page), "page");
  EXPECT_EQ(data["runs"][0]["samples"][0]["response"], kHostile);
  EXPECT_EQ(data["runs"][0]["name"], kHostile);
  EXPECT_NE(page.find("<title>T &lt;&amp;&gt;</title>"), std::string::npos);
  for (const char* unsafe : {"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"}) {
    EXPECT_EQ(page.find(unsafe), std::string::npos) << unsafe;
  }
}

TEST(HtmlReport, InvalidUtf8InASampleDoesNotBreakThePage) {
  RunData run = MakeRun("a");
  run.samples[0]["response"] = "cut \xE2\x82";
  const Json data = ParseJson(DataElement(Build({run})), "page");
  EXPECT_TRUE(data["runs"][0]["samples"][0]["response"].get<std::string>().starts_with("cut "));
}

TEST(HtmlReport, RefersToNothingOutsideItself) {
  RunData run = MakeRun("a");
  run.samples.clear();
  const std::string page = Build({run});
  EXPECT_EQ(page.find("://"), std::string::npos);
  for (const char* loader : {"src=", "@import", "url(", "fetch(", "XMLHttpRequest", "<link"}) {
    EXPECT_EQ(page.find(loader), std::string::npos) << loader;
  }
  for (size_t at = page.find("href="); at != std::string::npos; at = page.find("href=", at + 1)) {
    EXPECT_EQ(page.substr(at, 7), "href=\"#") << page.substr(at, 40);
  }
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
}

TEST(HtmlReport, IsTheSameForTheSameRuns) {
  EXPECT_EQ(Build({MakeRun("a")}), Build({MakeRun("a")}));
}

TEST(HtmlReport, RunsOfOneNameAreToldApart) {
  const std::vector<RunData> runs = {MakeRun("run"), MakeRun("run"), MakeRun("run (2)")};
  const Json data = ParseJson(DataElement(Build(runs)), "page");
  EXPECT_EQ(data["runs"][1]["name"], "run (2)");
  EXPECT_EQ(data["runs"][2]["name"], "run (2) (2)");
}

TEST(HtmlReport, ThinsSamplesEvenlyAndSaysHowManyThereWere) {
  RunData run = MakeRun("a");
  run.samples.clear();
  for (int i = 0; i < 1000; ++i) run.samples.push_back({{"rollout", i}});
  const std::string page = BuildHtmlReport(
      std::vector<RunData>{run}, {.title = "T", .chart_js = StandInChartJs(), .max_samples = 10});
  const Json data = ParseJson(DataElement(page), "page");
  EXPECT_EQ(data["runs"][0]["num_samples"], 1000);
  const Json& samples = data["runs"][0]["samples"];
  ASSERT_EQ(samples.size(), 10u);
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(samples[i]["rollout"], 100 * i + 99);
}

TEST(HtmlReport, TheNewestSamplesKeepTheirTokens) {
  RunData run = MakeRun("a");
  run.samples.clear();
  for (int i = 0; i < 3; ++i) {
    run.samples.push_back({{"rollout", i},
                           {"response", "xy"},
                           {"tokens", {"x", "y"}},
                           {"rollout_logprobs", {-1.0, -2.0}}});
  }
  const Json data =
      ReportData(std::vector<RunData>{run},
                 {.title = "T", .chart_js = StandInChartJs(), .max_samples = 10, .max_tokens = 4});
  const Json& samples = data["runs"][0]["samples"];
  EXPECT_FALSE(samples[0].contains("tokens"));
  EXPECT_FALSE(samples[0].contains("rollout_logprobs"));
  EXPECT_EQ(samples[0]["response"], "xy");
  EXPECT_TRUE(samples[1].contains("tokens"));
  EXPECT_TRUE(samples[2].contains("tokens"));
}

TEST(HtmlReport, OnlyALivePageMayAskAndOnlyItsServer) {
  const std::string live = BuildLivePage({.title = "T", .chart_js = StandInChartJs()});
  EXPECT_NE(live.find("connect-src 'self'"), std::string::npos);
  EXPECT_EQ(Build({MakeRun("a")}).find("connect-src"), std::string::npos);
  EXPECT_EQ(live.find("://"), std::string::npos);
}

TEST(HtmlReport, AMissingChartLibraryNamesThePackage) {
  try {
    BuildHtmlReport(std::vector<RunData>{MakeRun("a")},
                    {.title = "T", .chart_js = "no/chart.min.js", .max_samples = 1});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find("libjs-chart.js"), std::string::npos);
  }
}

TEST(HtmlReport, NeedsARun) { EXPECT_THROW(Build({}), Error); }

}  // namespace
}  // namespace quatrain
