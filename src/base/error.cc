#include "base/error.h"

namespace quatrain {

int ExitStatus(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInternal:
      return 1;
    case ErrorCode::kQuality:
      return 3;
    case ErrorCode::kInterrupted:
      return 130;
    default:
      return 2;
  }
}

namespace {
std::string Join(const ErrorParts& parts) {
  std::string text = parts.where;
  const auto append = [&](const char* separator, const std::string& part) {
    if (!text.empty()) text += separator;
    text += part;
  };
  if (!parts.what.empty()) append(": ", parts.what);
  const char* const clause = parts.what.empty() ? ": " : "; ";
  if (!parts.expected.empty()) append(clause, "expected " + parts.expected);
  if (!parts.found.empty()) append(parts.expected.empty() ? clause : ", ", "found " + parts.found);
  if (!parts.todo.empty()) append(". ", parts.todo);
  if (!text.empty() && text.back() != '.') text += '.';
  return text;
}
}  // namespace

Error::Error(ErrorCode code, const ErrorParts& parts)
    : std::runtime_error(Join(parts)), code_(code) {}

namespace internal {
void CheckFailed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(
      ErrorCode::kInternal,
      fmt::format(
          "{}:{}: internal check failed: {}{}{}. This is a bug in quatrain; please report it.",
          file, line, condition, message.empty() ? "" : ": ", message));
}
}  // namespace internal

}  // namespace quatrain
