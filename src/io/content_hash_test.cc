#include "io/content_hash.h"

#include <gtest/gtest.h>

#include <array>

namespace quatrain {
namespace {

TEST(ContentHash, IsXxh3) {
  // The documented value of the empty input (xxHash's own test suite).
  EXPECT_EQ(ContentHash({}), 0x2D06800538D394C2u);
}

TEST(ContentHash, EveryByteCounts) {
  std::array<std::byte, 300> bytes = {};
  const uint64_t before = ContentHash(bytes);
  for (std::byte& byte : bytes) {
    byte = std::byte{1};
    EXPECT_NE(ContentHash(bytes), before);
    byte = std::byte{0};
  }
}

}  // namespace
}  // namespace quatrain
