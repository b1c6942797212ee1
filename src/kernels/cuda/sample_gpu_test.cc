#if defined(QT_WITH_CUDA)
#include <limits>

#include "kernels/cuda/device_test.h"
#include "kernels/cuda/sample.h"
#include "kernels/kernel_test.h"
#include "kernels/sample.h"

namespace quatrain::cuda {
namespace {

std::vector<int32_t> OnDevice(const std::vector<float>& logits,
                              const std::vector<SamplingRow>& rows, int64_t vocab) {
  std::vector<DeviceSamplingRow> sampling;
  for (const SamplingRow& row : rows) sampling.push_back(DeviceRowOf(row));
  DeviceVector<float> z(logits);
  DeviceVector<DeviceSamplingRow> s(sampling);
  DeviceVector<int32_t> tokens(rows.size());
  Sample({z.data(), static_cast<int64_t>(rows.size()), vocab, vocab, s.data(), tokens.data()},
         nullptr, LaunchOrder::kAfterPrevious);
  return tokens.Download();
}

std::vector<int32_t> OnCpu(const std::vector<float>& logits, const std::vector<SamplingRow>& rows,
                           int64_t vocab) {
  ThreadPool pool(8);
  std::vector<int32_t> tokens(rows.size());
  std::vector<float> logprobs(rows.size());
  SampleRows(pool, logits.data(), rows, vocab, tokens.data(), logprobs.data());
  return tokens;
}

TEST(SampleGpu, DrawsTheCpusTokens) {
  QT_NEEDS_DEVICE();
  for (const int64_t vocab : {1, 33, 1000, 151936}) {
    std::vector<SamplingRow> rows;
    for (const float temperature : {0.0f, 0.7f, 1.0f, 1.6f}) {
      for (const float top_p : {1.0f, 0.95f, 0.5f, 0.0f}) {
        for (const int64_t top_k : {0, 1, 20, 5000}) {
          rows.push_back({temperature, top_p, top_k, 7, static_cast<int64_t>(rows.size())});
        }
      }
    }
    const auto count = static_cast<int64_t>(rows.size());
    const std::vector<float> logits = RandomFloats(count * vocab, 9, 3.0f);
    EXPECT_EQ(OnDevice(logits, rows, vocab), OnCpu(logits, rows, vocab)) << vocab;
  }
}

TEST(SampleGpu, TiesKeepTheLowerIndex) {
  QT_NEEDS_DEVICE();
  constexpr int64_t kVocab = 3000;
  std::vector<SamplingRow> rows;
  for (int64_t i = 0; i < 64; ++i)
    rows.push_back({1.0f, i % 2 == 0 ? 1.0f : 0.4f, i % 3 * 7, 3, i});
  std::vector<float> logits(rows.size() * kVocab);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(i * 2654435761u % 5) - 2.0f;
  for (size_t i = 0; i < logits.size(); i += 7) logits[i] = -0.0f;
  EXPECT_EQ(OnDevice(logits, rows, kVocab), OnCpu(logits, rows, kVocab));
}

TEST(SampleGpu, ARowWithoutAUsableLogitIsMarked) {
  QT_NEEDS_DEVICE();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {1.0f,       std::nanf(""), kInfinity,  0.0f,
                                     -kInfinity, -kInfinity,    -kInfinity, 2.0f};
  EXPECT_EQ(OnDevice(logits, std::vector<SamplingRow>(4), 2),
            (std::vector<int32_t>{-1, -1, -1, 1}));
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
