// Log lines for people: to standard error and, once opened, to a file too. Library code logs; it
// never prints.
//
//   Log().info("{} tensors", n);   Log().warn("...");     (spdlog; thread-safe)
#pragma once

#include <spdlog/spdlog.h>

#include <filesystem>

namespace quatrain {

// The process's logger. Level info; the pattern is "[HH:MM:SS] text", warnings and errors with
// their level.
spdlog::logger& Log();

// From now on every line also goes to `path` (appended, flushed on warnings). Error kIo if it
// cannot be opened.
void OpenLogFile(const std::filesystem::path& path);

}  // namespace quatrain
