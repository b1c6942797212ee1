// The subcommand `quatrain advise`.
#pragma once

#include <CLI/CLI.hpp>

namespace quatrain {

void AddAdviseCommand(CLI::App& app);

}  // namespace quatrain
