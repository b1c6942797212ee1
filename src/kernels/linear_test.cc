#include "kernels/linear.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "hwy/targets.h"
#include "kernels/int4.h"

// Every comparison is of bits: the oracle is the chain of docs/numerics.md, one std::fma at a time.
namespace quatrain {
namespace {

size_t At(int64_t i) { return static_cast<size_t>(i); }

float RandomFloat(uint64_t stream, int64_t index) {
  return static_cast<float>(UniformDouble(1, stream, static_cast<uint64_t>(index)) * 2.0 - 1.0);
}

template <class T>
std::vector<T> RandomMatrix(int64_t rows, int64_t cols, uint64_t stream) {
  std::vector<T> values(At(rows * cols));
  for (int64_t i = 0; i < rows * cols; ++i) values[At(i)] = RoundTo<T>(RandomFloat(stream, i));
  return values;
}

// A weight that owns its memory, just as large as the view says, so that ASan sees a read past it.
struct OwnedWeight {
  std::vector<uint8_t> bytes;
  std::vector<BFloat16> scale;
  WeightView view;

  // w' by the scalar definitions of int4.h.
  float At(int64_t n, int64_t k) const {
    const int64_t in = view.in_features;
    if (view.type == WeightType::kFloat32 || view.type == WeightType::kBFloat16) {
      if (view.type == WeightType::kFloat32) {
        return static_cast<const float*>(view.data)[n * in + k];
      }
      return ToFloat(static_cast<const BFloat16*>(view.data)[n * in + k]);
    }
    const int bits = view.type == WeightType::kInt4 ? 4 : 8;
    const int32_t* row = static_cast<const int32_t*>(view.data) + n * PackedWords(in, bits);
    const int64_t group = n * (in / view.group_size) + k / view.group_size;
    return ToFloat(DequantizeCode(UnpackCode(row, k, bits), view.scale[group]));
  }
};

OwnedWeight RandomWeight(WeightType type, int64_t n, int64_t k, int64_t group_size) {
  OwnedWeight weight;
  weight.view = {.type = type, .out_features = n, .in_features = k, .group_size = group_size};
  const auto fill = [&](const auto& values) {
    weight.bytes.resize(values.size() * sizeof(values[0]));
    std::memcpy(weight.bytes.data(), values.data(), weight.bytes.size());
  };
  if (type == WeightType::kFloat32) {
    fill(RandomMatrix<float>(n, k, 2));
  } else if (type == WeightType::kBFloat16) {
    fill(RandomMatrix<BFloat16>(n, k, 2));
  } else {
    const int bits = type == WeightType::kInt4 ? 4 : 8;
    std::vector<int32_t> words(At(n * PackedWords(k, bits)), 0);
    for (int64_t i = 0; i < n * k; ++i) {
      const auto u =
          static_cast<int>(HashBits(3, 0, static_cast<uint64_t>(i)) & ((1u << bits) - 1));
      PackCode(u - (1 << (bits - 1)), i % k, bits, words.data() + i / k * PackedWords(k, bits));
    }
    fill(words);
    for (int64_t i = 0; i < n * (k / group_size); ++i) {
      weight.scale.push_back(ToBFloat16(std::abs(RandomFloat(4, i)) * 0.1f + 0.01f));
    }
  }
  weight.view.data = weight.bytes.data();
  weight.view.scale = weight.scale.data();
  return weight;
}

template <class T>
std::vector<uint32_t> Bits(const std::vector<T>& values) {
  std::vector<uint32_t> bits;
  for (const T value : values) bits.push_back(FloatBits(ToFloat(value)));
  return bits;
}

// y [rows, N] by the oracle, before rounding.
template <class T>
std::vector<float> ForwardOracle(const std::vector<T>& x, int64_t rows, const OwnedWeight& weight,
                                 const std::vector<T>& bias) {
  const auto [n, k] = std::pair(weight.view.out_features, weight.view.in_features);
  std::vector<float> y(At(rows * n));
  for (int64_t j = 0; j < n; ++j) {
    std::vector<float> row(At(k));
    for (int64_t r = 0; r < k; ++r) row[At(r)] = weight.At(j, r);
    for (int64_t i = 0; i < rows; ++i) {
      float acc = 0.0f;
      for (int64_t r = 0; r < k; ++r) acc = std::fma(ToFloat(x[At(i * k + r)]), row[At(r)], acc);
      y[At(i * n + j)] = bias.empty() ? acc : acc + ToFloat(bias[At(j)]);
    }
  }
  return y;
}

template <class T>
std::vector<T> Rounded(const std::vector<float>& values) {
  std::vector<T> rounded;
  for (const float value : values) rounded.push_back(RoundTo<T>(value));
  return rounded;
}

template <class T>
void ExpectForwardIsTheChain(int64_t rows, const OwnedWeight& weight, ThreadPool& pool) {
  const auto [n, k] = std::pair(weight.view.out_features, weight.view.in_features);
  SCOPED_TRACE("rows " + std::to_string(rows) + " N " + std::to_string(n) + " K " +
               std::to_string(k) + " type " + std::to_string(static_cast<int>(weight.view.type)) +
               " group " + std::to_string(weight.view.group_size));
  const auto x = RandomMatrix<T>(rows, k, 5);
  const auto bias = RandomMatrix<T>(1, n, 6);
  const std::vector<float> plain = ForwardOracle(x, rows, weight, {});
  const std::vector<float> biased = ForwardOracle(x, rows, weight, bias);

  std::vector<T> y(At(rows * n)), y_biased(At(rows * n));
  std::vector<float> y_float(At(rows * n));
  const LinearTask<T> tasks[] = {
      {.x = x.data(), .rows = rows, .weight = weight.view, .y = y.data()},
      {.x = x.data(),
       .rows = rows,
       .weight = weight.view,
       .bias = bias.data(),
       .y = y_biased.data()},
      {.x = x.data(), .rows = rows, .weight = weight.view, .y_float = y_float.data()}};
  LinearForward<T>(pool, tasks);
  EXPECT_EQ(Bits(y), Bits(Rounded<T>(plain)));
  EXPECT_EQ(Bits(y_biased), Bits(Rounded<T>(biased)));
  EXPECT_EQ(Bits(y_float), Bits(plain));
}

struct WeightShape {
  WeightType type;
  int64_t n, k, group_size;
};

// All types, N and K off every multiple, groups of every usual size, groups that no word holds.
const WeightShape kShapes[] = {
    {WeightType::kBFloat16, 1, 1, 0},     {WeightType::kBFloat16, 33, 7, 0},
    {WeightType::kBFloat16, 40, 261, 0},  {WeightType::kBFloat16, 64, 256, 0},
    {WeightType::kBFloat16, 100, 520, 0}, {WeightType::kFloat32, 31, 3, 0},
    {WeightType::kFloat32, 65, 259, 0},   {WeightType::kFloat32, 32, 512, 0},
    {WeightType::kInt4, 48, 64, 16},      {WeightType::kInt4, 65, 128, 32},
    {WeightType::kInt4, 33, 576, 64},     {WeightType::kInt4, 17, 384, 128},
    {WeightType::kInt4, 34, 300, 300},    {WeightType::kInt4, 5, 37, 37},
    {WeightType::kInt4, 40, 264, 24},     {WeightType::kInt4, 35, 90, 6},
    {WeightType::kInt4, 3, 8, 8},         {WeightType::kInt8, 48, 64, 16},
    {WeightType::kInt8, 65, 128, 32},     {WeightType::kInt8, 33, 576, 64},
    {WeightType::kInt8, 17, 384, 128},    {WeightType::kInt8, 34, 301, 301},
    {WeightType::kInt8, 40, 268, 4},      {WeightType::kInt8, 35, 90, 6},
    {WeightType::kInt8, 3, 5, 5},
};

// Runs the test body once for each instruction set that is compiled in and that this machine has.
class LinearOnEveryTarget : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { Choose(GetParam()); }
  void TearDown() override { Choose(0); }
  ThreadPool pool_{2};

 private:
  static void Choose(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

std::vector<int64_t> FusedTargets() {
  std::vector<int64_t> targets;
  for (const int64_t target : {HWY_AVX2, HWY_AVX3, HWY_NEON}) {
    if ((hwy::SupportedTargets() & target) != 0) targets.push_back(target);
  }
  return targets;
}

INSTANTIATE_TEST_SUITE_P(Targets, LinearOnEveryTarget, testing::ValuesIn(FusedTargets()),
                         [](const auto& info) { return hwy::TargetName(info.param); });

TEST_P(LinearOnEveryTarget, ForwardIsOneAscendingFmaChain) {
  for (const WeightShape& shape : kShapes) {
    const OwnedWeight weight = RandomWeight(shape.type, shape.n, shape.k, shape.group_size);
    for (const int64_t rows : {0, 1, 2, 3, 7, 13, 25, 65}) {
      if (shape.type != WeightType::kFloat32) {
        ExpectForwardIsTheChain<BFloat16>(rows, weight, pool_);
      }
      ExpectForwardIsTheChain<float>(rows, weight, pool_);
    }
  }
  const OwnedWeight weight = RandomWeight(WeightType::kInt4, 70, 288, 32);
  ExpectForwardIsTheChain<BFloat16>(257, weight, pool_);
  ExpectForwardIsTheChain<float>(600, weight, pool_);
}

TEST_P(LinearOnEveryTarget, InputGradIsOneAscendingFmaChain) {
  for (const WeightShape& shape : kShapes) {
    const OwnedWeight weight = RandomWeight(shape.type, shape.n, shape.k, shape.group_size);
    const auto [n, k] = std::pair(shape.n, shape.k);
    for (const int64_t rows : {0, 1, 2, 65, 257}) {
      const auto dy = RandomMatrix<float>(rows, n, 7);
      const auto old = RandomMatrix<float>(rows, k, 8);
      std::vector<float> expected(At(rows * k), 0.0f), expected_more = old;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t r = 0; r < n; ++r) {
          for (int64_t j = 0; j < k; ++j) {
            const float w = weight.At(r, j), g = dy[At(i * n + r)];
            float& acc = expected[At(i * k + j)];
            float& more = expected_more[At(i * k + j)];
            acc = std::fma(g, w, acc);
            more = std::fma(g, w, more);
          }
        }
      }
      std::vector<float> dx(At(rows * k), 99.0f), dx_more = old;
      const LinearInputGradTask tasks[] = {
          {.dy = dy.data(), .rows = rows, .weight = weight.view, .dx = dx.data()},
          {.dy = dy.data(),
           .rows = rows,
           .weight = weight.view,
           .dx = dx_more.data(),
           .accumulate = true}};
      LinearInputGrad(pool_, tasks);
      EXPECT_EQ(Bits(dx), Bits(expected)) << rows << " " << n << " " << k;
      EXPECT_EQ(Bits(dx_more), Bits(expected_more)) << rows << " " << n << " " << k;
    }
  }
}

template <class T>
void ExpectWeightGradContinuesTheChain(int64_t rows, int64_t n, int64_t k, ThreadPool& pool) {
  const auto dy = RandomMatrix<float>(rows, n, 9);
  const auto x = RandomMatrix<T>(rows, k, 10);
  std::vector<float> dweight = RandomMatrix<float>(n, k, 11);
  std::vector<float> dbias = RandomMatrix<float>(1, n, 12);
  std::vector<float> expected = dweight, expected_bias = dbias;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < n; ++i) {
      expected_bias[At(i)] += dy[At(r * n + i)];
      for (int64_t j = 0; j < k; ++j) {
        float& acc = expected[At(i * k + j)];
        acc = std::fma(dy[At(r * n + i)], ToFloat(x[At(r * k + j)]), acc);
      }
    }
  }
  const LinearWeightGradTask<T> task{.dy = dy.data(),
                                     .x = x.data(),
                                     .rows = rows,
                                     .out_features = n,
                                     .in_features = k,
                                     .dweight = dweight.data(),
                                     .dbias = dbias.data()};
  LinearWeightGrad<T>(pool, {&task, 1});
  EXPECT_EQ(Bits(dweight), Bits(expected)) << rows << " " << n << " " << k;
  EXPECT_EQ(Bits(dbias), Bits(expected_bias)) << rows << " " << n << " " << k;
}

TEST_P(LinearOnEveryTarget, WeightGradContinuesTheChainOfTheOldGradient) {
  for (const int64_t rows : {0, 1, 2, 65, 257}) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {33, 40}, {65, 31}, {270, 100}}) {
      ExpectWeightGradContinuesTheChain<BFloat16>(rows, n, k, pool_);
      ExpectWeightGradContinuesTheChain<float>(rows, n, k, pool_);
    }
  }
}

TEST_P(LinearOnEveryTarget, DequantizeRowsIsTheScalarDefinition) {
  for (const WeightShape& shape : kShapes) {
    const OwnedWeight weight = RandomWeight(shape.type, shape.n, shape.k, shape.group_size);
    const int64_t begin = shape.n / 3;
    std::vector<float> out(At((shape.n - begin) * shape.k)), expected;
    DequantizeRows(weight.view, begin, shape.n, out.data());
    for (int64_t n = begin; n < shape.n; ++n) {
      for (int64_t k = 0; k < shape.k; ++k) expected.push_back(weight.At(n, k));
    }
    EXPECT_EQ(Bits(out), Bits(expected)) << shape.n << " " << shape.k;
  }
}

// Every scale there is (also subnormal, infinite, NaN) against every code, through both unpackers:
// rows of an identity matrix times the weight give the weight back, but for the sign of zero.
TEST_P(LinearOnEveryTarget, EveryScaleTimesEveryCodeRoundsAsDequantizeCode) {
  for (const auto& [type, bits] : {std::pair{WeightType::kInt4, 4}, {WeightType::kInt8, 8}}) {
    const int64_t num_codes = 1 << bits;
    const int64_t n = 65536;
    std::vector<int32_t> words(At(n * PackedWords(num_codes, bits)), 0);
    std::vector<BFloat16> scale(At(n));
    for (int64_t row = 0; row < n; ++row) {
      scale[At(row)] = BFloat16{static_cast<uint16_t>(row)};
      for (int64_t k = 0; k < num_codes; ++k) {
        PackCode(static_cast<int>(k - num_codes / 2), k, bits,
                 words.data() + row * PackedWords(num_codes, bits));
      }
    }
    const WeightView weight{.type = type,
                            .out_features = n,
                            .in_features = num_codes,
                            .group_size = num_codes,
                            .data = words.data(),
                            .scale = scale.data()};
    std::vector<float> rows(At(n * num_codes));
    DequantizeRows(weight, 0, n, rows.data());
    // One row at a time: 0 * inf of another input would be NaN, so only finite scales go through.
    std::vector<float> x(At(num_codes), 0.0f), y(At(n));
    int64_t wrong = 0;
    for (int64_t k = 0; k < num_codes; ++k) {
      x.assign(x.size(), 0.0f);
      x[At(k)] = 1.0f;
      const LinearTask<float> task{.x = x.data(), .rows = 1, .weight = weight, .y = y.data()};
      if (bits == 4 || k % 17 == 0) LinearForward<float>(pool_, {&task, 1});
      for (int64_t row = 0; row < n; ++row) {
        const int code = static_cast<int>(k - num_codes / 2);
        const float expected = ToFloat(DequantizeCode(code, scale[At(row)]));
        const float unpacked = rows[At(row * num_codes + k)];
        if (std::isnan(expected) ? !std::isnan(unpacked)
                                 : FloatBits(unpacked) != FloatBits(expected)) {
          ++wrong;
        }
        const bool is_finite = std::abs(ToFloat(scale[At(row)])) < 1e36f;
        if ((bits == 4 || k % 17 == 0) && is_finite && y[At(row)] != expected) ++wrong;
      }
    }
    EXPECT_EQ(wrong, 0) << bits << " bits";
  }
}

TEST_P(LinearOnEveryTarget, NonFiniteActivationsPropagate) {
  const OwnedWeight weight = RandomWeight(WeightType::kInt4, 40, 64, 32);
  auto x = RandomMatrix<BFloat16>(2, 64, 13);
  x[5] = ToBFloat16(std::numeric_limits<float>::quiet_NaN());
  std::vector<BFloat16> y(80);
  const LinearTask<BFloat16> task{.x = x.data(), .rows = 2, .weight = weight.view, .y = y.data()};
  LinearForward<BFloat16>(pool_, {&task, 1});
  for (size_t n = 0; n < 40; ++n) EXPECT_TRUE(std::isnan(ToFloat(y[n])));
  for (size_t n = 40; n < 80; ++n) EXPECT_FALSE(std::isnan(ToFloat(y[n])));
}

TEST(Linear, ARowHasTheSameBitsInEveryBatchTaskSetAndThreadCount) {
  const OwnedWeight weight = RandomWeight(WeightType::kInt4, 384, 512, 32);
  const OwnedWeight other = RandomWeight(WeightType::kBFloat16, 100, 512, 0);
  const auto x = RandomMatrix<BFloat16>(300, 512, 14);
  ThreadPool alone(1);
  std::vector<BFloat16> expected(300 * 384);
  for (int64_t i = 0; i < 300; ++i) {
    const LinearTask<BFloat16> task{
        .x = x.data() + i * 512, .rows = 1, .weight = weight.view, .y = expected.data() + i * 384};
    LinearForward<BFloat16>(alone, {&task, 1});
  }
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (const int64_t rows : {2, 8, 33, 257, 300}) {
      std::vector<BFloat16> y(At(rows * 384));
      std::vector<float> more(At(rows * 100));
      const LinearTask<BFloat16> tasks[] = {
          {.x = x.data(), .rows = rows, .weight = other.view, .y_float = more.data()},
          {.x = nullptr, .rows = 0, .weight = other.view, .y = nullptr},
          {.x = x.data(), .rows = rows, .weight = weight.view, .y = y.data()}};
      LinearForward<BFloat16>(pool, tasks);
      EXPECT_EQ(Bits(y),
                Bits(std::vector<BFloat16>(expected.begin(), expected.begin() + rows * 384)))
          << num_threads << " threads, " << rows << " rows";
    }
  }
}

TEST(Linear, TheWeightGradDoesNotDependOnTheCutIntoMicroBatches) {
  const auto dy = RandomMatrix<float>(100, 48, 15);
  const auto x = RandomMatrix<BFloat16>(100, 96, 16);
  ThreadPool pool(2);
  std::vector<float> whole(48 * 96, 0.0f), parts(48 * 96, 0.0f);
  const LinearWeightGradTask<BFloat16> task{.dy = dy.data(),
                                            .x = x.data(),
                                            .rows = 100,
                                            .out_features = 48,
                                            .in_features = 96,
                                            .dweight = whole.data()};
  LinearWeightGrad<BFloat16>(pool, {&task, 1});
  for (int64_t begin = 0; begin < 100; begin += 30) {
    LinearWeightGradTask<BFloat16> part = task;
    part.dy += begin * 48;
    part.x += begin * 96;
    part.rows = std::min<int64_t>(30, 100 - begin);
    part.dweight = parts.data();
    LinearWeightGrad<BFloat16>(pool, {&part, 1});
  }
  EXPECT_EQ(Bits(parts), Bits(whole));
}

TEST(Linear, InconsistentTasksAreCaughtBugs) {
  ThreadPool pool(1);
  const OwnedWeight weight = RandomWeight(WeightType::kInt4, 8, 32, 16);
  std::vector<float> x(32), y(8);
  LinearTask<float> no_output{.x = x.data(), .rows = 1, .weight = weight.view};
  EXPECT_THROW(LinearForward<float>(pool, {&no_output, 1}), Error);
  LinearTask<float> bad_group{.x = x.data(), .rows = 1, .weight = weight.view, .y = y.data()};
  bad_group.weight.group_size = 24;
  EXPECT_THROW(LinearForward<float>(pool, {&bad_group, 1}), Error);
  EXPECT_THROW(DequantizeRows(weight.view, 4, 9, x.data()), Error);
}

}  // namespace
}  // namespace quatrain
