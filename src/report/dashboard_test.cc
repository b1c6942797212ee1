#include "report/dashboard.h"

#include <gtest/gtest.h>
#include <httplib.h>

#include <fstream>

#include "base/error.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

class DashboardTest : public testing::Test {
 protected:
  DashboardTest() : folder_(fs::path(testing::TempDir()) / "dashboard_test") {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    options_.run = folder_;
    options_.html.chart_js = folder_ / "chart.min.js";
    std::ofstream(options_.html.chart_js) << "/* Chart.js v3.9.1 stand-in */";
  }

  void AppendRow(const std::string& row) const {
    std::ofstream(folder_ / "metrics.jsonl", std::ios::app) << row << "\n";
  }

  static Json Get(const Dashboard& dashboard, const std::string& path) {
    httplib::Client client("127.0.0.1", dashboard.port());
    const httplib::Result result = client.Get(path);
    EXPECT_TRUE(result) << path;
    EXPECT_EQ(result->status, 200) << path;
    return ParseJson(result->body, path);
  }

  fs::path folder_;
  DashboardOptions options_;
};

TEST_F(DashboardTest, ServesThePageAndFollowsTheRun) {
  Dashboard dashboard(options_);
  httplib::Client client("127.0.0.1", dashboard.port());
  const httplib::Result page = client.Get("/");
  ASSERT_TRUE(page);
  EXPECT_NE(page->body.find("connect-src 'self'"), std::string::npos);
  EXPECT_NE(page->body.find("status.json"), std::string::npos);

  const Json young = Get(dashboard, "/status.json");
  EXPECT_EQ(young["what"], "starting");
  EXPECT_EQ(young["seconds_since_row"], -1.0);
  EXPECT_TRUE(Get(dashboard, "/data.json")["runs"][0]["rollouts"].empty());

  AppendRow(R"({"rollout": 1, "rollout/raw_reward": 0.0})");
  dashboard.SetStatus("rollout 2 of 9");
  const Json status = Get(dashboard, "/status.json");
  EXPECT_EQ(status["what"], "rollout 2 of 9");
  EXPECT_NE(status["version"], young["version"]);
  EXPECT_GE(status["seconds_since_row"], 0.0);
  const Json run = Get(dashboard, "/data.json")["runs"][0];
  EXPECT_EQ(run["rollouts"], Json::parse("[1]"));
  EXPECT_EQ(run["warnings"][0]["title"], "Rollouts without any reward");
}

TEST_F(DashboardTest, AnswersOnlyRequestsThatNameThisHost) {
  const Dashboard dashboard(options_);
  httplib::Client client("127.0.0.1", dashboard.port());
  const httplib::Headers foreign = {{"Host", "evil.example:" + std::to_string(dashboard.port())}};
  EXPECT_EQ(client.Get("/data.json", foreign)->status, 403);
  const httplib::Headers local = {{"Host", "localhost:" + std::to_string(dashboard.port())}};
  EXPECT_EQ(client.Get("/data.json", local)->status, 200);
}

TEST_F(DashboardTest, ATakenPortIsNamed) {
  const Dashboard dashboard(options_);
  DashboardOptions again = options_;
  again.port = dashboard.port();
  try {
    const Dashboard second(again);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(std::to_string(again.port)), std::string::npos);
  }
}

TEST_F(DashboardTest, DataOfADamagedRunIsAnErrorOfThatRequestOnly) {
  AppendRow("{broken");
  const Dashboard dashboard(options_);
  httplib::Client client("127.0.0.1", dashboard.port());
  EXPECT_EQ(client.Get("/data.json")->status, 500);
  EXPECT_EQ(client.Get("/status.json")->status, 200);
}

}  // namespace
}  // namespace quatrain
