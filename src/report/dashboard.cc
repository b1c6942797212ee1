#include "report/dashboard.h"

#include <httplib.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <set>
#include <span>
#include <system_error>
#include <thread>

#include "base/error.h"

namespace quatrain {
namespace {

constexpr uint64_t kMaxSampleBytes = 16'000'000;  // of samples.jsonl, read anew after each rollout

// "127.0.0.1:7788" -> "127.0.0.1"; "[::1]:7788" -> "[::1]".
std::string HostOf(const std::string& header) {
  const size_t colon = header.rfind(':');
  const bool is_port = colon != std::string::npos && header.find(']', colon) == std::string::npos;
  return is_port ? header.substr(0, colon) : header;
}

// Changes whenever a row was written.
std::string VersionOf(const std::filesystem::path& metrics) {
  std::error_code absent;
  const auto size = std::filesystem::file_size(metrics, absent);
  return absent ? "0" : fmt::format("{}", size);
}

double SecondsSinceRow(const std::filesystem::path& metrics) {
  std::error_code absent;
  const auto written = std::filesystem::last_write_time(metrics, absent);
  if (absent || std::filesystem::file_size(metrics, absent) == 0) return -1.0;
  const auto age = std::filesystem::file_time_type::clock::now() - written;
  return std::max(0.0, std::chrono::duration<double>(age).count());
}

}  // namespace

struct Dashboard::Server {
  explicit Server(const DashboardOptions& given)
      : options(given),
        metrics(given.run / "metrics.jsonl"),
        page(BuildLivePage(given.html)),
        hosts({given.host, "127.0.0.1", "localhost", "[::1]"}) {}

  void Route() {
    http.set_pre_routing_handler(
        [this](const httplib::Request& request, httplib::Response& response) {
          if (hosts.contains(HostOf(request.get_header_value("Host"))))
            return httplib::Server::HandlerResponse::Unhandled;
          response.status = 403;
          response.set_content("This page is not served under that name.\n", "text/plain");
          return httplib::Server::HandlerResponse::Handled;
        });
    http.Get("/", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(page, "text/html; charset=utf-8");
    });
    http.Get("/data.json", [this](const httplib::Request&, httplib::Response& response) {
      HtmlReportOptions html = options.html;
      html.seconds_since_row = SecondsSinceRow(metrics);
      const RunData run =
          ReadRun(options.run, {.empty = EmptyRun::kAllow, .max_sample_bytes = kMaxSampleBytes});
      response.set_content(DumpJson(ReportData(std::span(&run, 1), html)), "application/json");
    });
    http.Get("/status.json", [this](const httplib::Request&, httplib::Response& response) {
      const std::lock_guard<std::mutex> lock(mutex);
      const Json status = {{"version", VersionOf(metrics)},
                           {"what", what},
                           {"seconds_since_row", SecondsSinceRow(metrics)}};
      response.set_content(DumpJson(status), "application/json");
    });
  }

  const DashboardOptions options;
  const std::filesystem::path metrics;
  const std::string page;
  const std::set<std::string> hosts;
  httplib::Server http;
  int port = -1;
  std::thread thread;
  std::mutex mutex;
  std::string what = "starting";  // guarded by mutex
};

Dashboard::Dashboard(const DashboardOptions& options) : server_(std::make_unique<Server>(options)) {
  Server& server = *server_;
  server.Route();
  server.http.new_task_queue = [] { return new httplib::ThreadPool(2); };
  // Its own options let two servers share a port.
  server.http.set_socket_options([](int socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  const bool is_any = options.port == 0;
  if (is_any) server.port = server.http.bind_to_any_port(options.host.c_str());
  if (!is_any && server.http.bind_to_port(options.host.c_str(), options.port))
    server.port = options.port;
  if (server.port < 0) {
    throw Error(ErrorCode::kUsage, {.where = fmt::format("--dashboard-port {}", options.port),
                                    .what = fmt::format("cannot listen there on {}", options.host),
                                    .expected = "a free port",
                                    .todo = "Choose another, or 0 for any that is free"});
  }
  server.thread = std::thread([&server] { server.http.listen_after_bind(); });
  // Stopping it before it runs would be lost.
  while (!server.http.is_running()) std::this_thread::yield();
}

Dashboard::~Dashboard() {
  server_->http.stop();
  server_->thread.join();
}

std::string Dashboard::url() const {
  return fmt::format("http://{}:{}/", server_->options.host, server_->port);
}

int Dashboard::port() const { return server_->port; }

void Dashboard::SetStatus(const std::string& what) {
  const std::lock_guard<std::mutex> lock(server_->mutex);
  server_->what = what;
}

}  // namespace quatrain
