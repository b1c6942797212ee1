#include "kernels/logprob.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/kernel_test.h"

namespace quatrain {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Rows {
  Rows(int64_t num_rows, int64_t vocab_size, uint64_t seed, float scale = 3.0f)
      : vocab_size(vocab_size), logits(RandomFloats(num_rows * vocab_size, seed, scale)) {
    for (int64_t r = 0; r < num_rows; ++r) {
      targets.push_back(static_cast<int32_t>(HashBits(seed, 1000, static_cast<uint64_t>(r)) %
                                             static_cast<uint64_t>(vocab_size)));
    }
  }
  const float* row(size_t r) const { return logits.data() + static_cast<int64_t>(r) * vocab_size; }
  int64_t vocab_size;
  std::vector<float> logits;
  std::vector<int32_t> targets;
};

struct Result {
  std::vector<float> logprobs, entropy;
};

Result Logprobs(ThreadPool& pool, const Rows& rows, const std::vector<float>& inv_temperature) {
  Result result{std::vector<float>(rows.targets.size()), std::vector<float>(rows.targets.size())};
  LogprobForward(pool, rows.logits.data(), rows.targets, inv_temperature, rows.vocab_size,
                 result.logprobs.data(), result.entropy.data());
  return result;
}

// log p of every token, in double.
std::vector<double> LogSoftmax(const float* logits_V, int64_t vocab_size, double inv_temperature) {
  double largest = -kInf, sum = 0.0;
  for (int64_t v = 0; v < vocab_size; ++v) {
    largest = std::max(largest, logits_V[v] * inv_temperature);
  }
  for (int64_t v = 0; v < vocab_size; ++v) sum += std::exp(logits_V[v] * inv_temperature - largest);
  std::vector<double> log_p;
  for (int64_t v = 0; v < vocab_size; ++v) {
    log_p.push_back(logits_V[v] * inv_temperature - largest - std::log(sum));
  }
  return log_p;
}

double Entropy(const std::vector<double>& log_p) {
  double entropy = 0.0;
  for (const double each : log_p) entropy -= each == -kInf ? 0.0 : std::exp(each) * each;
  return entropy;
}

TEST(LogprobForward, IsCloseToTheFormulaInDouble) {
  ThreadPool pool(2);
  for (const int64_t vocab_size : {1, 7, 16, 2048, 151936}) {
    const Rows rows(3, vocab_size, 1);
    // FP32 differences of numbers up to about 30, and sums of V / 16 terms.
    const double tolerance = vocab_size > 10000 ? 5e-5 : 1e-5;
    for (const float inv_temperature : {1.0f, 1.25f, 0.1f}) {
      const Result result = Logprobs(pool, rows, {inv_temperature});
      for (size_t r = 0; r < rows.targets.size(); ++r) {
        const std::vector<double> log_p = LogSoftmax(rows.row(r), vocab_size, inv_temperature);
        const double expected = log_p[static_cast<size_t>(rows.targets[r])];
        EXPECT_NEAR(result.logprobs[r], expected, tolerance) << vocab_size;
        EXPECT_NEAR(result.entropy[r], Entropy(log_p), 2 * tolerance) << vocab_size;
      }
    }
  }
}

TEST(LogprobForward, TakesATemperatureForEachRow) {
  ThreadPool pool(2);
  const Rows rows(4, 100, 2);
  const Result mixed = Logprobs(pool, rows, {1.0f, 2.0f, 0.5f, 1.0f});
  const Result ones = Logprobs(pool, rows, {1.0f});
  const Result twos = Logprobs(pool, rows, {2.0f});
  EXPECT_EQ(mixed.logprobs[0], ones.logprobs[0]);
  EXPECT_EQ(mixed.logprobs[1], twos.logprobs[1]);
  EXPECT_EQ(mixed.entropy[1], twos.entropy[1]);
  EXPECT_EQ(mixed.logprobs[3], ones.logprobs[3]);
}

TEST(LogprobForward, CountsForbiddenTokensAsNothing) {
  ThreadPool pool(1);
  Rows rows(1, 50, 3);
  for (size_t v = 10; v < 50; ++v) rows.logits[v] = -kInf;
  rows.targets[0] = 4;
  const Result result = Logprobs(pool, rows, {1.0f});
  const std::vector<double> log_p = LogSoftmax(rows.row(0), 50, 1.0);
  EXPECT_NEAR(result.logprobs[0], log_p[4], 1e-6);
  EXPECT_NEAR(result.entropy[0], Entropy(log_p), 1e-6);
  rows.targets[0] = 20;
  EXPECT_EQ(Logprobs(pool, rows, {1.0f}).logprobs[0], -kInf);
}

TEST(LogprobForward, DoesNotHideANaN) {
  ThreadPool pool(1);
  for (const size_t at : {0, 17, 49}) {
    Rows rows(1, 50, 4);
    rows.logits[at] = std::numeric_limits<float>::quiet_NaN();
    rows.targets[0] = 30;
    const Result result = Logprobs(pool, rows, {1.0f});
    EXPECT_TRUE(std::isnan(result.logprobs[0]));
    EXPECT_TRUE(std::isnan(result.entropy[0]));
  }
}

TEST(LogprobForward, GivesTheSameBitsForAnyThreadCountBatchAndInstructionSet) {
  for (const int64_t vocab_size : {2048, 5003}) {
    const Rows rows(20, vocab_size, 5);
    ThreadPool one(1), four(4);
    const Result expected = Logprobs(one, rows, {1.25f});
    ForEachInstructionSet([&] {
      const Result result = Logprobs(four, rows, {1.25f});
      EXPECT_EQ(Bits(result.logprobs), Bits(expected.logprobs));
      EXPECT_EQ(Bits(result.entropy), Bits(expected.entropy));
    });
    for (size_t r = 0; r < rows.targets.size(); ++r) {
      float logprob = 0.0f;
      LogprobForward(one, rows.row(r), {&rows.targets[r], 1}, {{1.25f}}, vocab_size, &logprob,
                     nullptr);
      EXPECT_EQ(logprob, expected.logprobs[r]);
    }
  }
}

TEST(LogprobBackward, MatchesTheFormulaInDouble) {
  ThreadPool pool(2);
  for (const int64_t vocab_size : {5, 16, 333, 2048}) {
    for (const float inv_temperature : {1.0f, 1.25f}) {
      Rows rows(6, vocab_size, 6);
      rows.logits[3] = -kInf;
      const std::vector<float> dlogprobs = RandomFloats(6, 7);
      std::vector<float> dentropy = RandomFloats(6, 8);
      dentropy[2] = 0.0f;
      std::vector<double> expected;
      for (size_t r = 0; r < 6; ++r) {
        const std::vector<double> log_p = LogSoftmax(rows.row(r), vocab_size, inv_temperature);
        const double entropy = Entropy(log_p);
        for (size_t v = 0; v < log_p.size(); ++v) {
          const double p = std::exp(log_p[v]);
          const double hit = static_cast<size_t>(rows.targets[r]) == v ? 1.0 : 0.0;
          const double shift = p == 0.0 ? 0.0 : p * (log_p[v] + entropy);
          expected.push_back(inv_temperature * (dlogprobs[r] * (hit - p) - dentropy[r] * shift));
        }
      }
      LogprobBackward(pool, rows.logits.data(), rows.targets, inv_temperature, vocab_size,
                      dlogprobs.data(), dentropy.data());
      EXPECT_LT(RelativeError(rows.logits, expected), 2e-6);
      for (size_t r = 0; r < 6; ++r) {  // a shift of all logits changes nothing
        double sum = 0.0;
        for (int64_t v = 0; v < vocab_size; ++v) sum += rows.row(r)[v];
        EXPECT_NEAR(sum, 0.0, 1e-5);
      }
    }
  }
}

TEST(LogprobBackward, GivesZeroRowsOutsideOfTheLoss) {
  ThreadPool pool(2);
  Rows rows(3, 64, 9);
  const std::vector<float> dlogprobs = {0.0f, 1.0f, 0.0f};
  LogprobBackward(pool, rows.logits.data(), rows.targets, 1.0f, 64, dlogprobs.data(), nullptr);
  for (size_t v = 0; v < 64; ++v) {
    EXPECT_EQ(rows.row(0)[v], 0.0f);
    EXPECT_NE(rows.row(1)[v], 0.0f);
    EXPECT_EQ(rows.row(2)[v], 0.0f);
  }
}

TEST(LogprobBackward, GivesTheSameBitsForAnyThreadCountAndInstructionSet) {
  const Rows rows(30, 1003, 10);
  const std::vector<float> dlogprobs = RandomFloats(30, 11), dentropy = RandomFloats(30, 12);
  const auto run = [&](int threads) {
    ThreadPool pool(threads);
    std::vector<float> logits = rows.logits;
    LogprobBackward(pool, logits.data(), rows.targets, 0.8f, 1003, dlogprobs.data(),
                    dentropy.data());
    return Bits(logits);
  };
  const std::vector<uint8_t> expected = run(1);
  ForEachInstructionSet([&] { EXPECT_EQ(run(4), expected); });
}

TEST(ArgmaxRows, TakesTheLowestIndexOnTies) {
  ThreadPool pool(2);
  const int64_t vocab_size = 100;
  std::vector<float> logits(4 * 100, -1.0f);
  logits[70] = logits[31] = logits[99] = 2.0f;
  logits[199] = -0.5f;
  for (size_t v = 200; v < 300; ++v) logits[v] = -kInf;
  logits[250] = -1e30f;
  std::vector<int32_t> tokens(4);
  ForEachInstructionSet([&] {
    ArgmaxRows(pool, logits.data(), 4, vocab_size, tokens.data());
    EXPECT_EQ(tokens, (std::vector<int32_t>{31, 99, 50, 0}));
  });
}

}  // namespace
}  // namespace quatrain
