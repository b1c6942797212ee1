// The `quatrain convert` command.
#pragma once

namespace CLI {
class App;
}

namespace quatrain {

// Registers the subcommand; its callback does the work and throws Error.
void AddConvertCommand(CLI::App& app);

}  // namespace quatrain
