#include "calibrate/cholesky.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/random.h"

namespace quatrain {
namespace {

// 2 X^T X of `tokens` random rows plus `dampening` on the diagonal, in FP64.
std::vector<double> RandomGram(int64_t n, int64_t tokens, double dampening) {
  std::vector<double> gram(static_cast<size_t>(n * n));
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> x(static_cast<size_t>(n));
    for (size_t i = 0; i < x.size(); ++i) {
      // Features of very different size, as the inputs of a down_proj have.
      const double size = std::exp2(static_cast<double>(i % 7));
      x[i] = size * (UniformDouble(5, static_cast<uint64_t>(t), i) - 0.5);
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        gram[static_cast<size_t>(i * n + j)] +=
            2 * x[static_cast<size_t>(i)] * x[static_cast<size_t>(j)];
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) gram[static_cast<size_t>(i * n + i)] += dampening;
  return gram;
}

std::vector<float> ToFloats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

// Textbook factorisation in FP64.
std::vector<double> ExactFactor(std::vector<double> a, int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    double* row_k = a.data() + k * n;
    const double root = std::sqrt(row_k[k]);
    for (int64_t j = k; j < n; ++j) row_k[j] /= root;
    for (int64_t i = k + 1; i < n; ++i) {
      for (int64_t j = i; j < n; ++j) a[static_cast<size_t>(i * n + j)] -= row_k[i] * row_k[j];
    }
  }
  return a;
}

TEST(Cholesky, AgreesWithTheTextbookForEverySizeOfBlock) {
  ThreadPool pool(2);
  for (const int64_t n : {1, 2, 15, 16, 17, 127, 128, 129, 160, 300}) {
    const std::vector<double> exact_a = RandomGram(n, 2 * n + 1, 0.01);
    const std::vector<double> exact = ExactFactor(exact_a, n);
    std::vector<float> a = ToFloats(exact_a);
    ASSERT_TRUE(TryCholesky(pool, a.data(), n)) << n;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i; j < n; ++j) {
        const size_t at = static_cast<size_t>(i * n + j);
        // Relative to the column's size: FP32 rounding times the growth over n columns.
        const double size = std::sqrt(exact_a[static_cast<size_t>(j * n + j)]);
        ASSERT_NEAR(static_cast<double>(a[at]), exact[at], 2e-5 * size)
            << n << " " << i << " " << j;
      }
    }
  }
}

TEST(Cholesky, ThreadCountChangesNoBit) {
  constexpr int64_t kSize = 333;
  const std::vector<float> a = ToFloats(RandomGram(kSize, 2 * kSize, 0.01));
  std::vector<std::vector<float>> factors;
  for (const int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads);
    factors.push_back(a);
    ASSERT_TRUE(TryCholesky(pool, factors.back().data(), kSize));
  }
  EXPECT_EQ(factors[0], factors[1]);
  EXPECT_EQ(factors[0], factors[2]);
}

TEST(Cholesky, RefusesWhatIsNotPositiveDefinite) {
  ThreadPool pool(1);
  std::vector<float> indefinite = {1.0f, 2.0f, 0.0f, 1.0f};
  EXPECT_FALSE(TryCholesky(pool, indefinite.data(), 2));
  std::vector<float> rank_one = {1.0f, 3.0f, 0.0f, 9.0f};
  EXPECT_FALSE(TryCholesky(pool, rank_one.data(), 2));
  std::vector<float> zero = {0.0f};
  EXPECT_FALSE(TryCholesky(pool, zero.data(), 1));
  std::vector<float> nan = {std::nanf("")};
  EXPECT_FALSE(TryCholesky(pool, nan.data(), 1));
}

TEST(Cholesky, RefusesAGramOfFewerTokensThanFeatures) {
  ThreadPool pool(2);
  std::vector<float> a = ToFloats(RandomGram(200, 60, 0.0));
  EXPECT_FALSE(TryCholesky(pool, a.data(), 200));
}

TEST(Cholesky, RowsAreReversedAndDivided) {
  for (const int64_t count : {0, 1, 7, 8, 19, 40}) {
    std::vector<float> from, to(static_cast<size_t>(count + 1), -1.0f);
    for (int64_t i = 0; i < count; ++i) from.push_back(static_cast<float>(i) + 0.3f);
    DivideReversed(from.data(), count, 0.7f, to.data());
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(to[static_cast<size_t>(i)], from[static_cast<size_t>(count - 1 - i)] / 0.7f);
    }
    ASSERT_EQ(to.back(), -1.0f) << "written past its end";
  }
}

}  // namespace
}  // namespace quatrain
