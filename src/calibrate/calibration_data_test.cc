#include "calibrate/calibration_data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

const std::string kModel = std::string(QT_SOURCE_DIR) + "/examples/models/tiny-qwen3-moe";
const std::string kText = std::string(QT_SOURCE_DIR) + "/examples/data/calibration";
constexpr int64_t kVocabSize = 2048;

const Tokenizer& TheTokenizer() {
  static const Tokenizer tokenizer = Tokenizer::Load(kModel);
  return tokenizer;
}

CalibrationData Load(const CalibrationRequest& request) {
  return LoadCalibrationData(request, TheTokenizer(), kVocabSize);
}

class TemporaryFile {
 public:
  TemporaryFile(const std::string& name, const std::string& content)
      : path_(std::filesystem::path(testing::TempDir()) / name) {
    WriteFileAtomic(path_, content);
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::string MessageOf(const CalibrationRequest& request) {
  try {
    Load(request);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(CalibrationData, DrawsTheNumberAskedForAndCutsLongRows) {
  const CalibrationData data =
      Load({.source = kText, .num_samples = 100, .max_sequence_length = 64});
  ASSERT_EQ(data.samples.size(), 100u);
  EXPECT_EQ(std::set<int64_t>(data.rows.begin(), data.rows.end()).size(), 100u);
  int64_t num_tokens = 0;
  size_t longest = 0;
  for (const std::vector<int32_t>& ids : data.samples) {
    num_tokens += static_cast<int64_t>(ids.size());
    longest = std::max(longest, ids.size());
  }
  EXPECT_EQ(longest, 64u);
  EXPECT_EQ(data.num_tokens, num_tokens);
  EXPECT_EQ(data.num_rows, 2000);
}

TEST(CalibrationData, SeedDecidesTheRows) {
  const CalibrationRequest request{.source = kText, .num_samples = 20, .seed = 7};
  CalibrationRequest other = request;
  other.seed = 8;
  EXPECT_EQ(Load(request).fingerprint, Load(request).fingerprint);
  EXPECT_NE(Load(request).rows, Load(other).rows);
  EXPECT_NE(Load(request).fingerprint, Load(other).fingerprint);
}

TEST(CalibrationData, ShortSourceGivesAllItHasAndEmptyRowsArePassedOver) {
  const TemporaryFile file("short.jsonl",
                           "{\"text\": \"one\"}\n{\"text\": \"\"}\n{\"text\": null}\n"
                           "{\"text\": \"two and three\"}\n");
  const CalibrationData data = Load({.source = file.path(), .num_samples = 10});
  EXPECT_EQ(data.samples.size(), 2u);
  EXPECT_EQ(data.num_rows, 4);
  EXPECT_EQ(data.num_empty_rows, 2);
}

TEST(CalibrationData, SourceWithoutTextIsRefused) {
  const TemporaryFile file("empty.jsonl", "{\"text\": \"\"}\n{\"text\": null}\n");
  EXPECT_NE(MessageOf({.source = file.path()}).find("no row has any text"), std::string::npos);
}

TEST(CalibrationData, MissingColumnNamesThoseThatExist) {
  const std::string message = MessageOf({.source = kText, .text_column = "content"});
  EXPECT_NE(message.find("content"), std::string::npos) << message;
  EXPECT_NE(message.find("text"), std::string::npos) << message;
}

TEST(CalibrationData, TokenBeyondTheVocabularyIsRefused) {
  EXPECT_THROW(LoadCalibrationData({.source = kText}, TheTokenizer(), 10), Error);
}

}  // namespace
}  // namespace quatrain
