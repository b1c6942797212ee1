#include "base/metrics.h"

#include <cerrno>
#include <system_error>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

// A line without its newline was being written when the process died.
void CutHalfWrittenLine(const std::filesystem::path& path) {
  const std::string content = ReadFile(path);
  const size_t newline = content.rfind('\n');
  const size_t whole = newline == std::string::npos ? 0 : newline + 1;
  if (whole == content.size()) return;
  std::error_code error;
  std::filesystem::resize_file(path, whole, error);
  if (error) {
    throw Error(ErrorCode::kIo,
                {.where = path.string(),
                 .what = "cannot cut off a half-written line (" + error.message() + ")"});
  }
}

}  // namespace

MetricsWriter::MetricsWriter(const std::filesystem::path& path) : path_(path) {
  if (std::filesystem::is_regular_file(path)) CutHalfWrittenLine(path);
  errno = 0;
  stream_.open(path, std::ios::app | std::ios::binary);
  if (!stream_) {
    throw Error(ErrorCode::kIo, {.where = path.string(),
                                 .what = fmt::format("cannot open the metrics file ({})",
                                                     std::generic_category().message(errno)),
                                 .todo = "Choose a place that can be written."});
  }
}

void MetricsWriter::Append(const Json& row) {
  errno = 0;
  stream_ << DumpJson(row) + '\n' << std::flush;
  if (stream_) return;
  const bool is_full = errno == ENOSPC || errno == EDQUOT;
  throw Error(ErrorCode::kIo,
              {.where = path_.string(),
               .what = is_full ? std::string("cannot write a metrics row: the disk is full")
                               : fmt::format("cannot write a metrics row ({})",
                                             std::generic_category().message(errno)),
               .todo = "Free some space and resume."});
}

}  // namespace quatrain
