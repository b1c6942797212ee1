#if defined(QT_WITH_CUDA)
#include "kernels/cuda/device_test.h"
#include "kernels/cuda/logprob.h"
#include "kernels/kernel_test.h"
#include "kernels/logprob.h"

namespace quatrain::cuda {
namespace {

struct Row {
  std::vector<float> logprobs, entropy;
};

struct Problem {
  int64_t rows, vocab;
  std::vector<float> logits, inv_temperature;
  std::vector<int32_t> targets;
};

Problem NewProblem(int64_t rows, int64_t vocab) {
  Problem p = {rows, vocab, RandomFloats(rows * vocab, 3, 4.0f), {}, {}};
  for (int64_t r = 0; r < rows; ++r) {
    p.inv_temperature.push_back(1.0f / (0.6f + 0.1f * static_cast<float>(r % 7)));
    p.targets.push_back(static_cast<int32_t>((r * 7919 + 13) % vocab));
  }
  return p;
}

// Slices of `width` tokens; state is filled for a backward.
struct OnDevice {
  DeviceVector<float> logits, inverse, max, sum, moment, x, row_max, row_sum, logprobs, entropy;
  DeviceVector<int32_t> targets;
  LogprobArgs args;

  OnDevice(const Problem& p, int64_t width)
      : logits(p.logits),
        inverse(p.inv_temperature),
        max(p.rows * NumVocabBlocks(p.vocab)),
        sum(max.size()),
        moment(max.size()),
        x(p.rows),
        row_max(p.rows),
        row_sum(p.rows),
        logprobs(p.rows),
        entropy(p.rows),
        targets(p.targets) {
    args = {targets.data(),
            inverse.data(),
            1,
            {max.data(), sum.data(), moment.data(), x.data(), row_max.data(), row_sum.data()}};
    for (int64_t begin = 0; begin < p.vocab; begin += width) {
      LogprobBlocks(Slice(p, begin, width), args, nullptr, LaunchOrder::kAfterPrevious);
    }
    LogprobMerge(args, p.rows, p.vocab, logprobs.data(), entropy.data(), nullptr);
  }
  LogitSlice Slice(const Problem& p, int64_t begin, int64_t width) {
    return {
        logits.data() + begin, p.rows, p.vocab, begin, std::min(width, p.vocab - begin), p.vocab};
  }
};

class LogprobVocabGpu : public testing::TestWithParam<int64_t> {};

TEST_P(LogprobVocabGpu, IsCloseToTheCpuAndTheSameForAnySlices) {
  QT_NEEDS_DEVICE();
  ThreadPool pool(4);
  const int64_t vocab = GetParam();
  const Problem p = NewProblem(9, vocab);
  std::vector<float> logprobs(p.rows), entropy(p.rows);
  LogprobForward(pool, p.logits.data(), p.targets, p.inv_temperature, vocab, logprobs.data(),
                 entropy.data());
  const OnDevice whole(p, vocab);
  const Row device = {whole.logprobs.Download(), whole.entropy.Download()};
  for (int64_t r = 0; r < p.rows; ++r) {
    EXPECT_NEAR(device.logprobs[r], logprobs[r], 1e-5f * (1.0f + std::fabs(logprobs[r])));
    EXPECT_NEAR(device.entropy[r], entropy[r], 2e-5f * (1.0f + std::fabs(entropy[r])));
  }
  for (const int64_t width : {128, 1024, 4096}) {
    const OnDevice sliced(p, width);
    EXPECT_EQ(CountDifferences(sliced.logprobs.Download(), device.logprobs), 0) << width;
    EXPECT_EQ(CountDifferences(sliced.entropy.Download(), device.entropy), 0) << width;
  }
}

INSTANTIATE_TEST_SUITE_P(Short, LogprobVocabGpu, testing::Values(1, 127, 128, 129, 5000));
INSTANTIATE_TEST_SUITE_P(Long, LogprobVocabGpu, testing::Values(151936));

TEST(LogprobGpu, MaskedLogitsHaveNoShare) {
  QT_NEEDS_DEVICE();
  Problem p = NewProblem(1, 1000);
  for (int64_t v = 0; v < 1000; ++v) {
    if (v != 700 && v != 13) p.logits[v] = -INFINITY;
  }
  p.logits[700] = p.logits[13] = 5.0f;
  const OnDevice device(p, 1000);
  EXPECT_NEAR(device.logprobs.Download()[0], -std::log(2.0f), 1e-6f);
  EXPECT_NEAR(device.entropy.Download()[0], std::log(2.0f), 1e-6f);
}

TEST(LogprobGpu, GradientIsCloseToTheCpu) {
  QT_NEEDS_DEVICE();
  ThreadPool pool(4);
  Problem p = NewProblem(6, 4096);
  p.inv_temperature.assign(6, 1.25f);
  const std::vector<float> dlogprobs = {1.0f, -0.5f, 0.0f, 2.0f, 0.25f, -1.0f};
  const std::vector<float> dentropy = {0.0f, 0.1f, 0.0f, -0.2f, 0.3f, 0.0f};
  OnDevice device(p, 4096);
  DeviceVector<float> dl(dlogprobs), dh(dentropy);
  DeviceVector<BFloat16> grad(p.logits.size());
  std::vector<float> cpu = p.logits;
  LogprobBackward(pool, cpu.data(), p.targets, 1.25f, p.vocab, dlogprobs.data(), dentropy.data());
  LogprobBackward(device.Slice(p, 0, p.vocab), device.args,
                  {dl.data(), dh.data(), device.entropy.data(), grad.data()}, nullptr);
  const std::vector<BFloat16> whole = grad.Download();
  for (size_t i = 0; i < whole.size(); ++i) {
    ASSERT_NEAR(ToFloat(whole[i]), cpu[i], 0.004f * std::fabs(cpu[i]) + 1e-6f) << i;
  }
  // A slice is a part of the whole.
  DeviceVector<BFloat16> part(p.rows * 1024);
  LogprobBackward(device.Slice(p, 1024, 1024), device.args,
                  {dl.data(), dh.data(), device.entropy.data(), part.data()}, nullptr);
  const std::vector<BFloat16> of_part = part.Download();
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t v = 0; v < 1024; ++v) {
      ASSERT_EQ(of_part[r * 1024 + v].bits, whole[r * p.vocab + 1024 + v].bits);
    }
  }
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
