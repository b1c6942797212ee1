#include "cli/inspect.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "cli/inspection.h"
#include "quant/consistency.h"

namespace quatrain {
namespace {

struct InspectFlags {
  std::string directory;
  std::string against;
  bool is_json = false;
  int num_threads = 0;
};

void RunInspect(const InspectFlags& flags) {
  ThreadPool pool(flags.num_threads);
  std::optional<std::filesystem::path> against;
  if (!flags.against.empty()) against = flags.against;
  const Inspection inspection = InspectModel(pool, flags.directory, against);
  if (flags.is_json) {
    fmt::print("{}\n", DumpJson(InspectionJson(inspection)));
  } else {
    fmt::print("{}", InspectionText(inspection));
  }
  std::fflush(stdout);
  ThrowIfInconsistent(inspection.problems, flags.directory);
}

}  // namespace

void AddInspectCommand(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "What a model directory holds: scheme, sizes, what is quantised, where tensor parallelism "
      "breaks. Fails if it is inconsistent.");
  command->footer("Example: quatrain inspect runs/int4 --against examples/models/tiny-qwen3-moe");
  command->add_option("directory", flags->directory, "Hugging Face directory")->required();
  command->add_option("--against", flags->against,
                      "BF16 directory of the same model: adds the error of every weight");
  command->add_flag("--json", flags->is_json, "One JSON object instead of text");
  command->add_option("--threads", flags->num_threads, "Threads; 0 takes all CPUs")
      ->capture_default_str();
  command->callback([flags] { RunInspect(*flags); });
}

}  // namespace quatrain
