// How we fail: one exception type for bad user data or environment, CHECK for our own bugs.
//
//   throw Error(ErrorCode::kData, {.where = path, .what = "duplicate tensor name 'a.weight'",
//                                  .expected = "each name once", .found = "twice", .todo =
//                                  "re-export it"});
//
// Expected outcomes ("no free block") are return values, never exceptions. Only cli/ and server/
// catch.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace quatrain {

enum class ErrorCode {
  kUsage,        // a flag, environment variable or combination of them
  kData,         // content of a user's file
  kShape,        // tensor shapes that do not fit each other
  kIo,           // the operating system refused: missing, unreadable, disk full
  kResource,     // not enough memory or disk for the plan
  kInternal,     // our bug (CHECK)
  kInterrupted,  // SIGINT or SIGTERM, after a clean stop
  kQuality,      // the result is written, but misses a threshold that was asked for
};

// Exit status of the command line for an error: 2 for what a user can mend, 3 for a result that
// misses a threshold, 130 interrupted, 1 our bug.
int ExitStatus(ErrorCode code);

// The parts of a message; empty parts are left out. Printed as one paragraph:
// "<where>: <what>; expected <expected>, found <found>. <todo>"
struct ErrorParts {
  std::string where = {};     // file, tensor, flag or line
  std::string what = {};      // one clause
  std::string expected = {};  // what would have been right
  std::string found = {};     // what stood there
  std::string todo = {};      // what to do, a sentence
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const ErrorParts& parts);
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

namespace internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);
}  // namespace internal

}  // namespace quatrain

// Our own invariants. Throws Error(kInternal) with file and line; extra arguments are a fmt
// message.
#define QT_CHECK(condition, ...)                                        \
  do {                                                                  \
    if (!(condition)) {                                                 \
      ::quatrain::internal::CheckFailed(__FILE__, __LINE__, #condition, \
                                        ::fmt::format("" __VA_ARGS__)); \
    }                                                                   \
  } while (0)
