#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/dist_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <unistd.h>

#include <memory>
#include <string_view>

#include "base/error.h"

namespace quatrain {
namespace {

// "warning: " or "error: " before the text, nothing for information.
class LevelFlag : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm& /*time*/,
              spdlog::memory_buf_t& out) override {
    std::string_view label;
    if (message.level == spdlog::level::warn) label = "warning: ";
    if (message.level >= spdlog::level::err) label = "error: ";
    out.append(label.data(), label.data() + label.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<LevelFlag>();
  }
};

std::unique_ptr<spdlog::formatter> MakeFormatter(const std::string& prefix) {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<LevelFlag>('*').set_pattern(prefix + "[%H:%M:%S] %*%v");
  return formatter;
}

struct Logging {
  std::shared_ptr<spdlog::sinks::dist_sink_mt> sinks =
      std::make_shared<spdlog::sinks::dist_sink_mt>();
  spdlog::logger logger{"quatrain", sinks};

  Logging() {
    auto standard_error = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    // On a terminal a progress bar may stand on the line: wipe it, it is drawn again below.
    standard_error->set_formatter(MakeFormatter(isatty(STDERR_FILENO) != 0 ? "\r\x1b[K" : ""));
    sinks->add_sink(standard_error);
    logger.set_level(spdlog::level::info);
    logger.flush_on(spdlog::level::warn);
  }
};

Logging& TheLogging() {
  static Logging logging;
  return logging;
}

}  // namespace

spdlog::logger& Log() { return TheLogging().logger; }

void OpenLogFile(const std::filesystem::path& path) {
  try {
    auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path.string());
    file->set_formatter(MakeFormatter(""));
    TheLogging().sinks->add_sink(file);
  } catch (const spdlog::spdlog_ex& error) {
    throw Error(ErrorCode::kIo, {.where = path.string(),
                                 .what = fmt::format("cannot open the log file ({})", error.what()),
                                 .todo = "Choose a place that can be written."});
  }
}

}  // namespace quatrain
