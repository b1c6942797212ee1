#include "kernels/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/kernel_test.h"

namespace quatrain {
namespace {

template <class T>
class Elementwise : public testing::Test {
 protected:
  ThreadPool pool_{2};
};
using ActivationTypes = testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(Elementwise, ActivationTypes);

TYPED_TEST(Elementwise, EmbeddingCopiesRows) {
  using T = TypeParam;
  const int64_t hidden = 24;
  const std::vector<T> table = RandomRounded<T>(10 * hidden, 1);
  const std::vector<int32_t> ids = {3, 9, 0, 3};
  std::vector<T> x(ids.size() * static_cast<size_t>(hidden));
  EmbeddingForward<T>(this->pool_, table.data(), ids, hidden, x.data());
  for (size_t t = 0; t < ids.size(); ++t) {
    for (int64_t d = 0; d < hidden; ++d) {
      EXPECT_EQ(ToFloat(x[t * 24 + static_cast<size_t>(d)]),
                ToFloat(table[static_cast<size_t>(ids[t] * hidden + d)]));
    }
  }
}

TEST(EmbeddingBackward, AddsRowsInTokenOrder) {
  ThreadPool pool(2);
  const int64_t hidden = 150;
  const std::vector<int32_t> ids = {2, 0, 2, 2, 1};
  const std::vector<float> dx = RandomFloats(5 * hidden, 2);
  std::vector<float> dtable = RandomFloats(3 * hidden, 3);
  std::vector<float> expected = dtable;
  for (size_t t = 0; t < ids.size(); ++t) {
    for (size_t d = 0; d < 150; ++d) {
      expected[static_cast<size_t>(ids[t]) * 150 + d] += dx[t * 150 + d];
    }
  }
  EmbeddingBackward(pool, dx.data(), ids, hidden, dtable.data());
  EXPECT_EQ(Bits(dtable), Bits(expected));
}

template <class T>
std::vector<T> PlainRmsNorm(const std::vector<T>& x, const std::vector<T>& weight, float eps) {
  const auto dim = static_cast<int64_t>(weight.size());
  std::vector<T> y(x.size());
  for (size_t row = 0; row < x.size() / weight.size(); ++row) {
    const T* x_D = x.data() + static_cast<int64_t>(row) * dim;
    const float sum = Dot16(x_D, x_D, dim);
    const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(dim) + eps);
    for (int64_t d = 0; d < dim; ++d) {
      const float normed = ToFloat(RoundTo<T>(ToFloat(x_D[d]) * inverse));
      y[row * weight.size() + static_cast<size_t>(d)] =
          RoundTo<T>(ToFloat(weight[static_cast<size_t>(d)]) * normed);
    }
  }
  return y;
}

TYPED_TEST(Elementwise, RmsNormIsThePlainFormulaBitForBit) {
  using T = TypeParam;
  for (const int64_t dim : {8, 16, 32, 104, 128, 1000}) {
    const int64_t rows = 37;
    const std::vector<T> x = RandomRounded<T>(rows * dim, 4, 3.0f);
    const std::vector<T> weight = RandomRounded<T>(dim, 5);
    const std::vector<T> expected = PlainRmsNorm(x, weight, 1e-6f);
    ForEachInstructionSet([&] {
      std::vector<T> y(x.size());
      RmsNormForward<T>(this->pool_, x.data(), weight.data(), rows, dim, 1e-6f, y.data());
      EXPECT_EQ(Bits(y), Bits(expected)) << dim;
    });
  }
}

// sum of dy y in double, without any rounding of y: what dx and dweight are the gradients of.
template <class T>
double RmsNormLoss(const std::vector<double>& x, const std::vector<double>& weight,
                   const std::vector<float>& dy, double eps) {
  const size_t dim = weight.size();
  double loss = 0.0;
  for (size_t row = 0; row < x.size() / dim; ++row) {
    double squares = 0.0;
    for (size_t d = 0; d < dim; ++d) squares += x[row * dim + d] * x[row * dim + d];
    const double rms = std::sqrt(squares / static_cast<double>(dim) + eps);
    for (size_t d = 0; d < dim; ++d) {
      loss += dy[row * dim + d] * weight[d] * x[row * dim + d] / rms;
    }
  }
  return loss;
}

// Central differences of `loss` over each entry of `x`.
template <class Loss>
std::vector<double> Differences(std::vector<double>& x, const Loss& loss) {
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = x[i];
    const double step = 1e-5;
    x[i] = value + step;
    const double above = loss();
    x[i] = value - step;
    gradient[i] = (above - loss()) / (2.0 * step);
    x[i] = value;
  }
  return gradient;
}

template <class T>
std::vector<double> ToDoubles(const std::vector<T>& values) {
  std::vector<double> doubles;
  for (const T value : values) doubles.push_back(ToFloat(value));
  return doubles;
}

// FP32 rounding over rows of this length; the oracle's own error is about 1e-9.
constexpr double kGradTolerance = 2e-6;

TYPED_TEST(Elementwise, RmsNormGradientIsThatOfTheUnroundedFormula) {
  using T = TypeParam;
  const int64_t rows = 9, dim = 40;
  const std::vector<T> x = RandomRounded<T>(rows * dim, 6);
  const std::vector<T> weight = RandomRounded<T>(dim, 7);
  const std::vector<float> dy = RandomFloats(rows * dim, 8);
  std::vector<double> x64 = ToDoubles(x);
  std::vector<double> weight64 = ToDoubles(weight);
  const auto loss = [&] { return RmsNormLoss<T>(x64, weight64, dy, 1e-3); };
  const std::vector<double> dx_expected = Differences(x64, loss);
  const std::vector<double> dweight_expected = Differences(weight64, loss);

  std::vector<float> dx(x.size());
  std::vector<float> dweight(weight.size(), 0.0f);
  RmsNormGradArgs<T> args{.x = x.data(),
                          .weight = weight.data(),
                          .dy = dy.data(),
                          .rows = rows,
                          .dim = dim,
                          .eps = 1e-3f,
                          .dx = dx.data(),
                          .accumulate_dx = false,
                          .dweight = dweight.data()};
  RmsNormBackward(this->pool_, args);
  EXPECT_LT(RelativeError(dx, dx_expected), kGradTolerance);
  EXPECT_LT(RelativeError(dweight, dweight_expected), kGradTolerance);
}

TYPED_TEST(Elementwise, RmsNormGradientAccumulatesOrRunsInPlace) {
  using T = TypeParam;
  const int64_t rows = 700, dim = 72;  // several chunks
  const std::vector<T> x = RandomRounded<T>(rows * dim, 9);
  const std::vector<T> weight = RandomRounded<T>(dim, 10);
  const std::vector<float> dy = RandomFloats(rows * dim, 11);
  std::vector<float> fresh(x.size());
  std::vector<float> dweight(weight.size(), 0.0f);
  RmsNormGradArgs<T> args{.x = x.data(),
                          .weight = weight.data(),
                          .dy = dy.data(),
                          .rows = rows,
                          .dim = dim,
                          .eps = 1e-6f,
                          .dx = fresh.data(),
                          .accumulate_dx = false,
                          .dweight = dweight.data()};
  RmsNormBackward(this->pool_, args);

  std::vector<float> in_place = dy;
  std::vector<float> dweight_again(weight.size(), 0.0f);
  args.dy = args.dx = in_place.data();
  args.dweight = dweight_again.data();
  RmsNormBackward(this->pool_, args);
  EXPECT_EQ(Bits(in_place), Bits(fresh));
  EXPECT_EQ(Bits(dweight_again), Bits(dweight));

  std::vector<float> added = RandomFloats(rows * dim, 12);
  std::vector<double> expected(added.size());
  for (size_t i = 0; i < added.size(); ++i) expected[i] = static_cast<double>(added[i]) + fresh[i];
  args.dy = dy.data();
  args.dx = added.data();
  args.accumulate_dx = true;
  RmsNormBackward(this->pool_, args);
  EXPECT_LT(RelativeError(added, expected), 1e-7);  // one rounding
  for (float& value : dweight) value *= 2.0f;       // dweight accumulates always
  EXPECT_LT(RelativeError(dweight_again, dweight), 1e-6);
}

struct Table {
  Table(int64_t positions, int64_t head_dim, double theta)
      : cos(static_cast<size_t>(positions * head_dim / 2)), sin(cos.size()) {
    std::vector<double> inverse_frequencies;
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      inverse_frequencies.push_back(
          std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim)));
    }
    FillRopeTable(positions, inverse_frequencies, cos.data(), sin.data());
    view = {.cos = cos.data(), .sin = sin.data(), .head_dim = head_dim};
  }
  std::vector<float> cos, sin;
  RopeTable view;
};

TEST(FillRopeTable, HoldsTheAnglesOfTheHalfSplitConvention) {
  const Table table(100, 32, 10000.0);
  for (int64_t position : {0, 1, 57, 99}) {
    for (int64_t i = 0; i < 16; ++i) {
      const double angle =
          static_cast<double>(position) / std::pow(10000.0, static_cast<double>(2 * i) / 32.0);
      const auto at = static_cast<size_t>(position * 16 + i);
      EXPECT_NEAR(table.cos[at], std::cos(angle), 1e-7);
      EXPECT_NEAR(table.sin[at], std::sin(angle), 1e-7);
    }
  }
}

TYPED_TEST(Elementwise, RopeIsThePlainFormulaBitForBit) {
  using T = TypeParam;
  const int64_t heads = 3;
  const std::vector<int32_t> positions = {5, 0, 1, 99, 42};
  for (const int64_t head_dim : {8, 24, 32, 64, 128}) {
    const Table table(100, head_dim, 10000.0);
    const std::vector<T> x = RandomRounded<T>(std::ssize(positions) * heads * head_dim, 13);
    std::vector<T> expected = x;
    const int64_t half = head_dim / 2;
    for (int64_t t = 0; t < std::ssize(positions); ++t) {
      for (int64_t i = 0; i < heads * half; ++i) {
        const auto first =
            static_cast<size_t>(t * heads * head_dim + i / half * head_dim + i % half);
        const size_t second = first + static_cast<size_t>(half);
        const auto at = static_cast<size_t>(positions[static_cast<size_t>(t)] * half + i % half);
        const float x1 = ToFloat(x[first]), x2 = ToFloat(x[second]);
        const float c = table.cos[at], s = table.sin[at];
        expected[first] = RoundTo<T>(std::fma(x1, c, -(x2 * s)));
        expected[second] = RoundTo<T>(std::fma(x2, c, x1 * s));
      }
    }
    ForEachInstructionSet([&] {
      std::vector<T> rotated = x;
      RopeForward<T>(this->pool_, table.view, positions, heads, rotated.data());
      EXPECT_EQ(Bits(rotated), Bits(expected)) << head_dim;
    });
  }
}

TEST(RopeBackward, IsTheTransposeOfTheForward) {
  ThreadPool pool(2);
  const Table table(50, 24, 1000.0);
  const std::vector<int32_t> positions = {0, 49, 7};
  const std::vector<float> x = RandomFloats(3 * 2 * 24, 14);
  const std::vector<float> dy = RandomFloats(3 * 2 * 24, 15);
  std::vector<float> y = x;
  std::vector<float> dx = dy;
  RopeForward<float>(pool, table.view, positions, 2, y.data());
  RopeBackward(pool, table.view, positions, 2, dx.data());
  double forward = 0.0, backward = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    forward += static_cast<double>(y[i]) * dy[i];
    backward += static_cast<double>(x[i]) * dx[i];
  }
  EXPECT_NEAR(forward, backward, 1e-5);
  RopeForward<float>(pool, table.view, positions, 2, dx.data());
  EXPECT_LT(RelativeError(dx, dy), 1e-6);  // a rotation and its inverse
}

TYPED_TEST(Elementwise, SiluMulIsCloseToTheFormulaInDouble) {
  using T = TypeParam;
  const int64_t n = 40003;
  const std::vector<T> gate = RandomRounded<T>(n, 16, 8.0f);
  const std::vector<T> up = RandomRounded<T>(n, 17);
  std::vector<T> out(gate.size());
  SiluMulForward<T>(this->pool_, gate.data(), up.data(), n, out.data());
  // Five FP32 roundings, or the one to BF16.
  const double tolerance = sizeof(T) == 4 ? 5e-7 : 1.0 / 256.0;
  for (size_t i = 0; i < gate.size(); ++i) {
    const double g = ToFloat(gate[i]);
    const double expected = g / (1.0 + std::exp(-g)) * ToFloat(up[i]);
    ASSERT_NEAR(ToFloat(out[i]), expected, tolerance * std::fabs(expected)) << g;
  }
}

TYPED_TEST(Elementwise, SiluMulSurvivesExtremeGates) {
  using T = TypeParam;
  const std::vector<T> gate = RoundAll<T>({0.0f, 100.0f, -100.0f, 1e30f, -1e30f, -88.5f});
  const std::vector<T> up = RoundAll<T>(std::vector<float>(6, 2.0f));
  std::vector<T> out(6);
  std::vector<float> dgate(6), dup(6);
  const std::vector<float> dout(6, 1.0f);
  SiluMulForward<T>(this->pool_, gate.data(), up.data(), 6, out.data());
  SiluMulBackward<T>(this->pool_, gate.data(), up.data(), dout.data(), 6, dgate.data(), dup.data());
  EXPECT_EQ(ToFloat(out[0]), 0.0f);
  EXPECT_EQ(ToFloat(out[1]), 200.0f);
  for (const size_t i : {2, 4, 5}) EXPECT_EQ(ToFloat(out[i]), 0.0f) << i;
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_TRUE(std::isfinite(dgate[i])) << i;
    EXPECT_TRUE(std::isfinite(dup[i])) << i;
  }
}

TYPED_TEST(Elementwise, SiluMulGradientMatchesDifferences) {
  using T = TypeParam;
  const int64_t n = 211;
  const std::vector<T> gate = RandomRounded<T>(n, 18, 3.0f);
  const std::vector<T> up = RandomRounded<T>(n, 19);
  const std::vector<float> dout = RandomFloats(n, 20);
  std::vector<double> gate64 = ToDoubles(gate), up64 = ToDoubles(up);
  const auto loss = [&] {
    double sum = 0.0;
    for (size_t i = 0; i < gate64.size(); ++i) {
      sum += dout[i] * up64[i] * gate64[i] / (1.0 + std::exp(-gate64[i]));
    }
    return sum;
  };
  const std::vector<double> dgate_expected = Differences(gate64, loss);
  const std::vector<double> dup_expected = Differences(up64, loss);
  std::vector<float> dgate(gate.size()), dup(gate.size());
  SiluMulBackward<T>(this->pool_, gate.data(), up.data(), dout.data(), n, dgate.data(), dup.data());
  EXPECT_LT(RelativeError(dgate, dgate_expected), kGradTolerance);
  EXPECT_LT(RelativeError(dup, dup_expected), kGradTolerance);
}

TYPED_TEST(Elementwise, AddInPlaceRoundsOnce) {
  using T = TypeParam;
  const int64_t n = 20011;
  std::vector<T> x = RandomRounded<T>(n, 21);
  const std::vector<T> y = RandomRounded<T>(n, 22, 100.0f);
  std::vector<T> expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) expected[i] = RoundTo<T>(ToFloat(x[i]) + ToFloat(y[i]));
  AddInPlace<T>(this->pool_, x.data(), y.data(), n);
  EXPECT_EQ(Bits(x), Bits(expected));
}

TEST(SumOfSquares, IsExactToDoubleAndIndependentOfThreads) {
  const int64_t n = 3 * 4096 + 77;
  const std::vector<float> x = RandomFloats(n, 23, 1e20f);  // squares overflow FP32
  long double expected = 0.0L;
  for (const float value : x) expected += static_cast<long double>(value) * value;
  ThreadPool one(1), three(3);
  const double sum = SumOfSquares(one, x.data(), n);
  EXPECT_NEAR(sum, static_cast<double>(expected), 1e-14 * sum);
  EXPECT_EQ(SumOfSquares(three, x.data(), n), sum);
  ForEachInstructionSet([&] { EXPECT_EQ(SumOfSquares(one, x.data(), n), sum); });
  EXPECT_EQ(SumOfSquares(one, x.data(), 0), 0.0);
}

// Everything above on a few thousand rows, as bytes.
template <class T>
std::vector<uint8_t> EverythingAsBytes(ThreadPool& pool) {
  const int64_t rows = 1500, dim = 40, n = rows * dim;
  const std::vector<T> x = RandomRounded<T>(n, 30), y = RandomRounded<T>(n, 31);
  const std::vector<T> weight = RandomRounded<T>(dim, 32);
  const std::vector<float> grad = RandomFloats(n, 33);
  std::vector<T> normed(x.size()), product(x.size()), sum = x;
  std::vector<float> dx(x.size()), dweight(weight.size()), dgate(x.size()), dup(x.size());
  RmsNormForward<T>(pool, x.data(), weight.data(), rows, dim, 1e-6f, normed.data());
  RmsNormBackward<T>(pool, {.x = x.data(),
                            .weight = weight.data(),
                            .dy = grad.data(),
                            .rows = rows,
                            .dim = dim,
                            .eps = 1e-6f,
                            .dx = dx.data(),
                            .accumulate_dx = false,
                            .dweight = dweight.data()});
  SiluMulForward<T>(pool, x.data(), y.data(), n, product.data());
  SiluMulBackward<T>(pool, x.data(), y.data(), grad.data(), n, dgate.data(), dup.data());
  AddInPlace<T>(pool, sum.data(), y.data(), n);
  std::vector<uint8_t> all;
  for (const auto& bytes :
       {Bits(normed), Bits(product), Bits(sum), Bits(dx), Bits(dweight), Bits(dgate), Bits(dup)}) {
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

TYPED_TEST(Elementwise, GivesTheSameBitsForAnyThreadCountAndInstructionSet) {
  using T = TypeParam;
  ThreadPool one(1), four(4);
  const std::vector<uint8_t> expected = EverythingAsBytes<T>(one);
  EXPECT_EQ(EverythingAsBytes<T>(four), expected);
  ForEachInstructionSet([&] { EXPECT_EQ(EverythingAsBytes<T>(four), expected); });
}

}  // namespace
}  // namespace quatrain
