#include "cli/report.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "report/html_report.h"

namespace quatrain {
namespace {

struct ReportFlags {
  std::vector<std::string> runs;
  std::vector<std::string> evaluations;
  std::string output;
  HtmlReportOptions html;
  std::string chart_js = html.chart_js.string();
};

// Writes the page and prints its path as the last line of standard output.
void RunReport(ReportFlags flags) {
  std::vector<RunData> runs;
  for (const std::string& folder : flags.runs) runs.push_back(ReadRun(folder));
  for (const std::string& path : flags.evaluations) {
    for (Json& row : ReadEvaluations(path)) runs.front().evaluations.push_back(std::move(row));
  }
  flags.html.chart_js = flags.chart_js;
  const std::filesystem::path output =
      flags.output.empty() ? std::filesystem::path(flags.runs.front()) / "report.html"
                           : std::filesystem::path(flags.output);
  WriteFileAtomic(output, BuildHtmlReport(runs, flags.html));
  fmt::print("{}\n", std::filesystem::absolute(output).lexically_normal().string());
}

}  // namespace

void AddReportCommand(CLI::App& app) {
  auto flags = std::make_shared<ReportFlags>();
  CLI::App* command = app.add_subcommand(
      "report",
      "One self-contained HTML file about a run: curves, accuracy, samples, configuration.");
  command->footer("Example: quatrain report --run runs/qat");
  command
      ->add_option("--run,RUN", flags->runs,
                   "Folder that quatrain train was given as --save; several are drawn into the "
                   "same charts")
      ->required();
  command->add_option("--eval", flags->evaluations,
                      "Accuracy table of quatrain eval (JSON), beside the runs' own eval.json");
  command->add_option("--output", flags->output, "The file to write [first run]/report.html");
  command->add_option("--title", flags->html.title, "Heading of the page")->capture_default_str();
  command->add_option("--chart-js", flags->chart_js, "chart.min.js of Chart.js 3.9")
      ->capture_default_str();
  command->callback([flags] { RunReport(*flags); });
}

}  // namespace quatrain
