// The `quatrain train` command.
#pragma once

namespace CLI {
class App;
}

namespace quatrain {

// Registers the subcommand; its callback does the work and throws Error.
void AddTrainCommand(CLI::App& app);

}  // namespace quatrain
