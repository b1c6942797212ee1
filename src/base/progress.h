// One progress line with an ETA: a redrawn bar on a terminal, a plain line every 10 s (or 10 %)
// elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace quatrain {

class Progress {
 public:
  // `unit` is plural: "rollouts", "layers", "prompts". Draws on standard error. Not thread-safe.
  Progress(std::string title, int64_t total, std::string unit);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of total; `note` is short text behind the bar, e.g. "reward 0.81".
  void Update(int64_t done, const std::string& note = "");

 private:
  void Draw(bool is_last);
  std::string title_, unit_, note_;
  int64_t total_, done_ = 0, last_drawn_done_ = 0;
  bool is_terminal_;
  std::chrono::steady_clock::time_point start_, last_draw_;
};

}  // namespace quatrain
