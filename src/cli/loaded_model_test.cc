#include "cli/loaded_model.h"

#include "io/test_support.h"

namespace quatrain {
namespace {

class LoadedModelTest : public FolderTest {};

TEST_F(LoadedModelTest, OnlyIntegersOfTheVocabularyAreTokenIds) {
  EXPECT_EQ(TokenIdsOf(Json::parse("[0, 9, 3]"), 10, "ids"), (std::vector<int32_t>{0, 9, 3}));
  EXPECT_TRUE(TokenIdsOf(Json::array(), 10, "ids").empty());
  for (const char* bad : {"[10]", "[-1]", "[2.0]", "[1, \"a\"]", "[null]", "[true]", "[4294967297]",
                          "[18446744073709551615]", "[1e30]"}) {
    const std::string text = MessageOf([&] { TokenIdsOf(Json::parse(bad), 10, "ids"); });
    EXPECT_TRUE(Contains(text, "integers from 0 to 9")) << bad;
  }
  EXPECT_TRUE(Contains(MessageOf([] { TokenIdsOf("x", 10, "prompt"); }), "prompt"));
}

TEST_F(LoadedModelTest, ATokenThatTheModelDoesNotKnowIsRefused) {
  const std::filesystem::path source =
      std::filesystem::path(QT_SOURCE_DIR) / "examples/models/tiny-llama";
  std::filesystem::copy(source, folder_ / "model", std::filesystem::copy_options::recursive);
  Json tokenizer = ParseJson(ReadFile(source / "tokenizer.json"), "tokenizer");
  tokenizer["added_tokens"].push_back({{"id", 5000},
                                       {"content", "<extra>"},
                                       {"single_word", false},
                                       {"lstrip", false},
                                       {"rstrip", false},
                                       {"normalized", false},
                                       {"special", true}});
  Put("model/tokenizer.json", tokenizer.dump());
  const LoadedModel model((folder_ / "model").string(), "bfloat16");
  EXPECT_EQ(EncodeFor(model, "a b"), model.tokenizer.Encode("a b"));
  const std::string text = MessageOf([&] { EncodeFor(model, "a <extra> b"); });
  EXPECT_TRUE(Contains(text, "5000"));
  EXPECT_TRUE(Contains(text, "<extra>"));
}

TEST_F(LoadedModelTest, Float32IsTheTypeOfTheActivations) {
  const std::string directory = std::string(QT_SOURCE_DIR) + "/examples/models/tiny-qwen3-moe";
  EXPECT_EQ(LoadedModel(directory, "float32").decoder.activation_type(), at::kFloat);
  const LoadedModel model(directory, "bfloat16");
  EXPECT_EQ(model.decoder.activation_type(), at::kBFloat16);
  EXPECT_FALSE(model.stop_token_ids.empty());
}

}  // namespace
}  // namespace quatrain
