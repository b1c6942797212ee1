#include "base/resources.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "base/error.h"

namespace quatrain {
namespace {

constexpr uint64_t kTooMuch = std::numeric_limits<uint64_t>::max() / 2;

TEST(Resources, SizesReadInTheUnitThatFits) {
  EXPECT_EQ(SizeText(0), "0.0 MB");
  EXPECT_EQ(SizeText(31'040'000), "31.0 MB");
  EXPECT_EQ(SizeText(1'250'000'000), "1.25 GB");
}

TEST(Resources, MemoryOfThisProcessFollowsWhatItTouches) {
  const ProcessMemory before = ReadProcessMemory();
  EXPECT_GE(before.peak_bytes, before.resident_bytes);
  constexpr size_t kSize = 64'000'000;
  const std::string block(kSize, 'x');
  const ProcessMemory during = ReadProcessMemory();
  EXPECT_GE(during.resident_bytes, before.resident_bytes + kSize * 9 / 10);
  EXPECT_GE(during.peak_bytes, during.resident_bytes);
  EXPECT_EQ(block[kSize - 1], 'x');
}

TEST(Resources, WhatFitsPasses) {
  RequireMemory("work", 1, "");
  RequireDisk(testing::TempDir(), 1, "");
}

TEST(Resources, WhatDoesNotFitNamesTheJobAndWhatToDo) {
  try {
    RequireMemory("train", kTooMuch, "Take a larger machine.");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResource);
    EXPECT_NE(std::string(error.what()).find("not enough memory to train"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("Take a larger machine."), std::string::npos);
  }
  try {
    RequireDisk("/no/such/folder", kTooMuch, "Free some.");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResource);
    EXPECT_NE(std::string(error.what()).find("/no/such/folder"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("the disk lacks"), std::string::npos);
  }
}

}  // namespace
}  // namespace quatrain
