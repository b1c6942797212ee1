#include "base/error.h"

namespace quatrain {

int ExitStatus(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInternal:
      return 1;
    case ErrorCode::kInterrupted:
      return 130;
    default:
      return 2;
  }
}

namespace {
std::string Join(const ErrorParts& parts) {
  std::string text = parts.where.empty() ? parts.what : parts.where + ": " + parts.what;
  if (!parts.expected.empty()) text += "; expected " + parts.expected;
  if (!parts.found.empty()) text += (parts.expected.empty() ? "; found " : ", found ") + parts.found;
  if (!parts.todo.empty()) text += ". " + parts.todo;
  if (!text.empty() && text.back() != '.') text += '.';
  return text;
}
}  // namespace

Error::Error(ErrorCode code, const ErrorParts& parts) : std::runtime_error(Join(parts)), code_(code) {}

namespace internal {
void CheckFailed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(ErrorCode::kInternal,
              fmt::format("{}:{}: internal check failed: {}{}{}. This is a bug in quatrain; please report it.",
                          file, line, condition, message.empty() ? "" : ": ", message));
}
}  // namespace internal

}  // namespace quatrain
