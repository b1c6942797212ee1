#include "report/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

// A reader of its own: records, then protocol buffer fields by number.
template <class Integer>
Integer Take(std::string_view& bytes) {
  Integer value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  bytes.remove_prefix(sizeof(value));
  return value;
}

std::vector<std::string> Records(std::string_view file) {
  const auto unmasked = [](uint32_t masked) {
    const uint32_t rotated = masked - 0xA282EAD8u;
    return (rotated >> 17) | (rotated << 15);
  };
  std::vector<std::string> events;
  while (!file.empty()) {
    const std::string length_bytes(file.substr(0, 8));
    const auto length = Take<uint64_t>(file);
    EXPECT_EQ(unmasked(Take<uint32_t>(file)), Crc32c(length_bytes));
    events.emplace_back(file.substr(0, length));
    file.remove_prefix(length);
    EXPECT_EQ(unmasked(Take<uint32_t>(file)), Crc32c(events.back()));
  }
  return events;
}

uint64_t TakeVarint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = Take<uint8_t>(bytes);
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
}

// Field number -> contents, in order; numbers as their bytes.
std::multimap<uint64_t, std::string> Fields(std::string_view bytes) {
  std::multimap<uint64_t, std::string> fields;
  while (!bytes.empty()) {
    const uint64_t key = TakeVarint(bytes);
    size_t length = (key & 7) == 1 ? 8 : 4;
    if ((key & 7) == 0) {
      fields.emplace(key >> 3, std::to_string(TakeVarint(bytes)));
      continue;
    }
    if ((key & 7) == 2) length = TakeVarint(bytes);
    fields.emplace(key >> 3, std::string(bytes.substr(0, length)));
    bytes.remove_prefix(length);
  }
  return fields;
}

std::map<std::string, float> Scalars(std::string_view event) {
  std::map<std::string, float> scalars;
  for (const auto& [number, value] : Fields(Fields(event).find(5)->second)) {
    const auto parts = Fields(value);
    std::string_view bytes = parts.find(2)->second;
    scalars[parts.find(1)->second] = Take<float>(bytes);
  }
  return scalars;
}

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
  const std::vector<std::string> events = Records(ReadFile(writer.path()));
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(Fields(events[0]).find(3)->second, "brain.Event:2");
  EXPECT_EQ(Fields(events[1]).find(2)->second, "0");
  EXPECT_EQ(Scalars(events[1]), (std::map<std::string, float>{{"eval/arithmetic", 0.5f}}));
  EXPECT_EQ(Fields(events[2]).find(2)->second, "200");
  EXPECT_EQ(Scalars(events[2]),
            (std::map<std::string, float>{{"step", 200.0f}, {"train/lr", 3e-5f}}));
}

TEST(TensorBoardWriter, AResumedRunTellsWhereItBegins) {
  const TensorBoardWriter writer(Folder("resumed"), 7);
  const std::vector<std::string> events = Records(ReadFile(writer.path()));
  ASSERT_EQ(events.size(), 2u);
  const auto start = Fields(events[1]);
  EXPECT_EQ(start.find(2)->second, "7");
  EXPECT_EQ(Fields(start.find(7)->second).find(1)->second, "1");  // SessionLog.START
}

TEST(TensorBoardWriter, AFolderThatCannotBeMadeIsNamed) {
  EXPECT_THROW(TensorBoardWriter("/proc/none", std::nullopt), Error);
}

}  // namespace
}  // namespace quatrain
