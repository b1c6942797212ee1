#include "base/log.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

// The text without the "[HH:MM:SS] " that every line must begin with.
std::string WithoutTimes(const std::string& text) {
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin) + 1;
    EXPECT_EQ(text[begin], '[') << text;
    EXPECT_EQ(text.substr(begin + 9, 2), "] ") << text;
    kept += text.substr(begin + 11, end - begin - 11);
    begin = end;
  }
  return kept;
}

TEST(Log, LinesGoToStandardErrorAndToTheOpenedFileWithTheirLevel) {
  const auto path = std::filesystem::path(testing::TempDir()) / "log_test.log";
  std::filesystem::remove(path);
  testing::internal::CaptureStderr();
  Log().info("before the file");
  OpenLogFile(path);
  Log().info("{} tensors", 3);
  Log().warn("group {} is odd", "g");
  const std::string shown = testing::internal::GetCapturedStderr();
  EXPECT_EQ(WithoutTimes(shown), "before the file\n3 tensors\nwarning: group g is odd\n");
  EXPECT_EQ(WithoutTimes(ReadFile(path)), "3 tensors\nwarning: group g is odd\n");
}

TEST(Log, AFileThatCannotBeOpenedIsAnErrorThatNamesIt) {
  try {
    OpenLogFile("/proc/no/such/place.log");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find("/proc/no/such/place.log"), std::string::npos);
  }
}

}  // namespace
}  // namespace quatrain
