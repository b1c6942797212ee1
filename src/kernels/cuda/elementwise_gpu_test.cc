#if defined(QT_WITH_CUDA)
#include "kernels/cuda/device_test.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/elementwise.h"
#include "kernels/kernel_test.h"

namespace quatrain::cuda {
namespace {

constexpr LaunchOrder kAfter = LaunchOrder::kAfterPrevious;

BFloat16 RoundedSum(BFloat16 a, BFloat16 b) { return ToBFloat16(ToFloat(a) + ToFloat(b)); }

// Rule 5 as written: chunks of 8, neighbour pairs over a zero-padded power of two.
std::vector<BFloat16> NormOracle(const BFloat16* x, const BFloat16* weight, int64_t dim,
                                 float eps) {
  std::vector<float> sums;
  for (int64_t i = 0; i < dim; i += 8) {
    float sum = 0.0f;
    for (int64_t j = i; j < i + 8; ++j) sum = std::fma(ToFloat(x[j]), ToFloat(x[j]), sum);
    sums.push_back(sum);
  }
  size_t size = 1;
  while (size < sums.size()) size *= 2;
  sums.resize(size, 0.0f);
  for (; size > 1; size /= 2) {
    for (size_t i = 0; i < size / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  }
  const float inverse = 1.0f / std::sqrt(sums[0] / static_cast<float>(dim) + eps);
  std::vector<BFloat16> y;
  for (int64_t i = 0; i < dim; ++i) {
    const float normal = ToFloat(ToBFloat16(ToFloat(x[i]) * inverse));
    y.push_back(ToBFloat16(ToFloat(weight[i]) * normal));
  }
  return y;
}

TEST(ElementwiseGpu, RmsNormKeepsTheCanonicalOrder) {
  QT_NEEDS_DEVICE();
  for (const int64_t dim :
       {8, 64, 120, 128, 256, 512, 768, 1024, 2048, 2560, 4096, 5120, 7168, 16384}) {
    for (const bool has_branch : {false, true}) {
      SCOPED_TRACE(testing::Message() << "dim " << dim << ", branch " << has_branch);
      constexpr int64_t kRows = 19;
      auto x = RandomRounded<BFloat16>(kRows * dim, 1, 2.0f);
      const auto branch = RandomRounded<BFloat16>(kRows * dim, 2);
      const auto weight = RandomRounded<BFloat16>(dim, 3);
      DeviceVector<BFloat16> dx(x), db(branch), dw(weight), dy(x.size());
      RmsNorm(
          {dx.data(), has_branch ? db.data() : nullptr, dw.data(), kRows, dim, 1e-6f, dy.data()},
          nullptr, kAfter);
      if (has_branch) {
        for (size_t i = 0; i < x.size(); ++i) x[i] = RoundedSum(x[i], branch[i]);
      }
      std::vector<BFloat16> y;
      for (int64_t r = 0; r < kRows; ++r) {
        const auto row = NormOracle(x.data() + r * dim, weight.data(), dim, 1e-6f);
        y.insert(y.end(), row.begin(), row.end());
      }
      EXPECT_EQ(CountDifferences(dy.Download(), y), 0);
      EXPECT_EQ(CountDifferences(dx.Download(), x), 0);
    }
  }
}

TEST(ElementwiseGpu, HeadNormAndRopeEqualNormThenTheCpusRope) {
  QT_NEEDS_DEVICE();
  ThreadPool pool(2);
  for (const int64_t dim : {64, 128, 256}) {
    for (const bool has_norm : {false, true}) {
      SCOPED_TRACE(testing::Message() << "head_dim " << dim << ", norm " << has_norm);
      constexpr int64_t kTokens = 13;
      constexpr int kQ = 5;
      constexpr int kK = 2;
      const int64_t stride = (kQ + 2 * kK) * dim;
      auto qkv = RandomRounded<BFloat16>(kTokens * stride, 4, 3.0f);
      const auto qw = RandomRounded<BFloat16>(dim, 5);
      const auto kw = RandomRounded<BFloat16>(dim, 6);
      std::vector<double> frequencies;
      for (int64_t i = 0; i < dim / 2; ++i) frequencies.push_back(std::pow(1e4, -2.0 * i / dim));
      std::vector<float> cos(512 * dim / 2), sin(cos.size());
      FillRopeTable(512, frequencies, cos.data(), sin.data());
      std::vector<int32_t> positions;
      for (int64_t t = 0; t < kTokens; ++t) positions.push_back(static_cast<int32_t>(t * 37 % 512));
      DeviceVector<BFloat16> x(qkv), dqw(qw), dkw(kw);
      DeviceVector<float> dc(cos), ds(sin);
      DeviceVector<int32_t> dp(positions);
      HeadNormRope({x.data(), kTokens, stride, kQ, kK, static_cast<int>(dim),
                    has_norm ? dqw.data() : nullptr, has_norm ? dkw.data() : nullptr, 1e-6f,
                    dc.data(), ds.data(), dp.data()},
                   nullptr, kAfter);
      for (int64_t t = 0; t < kTokens; ++t) {
        std::vector<BFloat16> heads;
        for (int h = 0; h < kQ + kK; ++h) {
          const BFloat16* head = qkv.data() + t * stride + h * dim;
          const auto normal = has_norm
                                  ? NormOracle(head, h < kQ ? qw.data() : kw.data(), dim, 1e-6f)
                                  : std::vector<BFloat16>(head, head + dim);
          heads.insert(heads.end(), normal.begin(), normal.end());
        }
        RopeForward(pool, {cos.data(), sin.data(), dim}, {&positions[t], 1}, kQ + kK, heads.data());
        std::copy(heads.begin(), heads.end(), qkv.begin() + t * stride);
      }
      EXPECT_EQ(CountDifferences(x.Download(), qkv), 0);
    }
  }
}

TEST(ElementwiseGpu, SwiGluIsWithinAnUlpOfTheCpu) {
  QT_NEEDS_DEVICE();
  ThreadPool pool(2);
  constexpr int64_t kRows = 7;
  constexpr int64_t kDim = 2056;
  const auto gate_up = RandomRounded<BFloat16>(kRows * 2 * kDim, 7, 4.0f);
  DeviceVector<BFloat16> x(gate_up), out(kRows * kDim);
  SwiGlu({x.data(), x.data() + kDim, kRows, kDim, 2 * kDim, out.data()}, nullptr, kAfter);
  const auto device = out.Download();
  std::vector<BFloat16> cpu(kDim);
  int64_t different = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    const BFloat16* gate = gate_up.data() + r * 2 * kDim;
    SiluMulForward(pool, gate, gate + kDim, kDim, cpu.data());
    for (int64_t i = 0; i < kDim; ++i) {
      const int distance = std::abs(device[r * kDim + i].bits - cpu[i].bits);
      EXPECT_LE(distance, 1);
      different += distance;
    }
  }
  EXPECT_LT(different, kRows * kDim / 100);
}

TEST(ElementwiseGpu, EmbeddingAndResidualEqualTheCpu) {
  QT_NEEDS_DEVICE();
  const auto table = RandomRounded<BFloat16>(100 * 2056, 8);
  const std::vector<int32_t> ids = {99, 0, 42, 42, 7};
  DeviceVector<BFloat16> t(table), out(ids.size() * 2056);
  DeviceVector<int32_t> i(ids);
  Embedding({t.data(), i.data(), 5, 2056, out.data()}, nullptr, kAfter);
  std::vector<BFloat16> rows;
  for (const int32_t id : ids) {
    rows.insert(rows.end(), table.begin() + id * 2056, table.begin() + (id + 1) * 2056);
  }
  EXPECT_EQ(CountDifferences(out.Download(), rows), 0);
  AddInPlace(out.data(), t.data(), static_cast<int64_t>(rows.size()), nullptr, kAfter);
  for (size_t e = 0; e < rows.size(); ++e) rows[e] = RoundedSum(rows[e], table[e]);
  EXPECT_EQ(CountDifferences(out.Download(), rows), 0);
}

TEST(ElementwiseGpu, RefusesRowsThatDoNotFit16Bytes) {
  EXPECT_THROW(RmsNorm({.rows = 1, .dim = 100}, nullptr, kAfter), Error);
  EXPECT_THROW(SwiGlu({.rows = 1, .dim = 12, .stride = 24}, nullptr, kAfter), Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
