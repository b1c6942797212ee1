// Ctrl-C as a request: long work asks between steps and stops cleanly; a second signal ends the
// process at once.
#pragma once

namespace quatrain {

// Installs handlers for SIGINT and SIGTERM. Called once, by cli/main.
void InstallInterruptHandler();

// True once a signal came. Async-signal-safe flag; cheap to ask.
bool InterruptRequested();

}  // namespace quatrain
