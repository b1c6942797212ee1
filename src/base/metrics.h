// Metrics for machines: one JSON object a line, appended and flushed, so that a killed run leaves
// whole lines.
#pragma once

#include <chrono>
#include <filesystem>
#include <fstream>

#include "base/json.h"

namespace quatrain {

// Appends rows to a JSONL file. On opening, a half-written last line (after kill -9) is cut off.
class MetricsWriter {
 public:
  explicit MetricsWriter(const std::filesystem::path& path);
  void Append(const Json& row);  // Error kIo when the disk is full

 private:
  std::filesystem::path path_;
  std::ofstream stream_;
};

// Seconds since construction or the last Restart.
class Timer {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  void Restart() { start_ = std::chrono::steady_clock::now(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace quatrain
