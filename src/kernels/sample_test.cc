#include "kernels/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <string>

#include "base/error.h"
#include "base/random.h"
#include "kernels/kernel_test.h"
#include "kernels/logprob.h"

namespace quatrain {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

Drawn Sample(ThreadPool& pool, const std::vector<float>& logits,
             const std::vector<SamplingRow>& rows) {
  Drawn drawn{std::vector<int32_t>(rows.size()), std::vector<float>(rows.size())};
  SampleRows(pool, logits.data(), rows, std::ssize(logits) / std::ssize(rows), drawn.tokens.data(),
             drawn.logprobs.data());
  return drawn;
}

// Tokens by a full sort, kept as vLLM and Hugging Face do: top-k, then top-p of what is left.
std::set<int32_t> KeptSet(const std::vector<float>& logits_V, const SamplingRow& row) {
  std::vector<int32_t> order(logits_V.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits_V[static_cast<size_t>(a)] > logits_V[static_cast<size_t>(b)];
  });
  if (row.top_k > 0 && row.top_k < std::ssize(order)) {
    order.resize(static_cast<size_t>(row.top_k));
  }
  const float largest = logits_V[static_cast<size_t>(order[0])];
  const auto mass = [&](int32_t v) {
    return std::exp(static_cast<double>(logits_V[static_cast<size_t>(v)] - largest) /
                    row.temperature);
  };
  double total = 0.0;
  for (const int32_t v : order) total += mass(v);
  std::set<int32_t> kept;
  double reached = 0.0;
  for (const int32_t v : order) {
    kept.insert(v);
    reached += mass(v);
    if (row.top_p < 1.0f && reached >= row.top_p * total) break;
  }
  return kept;
}

// The token by walking the whole vocabulary in double.
int32_t PlainDraw(const std::vector<float>& logits_V, const SamplingRow& row) {
  const std::set<int32_t> kept = KeptSet(logits_V, row);
  const float largest = *std::max_element(logits_V.begin(), logits_V.end());
  double total = 0.0;
  const auto mass = [&](int32_t v) {
    return std::exp(static_cast<double>(logits_V[static_cast<size_t>(v)] - largest) /
                    row.temperature);
  };
  for (const int32_t v : kept) total += mass(v);
  const double threshold = total * UniformDouble(row.seed, static_cast<uint64_t>(row.position), 0);
  double reached = 0.0;
  for (const int32_t v : kept) {
    reached += mass(v);
    if (reached > threshold) return v;
  }
  return *kept.rbegin();
}

std::vector<float> RowOf(const std::vector<float>& logits, size_t r, size_t vocab_size) {
  const auto begin = logits.begin() + static_cast<int64_t>(r * vocab_size);
  return {begin, begin + static_cast<int64_t>(vocab_size)};
}

TEST(SampleRows, DrawsTheTokensOfThePlainAlgorithm) {
  ThreadPool pool(2);
  const std::vector<SamplingRow> kinds = {
      {.temperature = 1.0f},
      {.temperature = 0.8f},
      {.temperature = 1.0f, .top_k = 1},
      {.temperature = 1.5f, .top_k = 50},
      {.temperature = 1.0f, .top_p = 0.9f},
      {.temperature = 0.7f, .top_p = 0.5f},
      {.temperature = 1.0f, .top_p = 0.95f, .top_k = 20},
      {.temperature = 1.0f, .top_p = 0.0f},
      {.temperature = 1.0f, .top_p = 1.0f, .top_k = 1 << 30},
      {.temperature = 2.0f, .top_p = 0.999f},
  };
  for (const size_t vocab_size : {1, 5, 64, 2048, 5003}) {
    std::vector<SamplingRow> rows;
    for (uint64_t i = 0; i < 120; ++i) {
      rows.push_back(kinds[i % kinds.size()]);
      rows.back().seed = i * 31;
      rows.back().position = static_cast<int64_t>(i % 7);
    }
    const std::vector<float> logits =
        RandomFloats(std::ssize(rows) * static_cast<int64_t>(vocab_size), vocab_size, 2.5f);
    const Drawn drawn = Sample(pool, logits, rows);
    int64_t differences = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      const std::vector<float> row = RowOf(logits, r, vocab_size);
      EXPECT_TRUE(KeptSet(row, rows[r]).contains(drawn.tokens[r])) << r;
      differences += drawn.tokens[r] != PlainDraw(row, rows[r]);
    }
    // A draw within 1e-6 of a boundary may fall to the neighbour; none of these does.
    EXPECT_EQ(differences, 0) << vocab_size;
  }
}

TEST(SampleRows, ReportsTheLogprobOfLogprobForwardBitForBit) {
  ThreadPool pool(2);
  const int64_t vocab_size = 2048;
  std::vector<SamplingRow> rows;
  std::vector<float> inv_temperature;
  for (uint64_t i = 0; i < 60; ++i) {
    const float temperature = std::vector<float>{0.0f, 1.0f, 0.8f, 1.7f}[i % 4];
    rows.push_back({.temperature = temperature, .top_p = 0.9f, .top_k = 40, .seed = i});
    inv_temperature.push_back(temperature == 0.0f ? 1.0f : 1.0f / temperature);
  }
  const std::vector<float> logits = RandomFloats(60 * vocab_size, 3, 3.0f);
  const Drawn drawn = Sample(pool, logits, rows);
  std::vector<float> logprobs(rows.size()), entropy(rows.size());
  LogprobForward(pool, logits.data(), drawn.tokens, inv_temperature, vocab_size, logprobs.data(),
                 entropy.data());
  EXPECT_EQ(Bits(drawn.logprobs), Bits(logprobs));
}

TEST(SampleRows, IsGreedyAtTemperatureZero) {
  ThreadPool pool(2);
  std::vector<float> logits = RandomFloats(8 * 300, 4);
  logits[40] = logits[20] = 100.0f;
  std::vector<SamplingRow> rows(8, SamplingRow{.temperature = 0.0f, .top_p = 0.1f, .top_k = 3});
  for (uint64_t r = 0; r < 8; ++r) rows[r].seed = r;
  const Drawn drawn = Sample(pool, logits, rows);
  std::vector<int32_t> expected(8);
  ArgmaxRows(pool, logits.data(), 8, 300, expected.data());
  EXPECT_EQ(drawn.tokens, expected);
  EXPECT_EQ(drawn.tokens[0], 20);
}

TEST(SampleRows, KeepsTheLowerIndexAmongTiesAtTheCut) {
  ThreadPool pool(1);
  const std::vector<float> logits_V = {1.0f, 2.0f, 1.0f, 1.0f, 0.0f, 1.0f};
  std::set<int32_t> by_top_k, by_top_p;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    by_top_k.insert(Sample(pool, logits_V, {{.top_k = 3, .seed = seed}}).tokens[0]);
    // e / (e + 4 + 1/e) = 0.38; two of the ties are needed for 0.6.
    by_top_p.insert(Sample(pool, logits_V, {{.top_p = 0.6f, .seed = seed}}).tokens[0]);
  }
  EXPECT_EQ(by_top_k, (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(by_top_p, (std::set<int32_t>{0, 1, 2}));
}

TEST(SampleRows, KeepsTopKExactWhereProbabilitiesUnderflow) {
  ThreadPool pool(1);
  // Everything but token 0 has an exponential of 0; the cut must still be by logit.
  const std::vector<float> logits_V = {0.0f, -300.0f, -200.0f, -400.0f};
  for (uint64_t seed = 0; seed < 20; ++seed) {
    EXPECT_EQ(Sample(pool, logits_V, {{.top_k = 2, .seed = seed}}).tokens[0], 0);
    EXPECT_EQ(Sample(pool, logits_V, {{.top_p = 0.99f, .seed = seed}}).tokens[0], 0);
  }
}

TEST(SampleRows, NeverDrawsAForbiddenToken) {
  ThreadPool pool(2);
  std::vector<float> logits_V(200, -kInf);
  logits_V[63] = logits_V[64] = logits_V[130] = 0.5f;
  for (const SamplingRow& kind : {SamplingRow{}, SamplingRow{.top_k = 100},
                                  SamplingRow{.top_p = 0.99f}, SamplingRow{.top_k = 3}}) {
    std::set<int32_t> seen;
    for (uint64_t seed = 0; seed < 100; ++seed) {
      SamplingRow row = kind;
      row.seed = seed;
      seen.insert(Sample(pool, logits_V, {row}).tokens[0]);
    }
    EXPECT_EQ(seen, (std::set<int32_t>{63, 64, 130}));
  }
}

TEST(SampleRows, FollowsTheDistribution) {
  ThreadPool pool(2);
  const int64_t num_draws = 20000, vocab_size = 100;
  const std::vector<float> logits_V = RandomFloats(vocab_size, 5, 1.5f);
  std::vector<float> logits;
  std::vector<SamplingRow> rows;
  for (int64_t i = 0; i < num_draws; ++i) {
    logits.insert(logits.end(), logits_V.begin(), logits_V.end());
    rows.push_back({.temperature = 1.3f, .top_p = 0.9f, .top_k = 60, .seed = 42, .position = i});
  }
  const Drawn drawn = Sample(pool, logits, rows);
  std::vector<int64_t> counts(static_cast<size_t>(vocab_size));
  for (const int32_t token : drawn.tokens) ++counts[static_cast<size_t>(token)];
  const std::set<int32_t> kept = KeptSet(logits_V, rows[0]);
  double total = 0.0;
  for (const int32_t v : kept) total += std::exp(logits_V[static_cast<size_t>(v)] / 1.3);
  double chi_square = 0.0;
  int64_t seen = 0;
  for (const int32_t v : kept) {
    const double expected =
        static_cast<double>(num_draws) * std::exp(logits_V[static_cast<size_t>(v)] / 1.3) / total;
    const auto count = static_cast<double>(counts[static_cast<size_t>(v)]);
    chi_square += (count - expected) * (count - expected) / expected;
    seen += counts[static_cast<size_t>(v)];
  }
  EXPECT_EQ(seen, num_draws);
  // Chi-square with n - 1 degrees of freedom: mean n - 1, deviation sqrt(2 (n - 1)).
  const auto freedom = static_cast<double>(kept.size() - 1);
  EXPECT_NEAR(chi_square, freedom, 4.0 * std::sqrt(2.0 * freedom));
}

TEST(SampleRows, DependsOnSeedAndPositionAlone) {
  const size_t vocab_size = 2048;
  const int64_t num_rows = 40;
  const std::vector<float> logits = RandomFloats(num_rows * 2048, 6, 2.0f);
  std::vector<SamplingRow> rows;
  for (uint64_t i = 0; i < static_cast<uint64_t>(num_rows); ++i) {
    rows.push_back({.temperature = 1.0f,
                    .top_p = i % 2 == 0 ? 1.0f : 0.9f,
                    .top_k = i % 3 == 0 ? 30 : 0,
                    .seed = i / 2,
                    .position = static_cast<int64_t>(i)});
  }
  ThreadPool one(1), four(4);
  const Drawn expected = Sample(one, logits, rows);
  for (size_t r = 0; r < rows.size(); ++r) {
    const Drawn alone = Sample(one, RowOf(logits, r, vocab_size), {rows[r]});
    EXPECT_EQ(alone.tokens[0], expected.tokens[r]);
    EXPECT_EQ(alone.logprobs[0], expected.logprobs[r]);
  }
  ForEachInstructionSet([&] {
    const Drawn drawn = Sample(four, logits, rows);
    EXPECT_EQ(drawn.tokens, expected.tokens);
    EXPECT_EQ(Bits(drawn.logprobs), Bits(expected.logprobs));
  });
}

TEST(SampleRows, CutsALargeVocabularyExactly) {
  ThreadPool pool(2);
  const size_t vocab_size = 151936;
  for (const float scale : {0.0f, 0.01f, 2.0f}) {  // flat rows fill one bucket
    const std::vector<float> logits = RandomFloats(static_cast<int64_t>(vocab_size), 7, scale);
    for (const SamplingRow& row : {SamplingRow{.seed = 1}, SamplingRow{.top_k = 1000, .seed = 2},
                                   SamplingRow{.top_p = 0.8f, .seed = 3},
                                   SamplingRow{.top_p = 0.5f, .top_k = 5000, .seed = 4}}) {
      EXPECT_EQ(Sample(pool, logits, {row}).tokens[0], PlainDraw(logits, row)) << row.seed;
    }
  }
}

std::string SampleError(const std::vector<float>& logits, float temperature) {
  ThreadPool pool(2);
  try {
    Sample(pool, logits, std::vector<SamplingRow>(5, SamplingRow{.temperature = temperature}));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

TEST(SampleRows, NamesTheRowThatCannotBeSampled) {
  for (const float temperature : {0.0f, 1.0f}) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
      std::vector<float> logits = RandomFloats(5 * 33, 8);
      EXPECT_EQ(SampleError(logits, temperature), "");
      logits[3 * 33 + 32] = bad;
      const std::string message = SampleError(logits, temperature);
      EXPECT_NE(message.find("row 3"), std::string::npos) << message;
      EXPECT_NE(message.find("token 32"), std::string::npos) << message;
    }
    std::vector<float> logits = RandomFloats(5 * 33, 9);
    std::fill(logits.begin() + 33, logits.begin() + 66, -kInf);
    const std::string message = SampleError(logits, temperature);
    EXPECT_NE(message.find("row 1"), std::string::npos) << message;
    EXPECT_NE(message.find("no logit is finite"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace quatrain
