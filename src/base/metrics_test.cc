#include "base/metrics.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

std::filesystem::path FreshPath(const std::string& name) {
  const auto path = std::filesystem::path(testing::TempDir()) / name;
  std::filesystem::remove_all(path);
  return path;
}

TEST(MetricsWriter, AppendsOneObjectALineAndGoesOnAfterReopening) {
  const auto path = FreshPath("metrics_append.jsonl");
  {
    MetricsWriter writer(path);
    writer.Append({{"step", 0}, {"reward", 0.5}});
    EXPECT_EQ(ReadFile(path), "{\"step\":0,\"reward\":0.5}\n") << "a row is flushed at once";
  }
  MetricsWriter(path).Append({{"step", 1}});
  EXPECT_EQ(ReadFile(path), "{\"step\":0,\"reward\":0.5}\n{\"step\":1}\n");
}

TEST(MetricsWriter, CutsAHalfWrittenLastLine) {
  const auto path = FreshPath("metrics_cut.jsonl");
  WriteFileAtomic(path, "{\"step\":0}\n{\"step\":1,\"rew");
  MetricsWriter(path).Append({{"step", 1}});
  EXPECT_EQ(ReadFile(path), "{\"step\":0}\n{\"step\":1}\n");
  WriteFileAtomic(path, "{\"st");
  MetricsWriter(path).Append({{"step", 0}});
  EXPECT_EQ(ReadFile(path), "{\"step\":0}\n");
}

TEST(MetricsWriter, AFullDiskIsAnError) {
  MetricsWriter writer("/dev/full");
  try {
    writer.Append({{"step", 0}});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(
        std::string(error.what()).find("/dev/full: cannot write a metrics row: the disk is full"),
        std::string::npos)
        << error.what();
  }
}

TEST(MetricsWriter, AMissingFolderIsAnErrorThatNamesTheFile) {
  EXPECT_THROW(MetricsWriter(FreshPath("no_such_folder") / "metrics.jsonl"), Error);
}

TEST(Timer, CountsUpAndRestarts) {
  Timer timer;
  const double first = timer.seconds();
  EXPECT_GE(first, 0.0);
  EXPECT_GE(timer.seconds(), first);
  timer.Restart();
  EXPECT_GE(timer.seconds(), 0.0);
}

}  // namespace
}  // namespace quatrain
