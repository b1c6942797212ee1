#include "models/routing_record.h"

#include <gtest/gtest.h>

#include <numeric>

namespace quatrain {
namespace {

RoutedExperts Forward(int64_t tokens, int64_t layers, int64_t k, int32_t first_id) {
  RoutedExperts forward{tokens, layers, k, {}};
  forward.ids_TLK.resize(static_cast<size_t>(tokens * forward.ids_per_token()));
  std::iota(forward.ids_TLK.begin(), forward.ids_TLK.end(), first_id);
  return forward;
}

TEST(RoutingRecord, AnIdTakesAByteUpTo256ExpertsAndTwoAbove) {
  for (const int64_t num_experts : {256, 257, 65536}) {
    const int64_t bytes = num_experts == 256 ? 1 : 2;
    const RoutedExperts forward =
        Forward(3, 2, 4, static_cast<int32_t>(std::min<int64_t>(num_experts, 4096) - 24));
    RoutingRecord record;
    record.Append(forward, 0, 1, num_experts);
    record.Append(forward, 1, 2, num_experts);
    EXPECT_EQ(record.num_tokens, 3);
    EXPECT_EQ(record.size_bytes(), 3 * 2 * 4 * bytes) << num_experts;
    const RoutedExperts expanded = record.Expand();
    EXPECT_EQ(expanded.ids_TLK, forward.ids_TLK) << num_experts;
    EXPECT_EQ(expanded.num_moe_layers, 2);
    EXPECT_EQ(expanded.num_experts_per_tok, 4);
  }
}

TEST(RoutingRecord, RecordsJoinInOrder) {
  RoutingRecord a, b;
  a.Append(Forward(2, 1, 2, 10), 0, 2, 128);
  b.Append(Forward(1, 1, 2, 50), 0, 1, 128);
  a.Append(b);
  a.Append(RoutingRecord{});
  EXPECT_EQ(a.Expand().ids_TLK, (std::vector<int32_t>{10, 11, 12, 13, 50, 51}));
  a.Clear();
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(a.size_bytes(), 0);
}

TEST(CompareRouting, CountsSharedIdsInAnyOrderAndPairsWithoutAny) {
  // Two tokens, one layer, two experts: the same in another order; one of two.
  const RoutedExperts own{2, 1, 2, {3, 5, 1, 2}}, replayed{2, 1, 2, {5, 3, 2, 7}};
  RoutingOverlap overlap = CompareRouting(own, replayed);
  EXPECT_EQ(overlap.num_choices, 2);
  EXPECT_DOUBLE_EQ(overlap.shared(), 0.75);
  EXPECT_EQ(overlap.num_disjoint, 0);
  overlap.Add(CompareRouting({1, 1, 2, {0, 1}}, {1, 1, 2, {2, 3}}));
  EXPECT_DOUBLE_EQ(overlap.shared(), 0.5);
  EXPECT_DOUBLE_EQ(overlap.disjoint(), 1.0 / 3.0);
  EXPECT_EQ(RoutingOverlap{}.shared(), 1.0);
  EXPECT_EQ(RoutingOverlap{}.disjoint(), 0.0);
}

}  // namespace
}  // namespace quatrain
