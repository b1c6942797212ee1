#include "base/progress.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>

namespace quatrain {
namespace {

TEST(Progress, ElsewhereThanOnATerminalItPrintsALineEachTenthAndAtTheEnd) {
  testing::internal::CaptureStderr();
  {
    Progress progress("train", 1000, "rollouts");
    for (int i = 1; i <= 1000; ++i) progress.Update(i, "reward 0.81");
  }
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10) << text;
  EXPECT_TRUE(text.starts_with("train: 100/1000 rollouts  ETA ")) << text;
  EXPECT_NE(text.find("train: 1000/1000 rollouts  took "), std::string::npos) << text;
  EXPECT_TRUE(text.ends_with("reward 0.81\n")) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
}

TEST(Progress, NothingToDoIsNoDivisionByZero) {
  testing::internal::CaptureStderr();
  {
    Progress progress("convert", 0, "layers");
    progress.Update(0);
  }
  EXPECT_TRUE(testing::internal::GetCapturedStderr().starts_with("convert: 0/0 layers"));
}

TEST(Progress, OnATerminalItRedrawsOneLineCutToTheWidth) {
  int parent = -1, child = -1;
  winsize size = {};
  size.ws_col = 60;
  if (openpty(&parent, &child, nullptr, nullptr, &size) != 0) {
    GTEST_SKIP() << "no pseudo-terminal to be had: /dev/pts is not mounted here";
  }
  const int saved = dup(STDERR_FILENO);
  dup2(child, STDERR_FILENO);
  {
    Progress progress("eval", 4, "prompts");
    progress.Update(2);
    progress.Update(3, std::string(100, 'x'));
  }
  dup2(saved, STDERR_FILENO);
  close(saved);
  close(child);
  std::string text;
  std::array<char, 512> buffer;
  for (ssize_t count = 0; (count = read(parent, buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), static_cast<size_t>(count));
  }
  close(parent);
  EXPECT_TRUE(text.starts_with("\r\x1b[Keval [------------------------] 0/4 prompts  ETA -"))
      << text;
  const size_t last = text.rfind("\x1b[K");
  EXPECT_EQ(text.substr(last + 3, 43), "eval [##################------] 3/4 prompts");
  EXPECT_EQ(text.size() - (last + 3), 59u + 2u) << "59 columns and the terminal's \\r\\n: " << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
}

}  // namespace
}  // namespace quatrain
