#include "io/hf_repo.h"

#include <gtest/gtest.h>

#include "io/test_support.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

class HfRepoTest : public FolderTest {
 protected:
  std::string OpenMessage(const fs::path& path) const {
    return MessageOf([&] { HfRepo repo(path); });
  }
};

TEST_F(HfRepoTest, OpensAModelDirectory) {
  const HfRepo repo(fs::path(QT_SOURCE_DIR) / "examples" / "models" / "tiny-llama");
  EXPECT_EQ(repo.config()["model_type"], "llama");
  ASSERT_TRUE(repo.generation_config().has_value());
  EXPECT_TRUE(repo.generation_config()->contains("eos_token_id"));
  EXPECT_EQ(repo.tensors().Get("model.embed_tokens.weight").dtype, DType::kBF16);
  EXPECT_EQ(repo.AuxiliaryFiles(),
            (std::vector<std::string>{"chat_template.jinja", "generation_config.json",
                                      "tokenizer.json", "tokenizer_config.json"}));
}

TEST_F(HfRepoTest, CopiesWhatTravelsWithAModelAndNothingElse) {
  Put("model/config.json", "{}");
  Put("model/model.safetensors", SafetensorsText("{}", ""));
  const std::vector<std::string> kept = {"added_tokens.json",
                                         "chat_template.jinja",
                                         "chat_template.json",
                                         "configuration_deepseek.py",
                                         "generation_config.json",
                                         "merges.txt",
                                         "special_tokens_map.json",
                                         "tiktoken.model",
                                         "tokenizer.json",
                                         "tokenizer_config.json",
                                         "vocab.json"};
  for (const std::string& name : kept)
    Put("model/" + name, name == "generation_config.json" ? "{}" : name);
  for (const char* name :
       {"README.md", "LICENSE", "quatrain.json", ".gitattributes", "figures/a.py"}) {
    Put(fmt::format("model/{}", name), "x");
  }
  // The hub's cache holds links to blobs.
  Put("blob", "linked");
  fs::remove(folder_ / "model" / "merges.txt");
  fs::create_symlink(folder_ / "blob", folder_ / "model" / "merges.txt");

  const HfRepo repo(folder_ / "model");
  EXPECT_EQ(repo.AuxiliaryFiles(), kept);
  fs::create_directories(folder_ / "copy");
  repo.CopyAuxiliaryFiles(folder_ / "copy");
  size_t num_copied = 0;
  for (const auto& entry : fs::directory_iterator(folder_ / "copy")) {
    EXPECT_FALSE(entry.is_symlink());
    ++num_copied;
  }
  EXPECT_EQ(num_copied, kept.size());
  EXPECT_EQ(ReadFile(folder_ / "copy" / "merges.txt"), "linked");
  EXPECT_EQ(ReadFile(folder_ / "copy" / "vocab.json"), "vocab.json");
}

TEST_F(HfRepoTest, ANameOfTheHubIsToldHowToDownload) {
  const std::string message = OpenMessage("Qwen/Qwen3-30B-A3B-that-is-not-here");
  EXPECT_TRUE(Contains(
      message,
      "Qwen/Qwen3-30B-A3B-that-is-not-here: expected a local Hugging Face model directory"));
  EXPECT_TRUE(Contains(message, "huggingface-cli download"));
  EXPECT_TRUE(Contains(OpenMessage(Put("model.safetensors", "x")), "found a file"));
}

TEST_F(HfRepoTest, ADirectoryThatIsNoModelIsRefused) {
  EXPECT_TRUE(Contains(OpenMessage(folder_), folder_.string() + ": no config.json"));
  Put("config.json", "[1]");
  EXPECT_TRUE(Contains(OpenMessage(folder_), "config.json: expected a JSON object, found array"));
  Put("config.json", "{\"a\":}");
  EXPECT_TRUE(Contains(OpenMessage(folder_), "config.json: line 1, column 6: not JSON"));
  Put("config.json", "version https://git-lfs.github.com/spec/v1\n");
  EXPECT_TRUE(Contains(OpenMessage(folder_), "git lfs pull"));
  Put("config.json", "{}");
  EXPECT_TRUE(Contains(OpenMessage(folder_), "no tensors"));
  Put("model.safetensors", SafetensorsText("{}", ""));
  Put("generation_config.json", "7");
  EXPECT_TRUE(Contains(OpenMessage(folder_), "generation_config.json: expected a JSON object"));
}

TEST_F(HfRepoTest, AMegatronCheckpointIsToldWhatToConvert) {
  Put("latest_checkpointed_iteration.txt", "20");
  Put("iter_0000020/common.pt", "x");
  EXPECT_TRUE(Contains(OpenMessage(folder_), "a Megatron (torch_dist) checkpoint"));
  EXPECT_TRUE(Contains(OpenMessage(folder_ / "iter_0000020"), "it holds common.pt"));
}

}  // namespace
}  // namespace quatrain
