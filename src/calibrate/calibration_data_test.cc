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

TEST(CalibrationData, AsStoredTakesTheFirstRows) {
  const CalibrationData data =
      Load({.source = kText, .num_samples = 5, .order = CalibrationOrder::kAsStored});
  EXPECT_EQ(data.rows, (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(CalibrationData, HeldOutRowsFollowTheSamplesAndChangeNoneOfThem) {
  CalibrationRequest request{.source = kText, .num_samples = 5, .seed = 3};
  const CalibrationData without = Load(request);
  request.num_heldout_samples = 2;
  const CalibrationData with = Load(request);
  EXPECT_EQ(with.samples, without.samples);
  ASSERT_EQ(with.heldout.size(), 2u);
  EXPECT_NE(with.fingerprint, without.fingerprint);
  request.num_samples = 7;
  const CalibrationData more = Load(request);
  EXPECT_EQ(more.samples[5], with.heldout[0]);
  EXPECT_EQ(more.samples[6], with.heldout[1]);
}

TEST(CalibrationData, SourceUsedUpBySamplesHoldsNothingOut) {
  const TemporaryFile file("few.txt", "one\ntwo\n");
  const CalibrationData data =
      Load({.source = file.path(), .num_samples = 2, .num_heldout_samples = 4});
  EXPECT_EQ(data.samples.size(), 2u);
  EXPECT_TRUE(data.heldout.empty());
}

TEST(CalibrationData, ConversationsGoThroughTheChatTemplate) {
  const TemporaryFile file("chat.jsonl",
                           "{\"messages\": [{\"role\": \"user\", \"content\": \"What is 2 + 2?\"},"
                           " {\"role\": \"assistant\", \"content\": \"4\"}]}\n");
  const CalibrationData data =
      Load({.source = file.path(), .text_column = "messages", .chat_template = kModel});
  ASSERT_EQ(data.samples.size(), 1u);
  const std::string text = TheTokenizer().Decode(data.samples[0]);
  EXPECT_NE(text.find("<|im_start|>user"), std::string::npos) << text;
  EXPECT_NE(text.find("What is 2 + 2?"), std::string::npos) << text;
}

TEST(CalibrationData, ValueThatIsNeitherTextNorConversationIsRefusedByItsRow) {
  const TemporaryFile file("numbers.jsonl", "{\"text\": \"one\"}\n{\"text\": 17}\n");
  const std::string message = MessageOf({.source = file.path(), .num_samples = 10});
  EXPECT_NE(message.find("row 2"), std::string::npos) << message;
  EXPECT_NE(message.find("17"), std::string::npos) << message;
}

TEST(CalibrationData, TokenBeyondTheVocabularyIsRefused) {
  EXPECT_THROW(LoadCalibrationData({.source = kText}, TheTokenizer(), 10), Error);
}

}  // namespace
}  // namespace quatrain
