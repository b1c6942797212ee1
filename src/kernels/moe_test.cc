#include "kernels/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "base/error.h"
#include "kernels/kernel_test.h"

namespace quatrain {
namespace {

struct Routes {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routes Route(ThreadPool& pool, const RouterConfig& config, const std::vector<float>& logits) {
  const auto tokens = std::ssize(logits) / config.num_experts;
  const auto size = static_cast<size_t>(tokens * config.num_experts_per_tok);
  Routes routes{std::vector<int32_t>(size), std::vector<float>(size)};
  RouterForward(pool, config, logits.data(), tokens, false, routes.ids.data(),
                routes.weights.data());
  return routes;
}

std::vector<float> Replay(ThreadPool& pool, const RouterConfig& config,
                          const std::vector<float>& logits, std::vector<int32_t> ids) {
  std::vector<float> weights(ids.size());
  const std::vector<int32_t> given = ids;
  RouterForward(pool, config, logits.data(), std::ssize(logits) / config.num_experts, true,
                ids.data(), weights.data());
  EXPECT_EQ(ids, given);
  return weights;
}

// Softmax of one token's logits over all experts, in double.
std::vector<double> Softmax(const float* logits_E, int64_t num_experts) {
  std::vector<double> p(static_cast<size_t>(num_experts));
  double sum = 0.0;
  for (size_t e = 0; e < p.size(); ++e) sum += p[e] = std::exp(static_cast<double>(logits_E[e]));
  for (double& each : p) each /= sum;
  return p;
}

TEST(Router, ChoosesTheLargestAndBreaksTiesByIndex) {
  ThreadPool pool(1);
  const RouterConfig config{.num_experts = 6, .num_experts_per_tok = 3};
  const Routes routes = Route(pool, config,
                              {1.0f, 5.0f, 2.0f, 5.0f, -1.0f, 2.0f,  //
                               0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f,   //
                               -3.0f, -2.0f, -1.0f, 0.0f, 1.0f, 2.0f});
  EXPECT_EQ(routes.ids, (std::vector<int32_t>{1, 3, 2, 0, 1, 2, 5, 4, 3}));
  for (size_t slot = 3; slot < 6; ++slot) EXPECT_EQ(routes.weights[slot], 1.0f / 3.0f);
}

TEST(Router, WeighsByTheSoftmaxOfTheChosenOrOfAll) {
  ThreadPool pool(2);
  const int64_t tokens = 300;
  for (const int64_t experts : {8, 60, 128}) {
    for (const int64_t k : {1, 2, 8}) {
      const std::vector<float> logits = RandomFloats(tokens * experts, 1, 2.0f);
      for (const bool norm : {true, false}) {
        const RouterConfig config{
            .num_experts = experts, .num_experts_per_tok = k, .norm_topk_prob = norm};
        const Routes routes = Route(pool, config, logits);
        for (int64_t t = 0; t < tokens; ++t) {
          const float* row = logits.data() + t * experts;
          std::vector<int32_t> order(static_cast<size_t>(experts));
          std::iota(order.begin(), order.end(), 0);
          std::stable_sort(order.begin(), order.end(),
                           [&](int32_t a, int32_t b) { return row[a] > row[b]; });
          const std::vector<double> p = Softmax(row, experts);
          double chosen = 0.0;
          for (size_t i = 0; i < static_cast<size_t>(k); ++i)
            chosen += p[static_cast<size_t>(order[i])];
          for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
            const auto at = static_cast<size_t>(t * k) + i;
            ASSERT_EQ(routes.ids[at], order[i]);
            const double expected = p[static_cast<size_t>(order[i])] / (norm ? chosen : 1.0);
            ASSERT_NEAR(routes.weights[at], expected, 1e-6 * expected);  // a few FP32 roundings
          }
        }
      }
    }
  }
}

TEST(Router, ReplayKeepsIdsAndGivesTheSameWeights) {
  ThreadPool pool(2);
  for (const bool norm : {true, false}) {
    const RouterConfig config{.num_experts = 32, .num_experts_per_tok = 4, .norm_topk_prob = norm};
    const std::vector<float> logits = RandomFloats(50 * 32, 2);
    const Routes routes = Route(pool, config, logits);
    EXPECT_EQ(Bits(Replay(pool, config, logits, routes.ids)), Bits(routes.weights));
    // Any slot order, and experts that were not the largest.
    const std::vector<float> weights =
        Replay(pool, config, {logits.begin(), logits.begin() + 32}, {31, 0, 7, 3});
    const std::vector<double> p = Softmax(logits.data(), 32);
    const double sum = norm ? p[31] + p[0] + p[7] + p[3] : 1.0;
    EXPECT_NEAR(weights[0], p[31] / sum, 1e-6);
    EXPECT_NEAR(weights[2], p[7] / sum, 1e-6);
  }
}

std::string RouterError(const std::vector<float>& logits, bool is_replay,
                        std::vector<int32_t> ids) {
  ThreadPool pool(2);
  const RouterConfig config{.num_experts = 4, .num_experts_per_tok = 2};
  std::vector<float> weights(ids.size());
  try {
    RouterForward(pool, config, logits.data(), std::ssize(logits) / 4, is_replay, ids.data(),
                  weights.data());
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

TEST(Router, NamesTheTokenOfALogitThatIsNotFinite) {
  std::vector<float> logits = RandomFloats(40, 3);
  const std::vector<int32_t> ids(20, 1);
  EXPECT_EQ(RouterError(logits, false, ids), "");
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    logits[6 * 4 + 3] = bad;
    for (const bool is_replay : {false, true}) {
      EXPECT_NE(RouterError(logits, is_replay, ids).find("token 6, expert 3"), std::string::npos);
    }
  }
}

TEST(Router, RefusesReplayedIdsOutOfRange) {
  const std::vector<float> logits = RandomFloats(12, 4);
  EXPECT_EQ(RouterError(logits, true, {0, 1, 2, 3, 1, 0}), "");
  EXPECT_NE(RouterError(logits, true, {0, 1, 2, 4, 1, 0}).find("token 1, slot 1"),
            std::string::npos);
  EXPECT_NE(RouterError(logits, true, {0, 1, 2, 3, -1, 0}).find("token 2, slot 0"),
            std::string::npos);
}

TEST(RouterBackward, MatchesDifferences) {
  ThreadPool pool(2);
  const int64_t tokens = 5, experts = 24, k = 3;
  for (const bool norm : {true, false}) {
    const RouterConfig config{
        .num_experts = experts, .num_experts_per_tok = k, .norm_topk_prob = norm};
    const std::vector<float> logits = RandomFloats(tokens * experts, 5);
    const std::vector<float> dweights = RandomFloats(tokens * k, 6);
    const Routes routes = Route(pool, config, logits);
    std::vector<float> dlogits(logits.size());
    RouterBackward(pool, config, logits.data(), tokens, routes.ids.data(), dweights.data(),
                   dlogits.data());
    std::vector<double> z(logits.begin(), logits.end());
    const auto loss = [&](int64_t t) {
      double all = 0.0, chosen = 0.0, sum = 0.0;
      for (int64_t e = 0; e < experts; ++e)
        all += std::exp(z[static_cast<size_t>(t * experts + e)]);
      for (int64_t i = t * k; i < (t + 1) * k; ++i) {
        const auto at = static_cast<size_t>(i);
        const double e = std::exp(z[static_cast<size_t>(t * experts + routes.ids[at])]);
        chosen += e;
        sum += e * dweights[at];
      }
      return sum / (norm ? chosen : all);
    };
    std::vector<double> expected(logits.size());
    for (size_t i = 0; i < z.size(); ++i) {
      const double value = z[i];
      const auto token = static_cast<int64_t>(i) / experts;
      z[i] = value + 1e-5;
      const double above = loss(token);
      z[i] = value - 1e-5;
      expected[i] = (above - loss(token)) / 2e-5;
      z[i] = value;
    }
    EXPECT_LT(RelativeError(dlogits, expected), 1e-6);
    for (size_t e = 0; norm && e < static_cast<size_t>(experts); ++e) {
      const auto chosen =
          std::find(routes.ids.begin(), routes.ids.begin() + k, static_cast<int32_t>(e));
      if (chosen == routes.ids.begin() + k) {
        EXPECT_EQ(dlogits[e], 0.0f);
      }
    }
  }
}

TEST(PermuteByExpert, SortsByExpertThenTokenThenSlot) {
  const std::vector<int32_t> ids = {2, 0, /**/ 0, 2, /**/ 2, 4};
  const MoePermutation permutation = PermuteByExpert(ids, 5, 2);
  EXPECT_EQ(permutation.expert_begin, (std::vector<int64_t>{0, 2, 2, 5, 5, 6}));
  EXPECT_EQ(permutation.row_token, (std::vector<int32_t>{0, 1, 0, 1, 2, 2}));
  EXPECT_EQ(permutation.slot_row, (std::vector<int32_t>{2, 0, 1, 3, 4, 5}));
  EXPECT_EQ(PermuteByExpert({}, 5, 2).expert_begin, (std::vector<int64_t>(6, 0)));
}

TEST(PermuteByExpert, SlotsAndRowsAgreeForManyTokens) {
  const int64_t tokens = 1000, experts = 16, k = 3;
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens * k; ++i) {
    ids.push_back(static_cast<int32_t>(HashBits(7, static_cast<uint64_t>(i), 0) % experts));
  }
  const MoePermutation permutation = PermuteByExpert(ids, experts, k);
  for (int64_t i = 0; i < tokens * k; ++i) {
    const auto slot = static_cast<size_t>(i);
    const int32_t row = permutation.slot_row[slot];
    EXPECT_EQ(permutation.row_token[static_cast<size_t>(row)], i / k);
    EXPECT_GE(row, permutation.expert_begin[static_cast<size_t>(ids[slot])]);
    EXPECT_LT(row, permutation.expert_begin[static_cast<size_t>(ids[slot]) + 1]);
    for (size_t earlier = slot < 50 ? 0 : slot - 50; earlier < slot; ++earlier) {
      if (ids[earlier] == ids[slot]) {
        EXPECT_LT(permutation.slot_row[earlier], row);
      }
    }
  }
}

// A layer's worth of routed rows.
struct Routed {
  static constexpr int64_t kTokens = 500, kExperts = 8, kSlots = 2, kHidden = 40;
  Routed() {
    ThreadPool pool(1);
    const RouterConfig config{.num_experts = kExperts, .num_experts_per_tok = kSlots};
    Routes routes = Route(pool, config, RandomFloats(kTokens * kExperts, 8));
    weights = routes.weights;
    permutation = PermuteByExpert(routes.ids, kExperts, kSlots);
  }
  size_t Row(int64_t token, int64_t slot) const {
    return static_cast<size_t>(permutation.slot_row[static_cast<size_t>(token * kSlots + slot)]);
  }
  std::vector<float> weights;
  MoePermutation permutation;
};

template <class T>
class Moe : public testing::Test {
 protected:
  static constexpr int64_t kTokens = Routed::kTokens, kSlots = Routed::kSlots,
                           kHidden = Routed::kHidden, kRows = kTokens * kSlots;
  ThreadPool pool_{2};
  Routed routed_;
};
using ActivationTypes = testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(Moe, ActivationTypes);

TYPED_TEST(Moe, GatherTakesTheRowsOfTheTokens) {
  using T = TypeParam;
  const std::vector<T> x = RandomRounded<T>(this->kTokens * this->kHidden, 9);
  std::vector<T> rows(static_cast<size_t>(this->kRows * this->kHidden));
  GatherRows<T>(this->pool_, x.data(), this->routed_.permutation, this->kHidden, rows.data());
  for (int64_t i = 0; i < this->kRows * this->kHidden; ++i) {
    const int32_t token =
        this->routed_.permutation.row_token[static_cast<size_t>(i / this->kHidden)];
    ASSERT_EQ(ToFloat(rows[static_cast<size_t>(i)]),
              ToFloat(x[static_cast<size_t>(token * this->kHidden + i % this->kHidden)]));
  }
}

TYPED_TEST(Moe, CombineIsOneChainOverTheSlots) {
  using T = TypeParam;
  const std::vector<T> y = RandomRounded<T>(this->kRows * this->kHidden, 10);
  std::vector<T> expected;
  for (int64_t i = 0; i < this->kTokens * this->kHidden; ++i) {
    const int64_t token = i / this->kHidden;
    float sum = 0.0f;
    for (int64_t slot = 0; slot < this->kSlots; ++slot) {
      const float value =
          ToFloat(y[this->routed_.Row(token, slot) * 40 + static_cast<size_t>(i % 40)]);
      sum = std::fma(this->routed_.weights[static_cast<size_t>(token * 2 + slot)], value, sum);
    }
    expected.push_back(RoundTo<T>(sum));
  }
  ForEachInstructionSet([&] {
    std::vector<T> out(expected.size());
    CombineForward<T>(this->pool_, y.data(), this->routed_.weights.data(),
                      this->routed_.permutation, this->kHidden, out.data());
    EXPECT_EQ(Bits(out), Bits(expected));
  });
}

TYPED_TEST(Moe, CombineBackwardIsThePlainFormulaBitForBit) {
  using T = TypeParam;
  const std::vector<T> y = RandomRounded<T>(this->kRows * this->kHidden, 11);
  const std::vector<float> dout = RandomFloats(this->kTokens * this->kHidden, 12);
  std::vector<float> dy_expected(y.size()), dweights_expected;
  for (int64_t i = 0; i < this->kRows; ++i) {
    const size_t row = this->routed_.Row(i / 2, i % 2);
    const float* dout_D = dout.data() + i / 2 * this->kHidden;
    dweights_expected.push_back(Dot16(dout_D, y.data() + row * 40, this->kHidden));
    for (size_t d = 0; d < 40; ++d) {
      dy_expected[row * 40 + d] = this->routed_.weights[static_cast<size_t>(i)] * dout_D[d];
    }
  }
  ForEachInstructionSet([&] {
    std::vector<float> dy(y.size()), dweights(dweights_expected.size());
    CombineBackward<T>(this->pool_,
                       {.y = y.data(),
                        .weights = this->routed_.weights.data(),
                        .dout = dout.data(),
                        .dy = dy.data(),
                        .dweights = dweights.data()},
                       this->routed_.permutation, this->kHidden);
    EXPECT_EQ(Bits(dy), Bits(dy_expected));
    EXPECT_EQ(Bits(dweights), Bits(dweights_expected));
  });
}

TEST(GatherRowsBackward, AddsTheSlotsInOrder) {
  ThreadPool pool(2);
  const Routed routed;
  const std::vector<float> drows = RandomFloats(Routed::kTokens * 2 * 40, 13);
  std::vector<float> dx = RandomFloats(Routed::kTokens * 40, 14);
  std::vector<float> expected = dx;
  for (size_t i = 0; i < dx.size(); ++i) {
    const auto token = static_cast<int64_t>(i / 40);
    expected[i] +=
        drows[routed.Row(token, 0) * 40 + i % 40] + drows[routed.Row(token, 1) * 40 + i % 40];
  }
  GatherRowsBackward(pool, drows.data(), routed.permutation, 40, dx.data());
  EXPECT_EQ(Bits(dx), Bits(expected));
}

TEST(Router, GivesTheSameBitsForAnyThreadCountAndInstructionSet) {
  const RouterConfig config{.num_experts = 60, .num_experts_per_tok = 6, .norm_topk_prob = false};
  const std::vector<float> logits = RandomFloats(2000 * 60, 15, 3.0f);
  ThreadPool one(1), four(4);
  const Routes expected = Route(one, config, logits);
  ForEachInstructionSet([&] {
    const Routes routes = Route(four, config, logits);
    EXPECT_EQ(routes.ids, expected.ids);
    EXPECT_EQ(Bits(routes.weights), Bits(expected.weights));
  });
}

}  // namespace
}  // namespace quatrain
