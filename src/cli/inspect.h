// The `quatrain inspect` command.
#pragma once

namespace CLI {
class App;
}

namespace quatrain {

// Registers the subcommand; its callback does the work and throws Error, also (after printing) for
// a directory that is inconsistent.
void AddInspectCommand(CLI::App& app);

}  // namespace quatrain
