#if defined(QT_WITH_CUDA)
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/device_test.h"
#include "kernels/cuda/sample.h"
#include "kernels/kernel_test.h"
#include "kernels/sample.h"

namespace quatrain::cuda {
namespace {

constexpr int64_t kMostTokens = 446464;

// Where rows lie; stride 0: one behind the other.
struct Place {
  int64_t offset = 0, stride = 0;
};

std::vector<int32_t> OnDevice(const std::vector<float>& logits,
                              const std::vector<SamplingRow>& rows, int64_t vocab,
                              const Place& place = {}) {
  std::vector<DeviceSamplingRow> sampling;
  for (const SamplingRow& row : rows) sampling.push_back(DeviceRowOf(row));
  DeviceVector<float> z(logits);
  DeviceVector<DeviceSamplingRow> s(sampling);
  DeviceVector<int32_t> tokens(rows.size());
  Sample({z.data() + place.offset, static_cast<int64_t>(rows.size()),
          place.stride > 0 ? place.stride : vocab, vocab, s.data(), tokens.data()},
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

class SampleVocabGpu : public testing::TestWithParam<int64_t> {};

TEST_P(SampleVocabGpu, DrawsTheCpusTokens) {
  QT_NEEDS_DEVICE();
  const int64_t vocab = GetParam();
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
  EXPECT_EQ(OnDevice(logits, rows, vocab), OnCpu(logits, rows, vocab));
}

INSTANTIATE_TEST_SUITE_P(Short, SampleVocabGpu, testing::Values(1, 33, 1024, 1025, 8192, 8193));
INSTANTIATE_TEST_SUITE_P(Long, SampleVocabGpu, testing::Values(151936));

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

// Of every kind of row, with each kind of limit.
std::vector<SamplingRow> RowsOfAllLimits(int64_t count) {
  std::vector<SamplingRow> rows;
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back({1.0f, i % 2 == 0 ? 1.0f : 0.9f, i % 4 < 2 ? 0 : 100 * (i % 3) + 1, 5, i});
  }
  return rows;
}

// Logits of an unusual form, by its name.
float LogitOf(std::string_view form, size_t i, float normal) {
  if (form == "Equal") return 0.25f;
  if (form == "AboutZero") return 1e-3f * normal;
  if (form == "FarApart") return 50.0f * normal;
  if (form == "Masked") return i % 50 == 3 ? normal : -std::numeric_limits<float>::infinity();
  if (form == "Ties") return 300.0f + std::round(8.0f * normal) / 8.0f;
  if (form == "Peaked") return i % 601 == 5 ? 14.0f + 2.0f * normal : normal;
  return -2000.0f + normal;
}

class SampleFormGpu : public testing::TestWithParam<const char*> {};

TEST_P(SampleFormGpu, DrawsTheCpusTokens) {
  QT_NEEDS_DEVICE();
  const std::vector<SamplingRow> rows = RowsOfAllLimits(12);
  for (const int64_t vocab : {3000, 20000}) {
    std::vector<float> logits = RandomFloats(std::ssize(rows) * vocab, 4);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = LogitOf(GetParam(), i, logits[i]);
    EXPECT_EQ(OnDevice(logits, rows, vocab), OnCpu(logits, rows, vocab)) << vocab;
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, SampleFormGpu,
                         testing::Values("Equal", "AboutZero", "FarApart", "Masked", "Ties",
                                         "Peaked", "FarBelowZero"),
                         [](const auto& each) { return std::string(each.param); });

TEST(SampleGpu, DrawsAtAnyTemperature) {
  QT_NEEDS_DEVICE();
  constexpr int64_t kVocab = 12000;
  std::vector<SamplingRow> rows = RowsOfAllLimits(48);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].temperature = std::array{0.01f, 0.1f, 3.0f, 100.0f}[i / 12];
  }
  const std::vector<float> logits = RandomFloats(std::ssize(rows) * kVocab, 6, 4.0f);
  EXPECT_EQ(OnDevice(logits, rows, kVocab), OnCpu(logits, rows, kVocab));
}

// Masses of 7 units, an equal share of what may be dropped 6.9: all of them together are more.
TEST(SampleGpu, KeepsWhatRoundedMassesNeed) {
  QT_NEEDS_DEVICE();
  constexpr int64_t kVocab = 151936;
  std::vector<SamplingRow> rows(4, {.top_p = 0.99999994f});
  for (size_t i = 0; i < rows.size(); ++i) rows[i].position = static_cast<int64_t>(i);
  std::vector<float> logits(rows.size() * kVocab,
                            static_cast<float>(std::log(6.508) - 44.0 * std::log(2.0)));
  for (size_t i = 0; i < rows.size(); ++i) logits[i * kVocab + 77] = 0.0f;
  EXPECT_EQ(OnDevice(logits, rows, kVocab), OnCpu(logits, rows, kVocab));
}

// Keys on both sides of zero meet in one level of a selection.
TEST(SampleGpu, TellsZerosFromSubnormals) {
  QT_NEEDS_DEVICE();
  constexpr int64_t kVocab = 3000;
  std::vector<SamplingRow> rows;
  for (const int64_t top_k : {999, 1000, 1001, 1002, 1500, 2000, 2500}) {
    rows.push_back({.top_k = top_k, .position = top_k});
  }
  std::vector<float> logits;
  for (size_t i = 0; i < rows.size() * kVocab; ++i) {
    const size_t token = i % kVocab;
    logits.push_back(token == 50      ? 5.0f
                     : token % 3 == 0 ? 0.0f
                     : token % 3 == 1 ? -1e-40f * static_cast<float>(token % 7 + 1)
                                      : -50.0f);
  }
  EXPECT_EQ(OnDevice(logits, rows, kVocab), OnCpu(logits, rows, kVocab));
  for (float& logit : logits) logit = logit == 5.0f ? 40.0f : logit;
  EXPECT_EQ(OnDevice(logits, rows, kVocab), OnCpu(logits, rows, kVocab));
}

TEST(SampleGpu, KeepsMoreThanThereAreFiniteLogits) {
  QT_NEEDS_DEVICE();
  constexpr int64_t kVocab = 20000;
  std::vector<SamplingRow> rows;
  for (int64_t i = 0; i < 8; ++i) {
    rows.push_back({.top_p = i % 2 == 0 ? 1.0f : 0.9f, .top_k = 300 << i, .position = i});
  }
  std::vector<float> logits = RandomFloats(std::ssize(rows) * kVocab, 5);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (i % 100 != 3) logits[i] = -std::numeric_limits<float>::infinity();
  }
  EXPECT_EQ(OnDevice(logits, rows, kVocab), OnCpu(logits, rows, kVocab));
}

// Logits near the largest float, and temperatures whose inverse is.
TEST(SampleGpu, DrawsAtTheEndsOfTheRange) {
  QT_NEEDS_DEVICE();
  constexpr int64_t kVocab = 9000;
  std::vector<SamplingRow> rows;
  std::vector<float> logits;
  for (int64_t i = 0; i < 12; ++i) {
    const bool is_hot = i % 2 == 0;
    rows.push_back(
        {is_hot ? 2.5e38f : 8e-39f, i % 3 == 0 ? 0.9f : 1.0f, i % 4 < 2 ? 677 : 0, 1, i});
    const std::vector<float> uniform = RandomFloats(kVocab, static_cast<uint64_t>(i));
    for (const float each : uniform) {
      const float share = std::fmod(std::fabs(each), 1.0f);
      logits.push_back(is_hot ? std::numeric_limits<float>::max() * (1.0f - 0.01f * share)
                              : -share);
    }
  }
  EXPECT_EQ(OnDevice(logits, rows, kVocab), OnCpu(logits, rows, kVocab));
}

TEST(SampleGpu, RowsLieAnywhere) {
  QT_NEEDS_DEVICE();
  constexpr int64_t kVocab = 9001;
  constexpr int64_t kStride = 9007;
  const std::vector<SamplingRow> rows = RowsOfAllLimits(12);
  std::vector<float> apart(rows.size() * kStride + 1, std::numeric_limits<float>::infinity());
  std::vector<float> dense;
  for (size_t r = 0; r < rows.size(); ++r) {
    const std::vector<float> row = RandomFloats(kVocab, r, 2.0f);
    std::copy(row.begin(), row.end(), apart.begin() + 1 + static_cast<int64_t>(r) * kStride);
    dense.insert(dense.end(), row.begin(), row.end());
  }
  EXPECT_EQ(OnDevice(apart, rows, kVocab, {.offset = 1, .stride = kStride}),
            OnCpu(dense, rows, kVocab));
}

TEST(SampleGpu, ServesTheLargestVocabulary) {
  QT_NEEDS_DEVICE();
  const std::vector<SamplingRow> rows = {{.top_p = 0.9f, .top_k = 101, .seed = 5}};
  const std::vector<float> logits = RandomFloats(kMostTokens, 8, 2.5f);
  EXPECT_EQ(OnDevice(logits, rows, kMostTokens), OnCpu(logits, rows, kMostTokens));
}

TEST(SampleGpu, RefusesALargerVocabulary) {
  const SampleArgs args{.rows = 1, .stride = kMostTokens + 1, .vocab_size = kMostTokens + 1};
  EXPECT_THROW(Sample(args, nullptr, LaunchOrder::kAfterPrevious), Error);
}

TEST(SampleGpu, ARowWithoutAUsableLogitIsMarked) {
  QT_NEEDS_DEVICE();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {1.0f,       std::nanf(""), kInfinity,  0.0f,
                                     -kInfinity, -kInfinity,    -kInfinity, 2.0f};
  EXPECT_EQ(OnDevice(logits, std::vector<SamplingRow>(4), 2),
            (std::vector<int32_t>{-1, -1, -1, 1}));
  // Another CTA has the logit than the one that stores the token.
  constexpr int64_t kVocab = 9000;
  std::vector<float> many = RandomFloats(3 * kVocab, 2);
  many[8000] = std::nanf("");
  many[kVocab + 8999] = kInfinity;
  std::fill(many.begin() + 2 * kVocab, many.end(), -kInfinity);
  EXPECT_EQ(OnDevice(many, std::vector<SamplingRow>(3), kVocab),
            (std::vector<int32_t>{-1, -1, -1}));
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
