#include "base/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

namespace quatrain {
namespace {

// The finaliser's first outputs for the state 0 (the generator of Steele et al., OOPSLA 2014,
// seeded with 0, is known to start with 0xE220A8397B1DCDAF); HashBits(0, 0, 0) applies it three
// times.
TEST(HashBits, IsThreeRoundsOfSplitmix64) {
  const auto finalize = [](uint64_t z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  };
  ASSERT_EQ(finalize(0), 0xE220A8397B1DCDAFull);
  EXPECT_EQ(HashBits(0, 0, 0), finalize(finalize(finalize(0))));
  EXPECT_EQ(HashBits(1, 2, 3), finalize(finalize(finalize(1) ^ 2) ^ 3));
}

TEST(HashBits, DiffersInEveryPartOfTheKey) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 16; ++seed) {
    for (uint64_t stream = 0; stream < 16; ++stream) {
      for (uint64_t counter = 0; counter < 16; ++counter) {
        seen.insert(HashBits(seed, stream, counter));
      }
    }
  }
  EXPECT_EQ(seen.size(), 16u * 16u * 16u);
}

// Flipping one bit of the counter flips half of the 64 bits on average; the mean of 64 * 256 trials
// has a standard deviation of 4 / 128, so 0.25 is eight of them.
TEST(HashBits, OneBitOfTheCounterChangesHalfOfTheBits) {
  double num_changed = 0;
  for (int bit = 0; bit < 64; ++bit) {
    for (uint64_t counter = 0; counter < 256; ++counter) {
      const uint64_t other = counter ^ (uint64_t{1} << bit);
      num_changed += std::popcount(HashBits(7, 1, counter) ^ HashBits(7, 1, other));
    }
  }
  EXPECT_NEAR(num_changed / (64 * 256), 32.0, 0.25);
}

// 64 cells of 1024 expected draws each: chi-square with 63 degrees of freedom exceeds 120 with
// probability 2e-5.
TEST(UniformDouble, IsEvenOverTheUnitInterval) {
  std::vector<int> counts(64);
  for (uint64_t i = 0; i < 64 * 1024; ++i) {
    const double u = UniformDouble(3, 5, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<size_t>(u * 64)];
  }
  double chi_square = 0;
  for (const int count : counts) chi_square += std::pow(count - 1024.0, 2) / 1024.0;
  EXPECT_LT(chi_square, 120.0);
}

TEST(Permutation, HoldsEveryIndexOnce) {
  for (const int64_t n : {0, 1, 2, 7, 1000}) {
    std::vector<int64_t> order = Permutation(n, 11, 0);
    ASSERT_EQ(order.size(), static_cast<size_t>(n));
    std::sort(order.begin(), order.end());
    std::vector<int64_t> expected(static_cast<size_t>(n));
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(order, expected);
  }
}

TEST(Permutation, DependsOnSeedAndStreamAlone) {
  EXPECT_EQ(Permutation(100, 1, 2), Permutation(100, 1, 2));
  EXPECT_NE(Permutation(100, 1, 2), Permutation(100, 2, 2));
  EXPECT_NE(Permutation(100, 1, 2), Permutation(100, 1, 3));
}

// Each of the 6 orders of 3 is expected 1000 times; 150 is more than five standard deviations.
TEST(Permutation, GivesEveryOrderItsShare) {
  std::map<std::vector<int64_t>, int> counts;
  for (uint64_t seed = 0; seed < 6000; ++seed) ++counts[Permutation(3, seed, 0)];
  ASSERT_EQ(counts.size(), 6u);
  for (const auto& [order, count] : counts) EXPECT_NEAR(count, 1000, 150);
}

}  // namespace
}  // namespace quatrain
