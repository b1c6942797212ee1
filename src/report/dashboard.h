// The report page of a run while it runs: a small HTTP server over its run directory.
//
//   /             the page (html_report.h), which follows the run
//   /data.json    what it shows, read from the directory when asked for
//   /status.json  {"version", "what", "seconds_since_row"}: has anything changed?
//
// It reads what the run has written and nothing else, so it cannot disturb it. Only requests that
// name this host are answered, since any page in a browser may send requests to loopback. Listens
// on loopback unless told otherwise; there is no password.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "report/html_report.h"

namespace quatrain {

struct DashboardOptions {
  std::filesystem::path run;  // the run directory
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any that is free
  HtmlReportOptions html;
};

// Thread-safe. Answers on threads of its own until it is destroyed.
class Dashboard {
 public:
  // Listens when it returns. Error kUsage if the port is taken, kIo if the chart library is
  // missing.
  explicit Dashboard(const DashboardOptions& options);
  ~Dashboard();
  Dashboard(const Dashboard&) = delete;
  Dashboard& operator=(const Dashboard&) = delete;

  std::string url() const;  // "http://127.0.0.1:7788/"
  int port() const;

  // What the run is doing, for the head of the page.
  void SetStatus(const std::string& what);

 private:
  struct Server;
  std::unique_ptr<Server> server_;
};

}  // namespace quatrain
