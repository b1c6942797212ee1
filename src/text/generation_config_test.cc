#include "text/generation_config.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"

namespace quatrain {
namespace {

const std::filesystem::path kModels = std::string(QT_SOURCE_DIR) + "/examples/models";

// A folder of its own for each test, removed behind it.
class GenerationConfigTest : public testing::Test {
 protected:
  GenerationConfigTest()
      : dir_(std::filesystem::path(testing::TempDir()) /
             (std::string("generation_config_") +
              testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  ~GenerationConfigTest() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& name, const std::string& content) {
    std::ofstream(dir_ / name) << content;
  }
  std::vector<int32_t> StopIds() { return LoadGenerationConfig(dir_, tokenizer_).stop_token_ids; }

  std::filesystem::path dir_;
  Tokenizer tokenizer_ = Tokenizer::Load(kModels / "tiny-llama");
};

TEST_F(GenerationConfigTest, TheExampleModelsStopAtImEnd) {
  for (const char* name : {"tiny-llama", "tiny-qwen3-moe"}) {
    EXPECT_EQ(LoadGenerationConfig(kModels / name, tokenizer_).stop_token_ids,
              std::vector<int32_t>{2});
  }
}

TEST_F(GenerationConfigTest, TheFirstFileThatNamesAStopTokenWins) {
  Write("tokenizer_config.json", R"({"eos_token": {"content": "<|im_end|>"}})");
  EXPECT_EQ(StopIds(), std::vector<int32_t>{2});
  Write("config.json", R"({"eos_token_id": 4})");
  EXPECT_EQ(StopIds(), std::vector<int32_t>{4});
  Write("generation_config.json", R"({"eos_token_id": [9, 7, 9], "bos_token_id": 1})");
  EXPECT_EQ(StopIds(), (std::vector<int32_t>{7, 9}));
  Write("generation_config.json", R"({"eos_token_id": null})");
  EXPECT_EQ(StopIds(), std::vector<int32_t>{4});
}

TEST_F(GenerationConfigTest, WithoutAnyFileThereIsNoStopToken) { EXPECT_TRUE(StopIds().empty()); }

TEST_F(GenerationConfigTest, BadValuesNameTheFile) {
  const auto expect_error = [&](const std::string& name, const std::string& content) {
    Write(name, content);
    try {
      StopIds();
      FAIL() << content;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
    std::filesystem::remove(dir_ / name);
  };
  expect_error("generation_config.json", "{");
  expect_error("generation_config.json", "[]");
  expect_error("generation_config.json", R"({"eos_token_id": "2"})");
  expect_error("generation_config.json", R"({"eos_token_id": -1})");
  expect_error("generation_config.json", R"({"eos_token_id": [2, 1e30]})");
  expect_error("config.json", R"({"eos_token_id": 2.5})");
  expect_error("tokenizer_config.json", R"({"eos_token": "<nothing>"})");
  expect_error("tokenizer_config.json", R"({"eos_token": 2})");
}

}  // namespace
}  // namespace quatrain
