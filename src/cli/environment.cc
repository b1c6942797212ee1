#include "cli/environment.h"

#include <charconv>

#include "base/error.h"

extern char** environ;

namespace quatrain {
namespace {

constexpr const char* kFamily = "OPEN_TRAINING_";
constexpr const char* kFlag = "OPEN_TRAINING_INT4_FAKE_QAT_FLAG";
constexpr const char* kGroupSize = "OPEN_TRAINING_INT4_GROUP_SIZE";

[[noreturn]] void BadValue(const std::string& name, const std::string& expected,
                           const std::string& value) {
  throw Error(ErrorCode::kUsage, {.where = name,
                                  .what = "the environment variable has a value that means nothing",
                                  .expected = expected,
                                  .found = "'" + value + "'"});
}

}  // namespace

void ReadQatEnvironment(QatArgs* args) {
  std::vector<std::string> entries;
  for (char** entry = environ; *entry != nullptr; ++entry) entries.emplace_back(*entry);
  ReadQatEnvironment(entries, args);
}

void ReadQatEnvironment(const std::vector<std::string>& entries, QatArgs* args) {
  for (const std::string& entry : entries) {
    if (!entry.starts_with(kFamily)) continue;
    const size_t equals = entry.find('=');
    const std::string name = entry.substr(0, equals), value = entry.substr(equals + 1);
    if (name == kFlag) {
      if (value != "0" && value != "1") BadValue(name, "0 or 1", value);
      args->fake_qat_flag = value == "1";
    } else if (name == kGroupSize) {
      int64_t size = 0;
      const auto [end, status] = std::from_chars(value.data(), value.data() + value.size(), size);
      if (status != std::errc() || end != value.data() + value.size() || size <= 0) {
        BadValue(name, "a positive integer", value);
      }
      args->group_size = size;
    } else {
      throw Error(ErrorCode::kUsage, {.where = name,
                                      .what = "unknown environment variable of this family",
                                      .expected = std::string(kFlag) + " or " + kGroupSize,
                                      .todo = "Correct its name or unset it"});
    }
  }
}

}  // namespace quatrain
