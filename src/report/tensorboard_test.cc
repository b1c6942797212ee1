#include "report/tensorboard.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "report/tensorboard_test_support.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

fs::path Folder(const std::string& name) {
  const fs::path folder = fs::path(testing::TempDir()) / "tensorboard_test" / name;
  fs::remove_all(folder);
  return folder;
}

TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
}

// Bytes that TensorFlow's own classes write for this event.
TEST(ScalarEvent, IsTheProtocolBuffer) {
  const std::string bytes =
      EncodeScalarEvent({.wall_time = 1.5, .step = 300, .scalars = {{"a/b", 0.25f}}});
  const std::string expected(
      "\x09\x00\x00\x00\x00\x00\x00\xF8\x3F\x10\xAC\x02\x2A\x0C\x0A\x0A\x0A\x03"
      "a/b\x15\x00\x00\x80\x3E",
      26);
  EXPECT_EQ(bytes, expected);
}

TEST(TensorBoardWriter, WritesEveryNumberOfARowAtItsRollout) {
  TensorBoardWriter writer(Folder("run"), std::nullopt);
  writer.Append({{"rollout", 0}, {"eval/arithmetic", 0.5}});
  writer.Append({{"rollout", 200}, {"step", 200}, {"train/lr", 3e-5}, {"text", "x"}, {"no", {}}});
  EXPECT_TRUE(writer.path().filename().string().starts_with("events.out.tfevents."));
  const std::vector<std::string> events = EventRecords(ReadFile(writer.path()));
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(ProtoFields(events[0]).find(3)->second, "brain.Event:2");
  EXPECT_EQ(ProtoFields(events[1]).find(2)->second, "0");
  EXPECT_EQ(EventScalars(events[1]), (std::map<std::string, float>{{"eval/arithmetic", 0.5f}}));
  EXPECT_EQ(ProtoFields(events[2]).find(2)->second, "200");
  EXPECT_EQ(EventScalars(events[2]),
            (std::map<std::string, float>{{"step", 200.0f}, {"train/lr", 3e-5f}}));
}

TEST(TensorBoardWriter, AResumedRunTellsWhereItBegins) {
  const TensorBoardWriter writer(Folder("resumed"), 7);
  const std::vector<std::string> events = EventRecords(ReadFile(writer.path()));
  ASSERT_EQ(events.size(), 2u);
  const auto start = ProtoFields(events[1]);
  EXPECT_EQ(start.find(2)->second, "7");
  EXPECT_EQ(ProtoFields(start.find(7)->second).find(1)->second, "1");  // SessionLog.START
}

TEST(TensorBoardWriter, AFolderThatCannotBeMadeIsNamed) {
  EXPECT_THROW(TensorBoardWriter("/proc/none", std::nullopt), Error);
}

}  // namespace
}  // namespace quatrain
