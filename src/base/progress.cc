#include "base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace quatrain {
namespace {

using std::chrono::steady_clock;

constexpr auto kRedrawInterval = std::chrono::milliseconds(100);
constexpr auto kPlainInterval = std::chrono::seconds(10);
constexpr int64_t kPlainSteps = 10;  // elsewhere than on a terminal: a line each tenth of the work
constexpr int64_t kBarWidth = 24;

// 1:02:03, 2:03 or 0:03.
std::string FormatDuration(double seconds) {
  const auto total = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  if (total >= 3600) {
    return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  }
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

size_t TerminalColumns() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return 80;
  return size.ws_col;
}

// At most `columns` bytes, cut between UTF-8 characters.
std::string CutTo(std::string text, size_t columns) {
  if (text.size() <= columns) return text;
  while (columns > 0 && (static_cast<unsigned char>(text[columns]) & 0xC0) == 0x80) --columns;
  text.resize(columns);
  return text;
}

}  // namespace

Progress::Progress(std::string title, int64_t total, std::string unit)
    : title_(std::move(title)),
      unit_(std::move(unit)),
      total_(total),
      is_terminal_(isatty(STDERR_FILENO) != 0),
      start_(steady_clock::now()),
      last_draw_(start_) {
  if (is_terminal_) Draw(false);
}

Progress::~Progress() { Draw(true); }

void Progress::Update(int64_t done, const std::string& note) {
  const auto share = [&](int64_t count) { return total_ > 0 ? count * kPlainSteps / total_ : 0; };
  const bool next_tenth = share(done) > share(last_drawn_done_);
  done_ = done;
  note_ = note;
  if (done_ == total_) return;  // the destructor draws the end
  const auto since_draw = steady_clock::now() - last_draw_;
  if (is_terminal_ ? since_draw >= kRedrawInterval : next_tenth || since_draw >= kPlainInterval) {
    Draw(false);
  }
}

void Progress::Draw(bool is_last) {
  last_draw_ = steady_clock::now();
  last_drawn_done_ = done_;
  const double elapsed = std::chrono::duration<double>(last_draw_ - start_).count();
  std::string time = "took " + FormatDuration(elapsed);
  if (!is_last) {
    const double per_item = done_ > 0 ? elapsed / static_cast<double>(done_) : 0;
    time = done_ > 0 ? "ETA " + FormatDuration(per_item * static_cast<double>(total_ - done_))
                     : "ETA -";
  }
  std::string counts = fmt::format("{}/{} {}  {}", done_, total_, unit_, time);
  if (!note_.empty()) counts += "  " + note_;
  if (!is_terminal_) {
    fmt::print(stderr, "{}: {}\n", title_, counts);
  } else {
    const int64_t filled =
        total_ > 0 ? std::clamp<int64_t>(done_ * kBarWidth / total_, 0, kBarWidth) : kBarWidth;
    const std::string bar = std::string(static_cast<size_t>(filled), '#') +
                            std::string(static_cast<size_t>(kBarWidth - filled), '-');
    const std::string line =
        CutTo(fmt::format("{} [{}] {}", title_, bar, counts), TerminalColumns() - 1);
    fmt::print(stderr, "\r\x1b[K{}{}", line, is_last ? "\n" : "");
  }
  std::fflush(stderr);
}

}  // namespace quatrain
