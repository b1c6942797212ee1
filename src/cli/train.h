// The `quatrain train` command.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace quatrain {

// Registers the subcommand; its callback does the work and throws Error.
void AddTrainCommand(CLI::App& app);

// `arguments` of the program, the first of which is "train", as CLI11 is to read them: with the
// config file's flags, without the field's, of which one line each is logged (train_arguments.h).
std::vector<std::string> PrepareTrainCommand(const CLI::App& app,
                                             const std::vector<std::string>& arguments);

}  // namespace quatrain
