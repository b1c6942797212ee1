// The `quatrain` program: one subcommand a job. Errors end here: one paragraph on standard error
// and an exit status (2: the user can mend it, 3: written, but a threshold is missed, 130:
// interrupted, 1: our bug).
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>

#include "base/error.h"
#include "base/interrupt.h"
#include "cli/advise.h"
#include "cli/convert.h"
#include "cli/dequantize.h"
#include "cli/eval.h"
#include "cli/generate.h"
#include "cli/inspect.h"
#include "cli/report.h"
#include "cli/score.h"
#include "cli/tokenize.h"
#include "cli/train.h"

namespace quatrain {
namespace {

constexpr const char* kVersion = "0.1.0";

int Fail(const std::string& message, int status) {
  std::fprintf(stderr, "quatrain: error: %s\n", message.c_str());
  return status;
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

int Run(int argc, char** argv) {
  CLI::App app{"Quatrain: INT4 quantisation-aware RL. Convert, train, evaluate and report.",
               "quatrain"};
  app.set_version_flag("--version", std::string("quatrain ") + kVersion);
  app.require_subcommand(1);
  AddConvertCommand(app);
  AddDequantizeCommand(app);
  AddTrainCommand(app);
  AddEvalCommand(app);
  AddReportCommand(app);
  AddInspectCommand(app);
  AddAdviseCommand(app);
  AddScoreCommand(app);
  AddGenerateCommand(app);
  AddTokenizeCommand(app);
  // An unknown command would be told as a missing one.
  const std::vector<std::string> commands = CommandNames(app);
  if (argc > 1 && argv[1][0] != '-' &&
      std::find(commands.begin(), commands.end(), argv[1]) == commands.end()) {
    return Fail(
        fmt::format("'{}' is no command; expected one of {}", argv[1], fmt::join(commands, ", ")),
        2);
  }
  try {
    std::vector<std::string> arguments(argv + 1, argv + argc);
    if (!arguments.empty() && arguments[0] == "train")
      arguments = PrepareTrainCommand(app, arguments);
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
    app.parse(std::move(arguments));
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help, --version
  } catch (const CLI::ParseError& error) {
    return Fail(
        std::string(error.what()) + " (see 'quatrain --help' and 'quatrain COMMAND --help')", 2);
  }
  return 0;
}

}  // namespace
}  // namespace quatrain

int main(int argc, char** argv) {
  quatrain::InstallInterruptHandler();
  // Our own pool does the work; libtorch's threads would spin beside it between its small ops.
  at::set_num_threads(1);
  try {
    return quatrain::Run(argc, argv);
  } catch (const quatrain::Error& error) {
    return quatrain::Fail(error.what(), quatrain::ExitStatus(error.code()));
  } catch (const std::bad_alloc&) {
    return quatrain::Fail(
        "out of memory. Use fewer or shorter sequences, a smaller KV cache, or a larger machine.",
        2);
  } catch (const std::filesystem::filesystem_error& error) {
    return quatrain::Fail(fmt::format("{}: {}", error.path1().string(), error.code().message()), 2);
  } catch (const std::exception& error) {
    return quatrain::Fail(error.what(), 1);
  }
}
