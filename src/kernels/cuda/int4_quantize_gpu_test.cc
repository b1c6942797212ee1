#if defined(QT_WITH_CUDA)
#include <cmath>

#include "kernels/cuda/device_test.h"
#include "kernels/cuda/int4_quantize.h"
#include "kernels/int4_quantize.h"
#include "kernels/kernel_test.h"

namespace quatrain::cuda {
namespace {

struct Quantized {
  std::vector<int32_t> packed;
  std::vector<BFloat16> scale, fake;
};

Quantized OnCpu(const std::vector<BFloat16>& weight, int64_t rows, int64_t columns,
                const QuantizeSpec& spec, std::vector<BFloat16> scale) {
  ThreadPool pool(8);
  Quantized q = {std::vector<int32_t>(rows * PackedWords(columns, spec.grid.num_bits)),
                 std::move(scale), std::vector<BFloat16>(weight.size())};
  QuantizeMatrix(pool, weight.data(), rows, columns, spec, q.packed.data(), q.scale.data());
  DequantizeMatrix(
      pool, {q.packed.data(), q.scale.data(), rows, columns, spec.grid.num_bits, spec.group_size},
      q.fake.data());
  return q;
}

Quantized OnDevice(const std::vector<BFloat16>& weight, int64_t rows, int64_t columns,
                   const QuantizeSpec& spec, const std::vector<BFloat16>& scale) {
  DeviceVector<BFloat16> w(weight), fake(weight.size()), s(scale);
  DeviceVector<int32_t> packed(rows * PackedWords(columns, spec.grid.num_bits));
  Quantize({.weight = w.data(),
            .out_features = rows,
            .in_features = columns,
            .spec = spec,
            .fake = fake.data(),
            .packed = packed.data(),
            .scale = s.data()},
           nullptr);
  return {packed.Download(), s.Download(), fake.Download()};
}

void ExpectSame(const Quantized& device, const Quantized& cpu) {
  EXPECT_EQ(CountDifferences(device.scale, cpu.scale), 0);
  EXPECT_EQ(CountDifferences(device.packed, cpu.packed), 0);
  EXPECT_EQ(CountDifferences(device.fake, cpu.fake), 0);
}

// All 65280 finite BF16 weights under scales with every significand, at seven exponents: the
// smallest and largest that the reciprocal serves and others that take the division.
TEST(QuantizeGpu, EveryWeightUnderEverySignificandOfTheScale) {
  QT_NEEDS_DEVICE();
  std::vector<BFloat16> scales;
  for (const int exponent : {1, 27, 28, 120, 125, 227, 250}) {
    for (int significand = 0; significand < 128; ++significand) {
      scales.push_back({static_cast<uint16_t>(exponent << 7 | significand)});
    }
  }
  constexpr int64_t kColumns = 65280;
  const auto rows = static_cast<int64_t>(scales.size());
  std::vector<BFloat16> weight;
  for (int64_t row = 0; row < rows; ++row) {
    for (int bits = 0; bits < 65536; ++bits) {
      if ((bits & 0x7F80) != 0x7F80) weight.push_back({static_cast<uint16_t>(bits)});
    }
  }
  for (const int num_bits : {4, 8}) {
    for (const int64_t group : {int64_t{128}, kColumns}) {
      SCOPED_TRACE(testing::Message() << num_bits << " bits, group " << group);
      std::vector<BFloat16> of_groups;
      for (const BFloat16 scale : scales)
        of_groups.insert(of_groups.end(), kColumns / group, scale);
      const QuantizeSpec spec = {ScaleRule::kFrozen, GridOf(ScaleRule::kFrozen, num_bits), group};
      ExpectSame(OnDevice(weight, rows, kColumns, spec, of_groups),
                 OnCpu(weight, rows, kColumns, spec, of_groups));
    }
  }
}

TEST(QuantizeGpu, RulesAndGroupSizesEqualTheCpu) {
  QT_NEEDS_DEVICE();
  constexpr int64_t kRows = 37;
  constexpr int64_t kColumns = 1536;
  auto weight = RandomRounded<BFloat16>(kRows * kColumns, 5, 0.02f);
  for (int64_t i = 0; i < 96; ++i) weight[i] = {0};                // a group of zeros
  for (int64_t i = 1536; i < 3072; ++i) weight[i].bits &= 0x83FF;  // tiny ones
  for (const ScaleRule rule : {ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5}) {
    for (const int num_bits : {4, 8}) {
      for (const int64_t group : {8, 32, 64, 96, 128, 256, 1536}) {
        SCOPED_TRACE(testing::Message() << num_bits << " bits, group " << group);
        const QuantizeSpec spec = {rule, GridOf(rule, num_bits), group};
        const std::vector<BFloat16> none(kRows * kColumns / group);
        ExpectSame(OnDevice(weight, kRows, kColumns, spec, none),
                   OnCpu(weight, kRows, kColumns, spec, none));
      }
    }
  }
}

TEST(QuantizeGpu, MastersAreRoundedFirst) {
  QT_NEEDS_DEVICE();
  const std::vector<float> master = RandomFloats(64 * 512, 6, 0.02f);
  const QuantizeSpec spec = {ScaleRule::kAbsmax7, {}, 32};
  const std::vector<BFloat16> none(64 * 16);
  const Quantized cpu = OnCpu(RoundAll<BFloat16>(master), 64, 512, spec, none);
  DeviceVector<float> m(master);
  DeviceVector<BFloat16> fake(master.size());
  Quantize({.master = m.data(),
            .out_features = 64,
            .in_features = 512,
            .spec = spec,
            .fake = fake.data()},
           nullptr);
  EXPECT_EQ(CountDifferences(fake.Download(), cpu.fake), 0);
}

TEST(QuantizeGpu, RefusesGroupsThatDoNotFit) {
  EXPECT_THROW(
      Quantize({.out_features = 1, .in_features = 100, .spec = {ScaleRule::kAbsmax7, {}, 32}},
               nullptr),
      Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
