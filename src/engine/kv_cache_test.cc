#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <set>

namespace quatrain {
namespace {

ModelConfig SmallConfig() {
  ModelConfig config;
  config.num_hidden_layers = 2;
  config.num_key_value_heads = 3;
  config.head_dim = 8;
  return config;
}

TEST(KvCache, ABlockBelongsToOneTableOrToTheFreeList) {
  KvCache cache(SmallConfig(), at::kBFloat16, 5, 4);
  EXPECT_EQ(cache.num_free_blocks(), 5);
  std::vector<int32_t> a, b;
  ASSERT_TRUE(cache.TryReserve(9, &a));  // 3 blocks
  ASSERT_TRUE(cache.TryReserve(4, &b));  // exactly 1
  std::set<int32_t> blocks(a.begin(), a.end());
  blocks.insert(b.begin(), b.end());
  EXPECT_EQ(blocks.size(), 4u);
  EXPECT_EQ(cache.num_free_blocks(), 1);
  cache.Release(&a);
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(cache.num_free_blocks(), 4);
}

TEST(KvCache, GrowingKeepsTheBlocksOfATable) {
  KvCache cache(SmallConfig(), at::kBFloat16, 4, 4);
  std::vector<int32_t> table;
  ASSERT_TRUE(cache.TryReserve(3, &table));
  const std::vector<int32_t> first = table;
  ASSERT_TRUE(cache.TryReserve(4, &table));
  EXPECT_EQ(table, first) << "the block has room for a fourth token";
  ASSERT_TRUE(cache.TryReserve(5, &table));
  ASSERT_EQ(table.size(), 2u);
  EXPECT_EQ(table[0], first[0]);
  EXPECT_TRUE(cache.TryReserve(1, &table)) << "never shrinks";
  EXPECT_EQ(table.size(), 2u);
}

TEST(KvCache, AReservationThatDoesNotFitTakesNothing) {
  KvCache cache(SmallConfig(), at::kBFloat16, 3, 4);
  std::vector<int32_t> a, b;
  ASSERT_TRUE(cache.TryReserve(5, &a));
  EXPECT_FALSE(cache.TryReserve(8, &b));
  EXPECT_TRUE(b.empty());
  EXPECT_EQ(cache.num_free_blocks(), 1);
  EXPECT_FALSE(cache.TryReserve(17, &a));
  EXPECT_EQ(a.size(), 2u);
  EXPECT_TRUE(cache.TryReserve(12, &a)) << "all that is left";
}

TEST(KvCache, RowsFollowTheTable) {
  const KvCache cache(SmallConfig(), at::kBFloat16, 8, 4);
  const std::vector<int32_t> table = {6, 2};
  EXPECT_EQ(cache.RowOf(table, 0), 24);
  EXPECT_EQ(cache.RowOf(table, 3), 27);
  EXPECT_EQ(cache.RowOf(table, 4), 8);
}

TEST(KvCache, SizesAreThoseOfTheTensors) {
  const KvCache cache(SmallConfig(), at::kFloat, 5, 4);
  EXPECT_EQ(KvCache::BytesPerToken(SmallConfig(), at::kFloat), 2 * 2 * 3 * 8 * 4);
  EXPECT_EQ(cache.size_bytes(), 5 * 4 * KvCache::BytesPerToken(SmallConfig(), at::kFloat));
  EXPECT_EQ(KvCache::BytesPerToken(SmallConfig(), at::kBFloat16), 2 * 2 * 3 * 8 * 2);
}

}  // namespace
}  // namespace quatrain
