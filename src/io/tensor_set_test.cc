#include "io/tensor_set.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "io/test_support.h"

namespace quatrain {
namespace {

// One U8 tensor of four bytes.
std::string OneTensor(const std::string& name) {
  return SafetensorsText(
      fmt::format(R"({{"{}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}})", name), "abcd");
}

class TensorSetTest : public FolderTest {
 protected:
  void PutIndex(const Json& weight_map) const {
    Put("model.safetensors.index.json",
        DumpJson({{"metadata", {{"total_size", 8}}}, {"weight_map", weight_map}}));
  }
  std::string OpenMessage() const {
    return MessageOf([&] { TensorSet tensors(folder_); });
  }
};

TEST_F(TensorSetTest, OpensASingleFileByItsFolderOrByItself) {
  const auto path = Put("model.safetensors", OneTensor("a"));
  for (const auto& given : {folder_, path}) {
    const TensorSet tensors(given);
    EXPECT_EQ(tensors.Get("a").bytes.size(), 4u);
    EXPECT_EQ(tensors.total_bytes(), 4u);
    EXPECT_EQ(tensors.Find("b"), nullptr);
    EXPECT_TRUE(
        Contains(MessageOf([&] { tensors.Get("b"); }), "tensor 'b': missing among the 1 tensors"));
  }
}

TEST_F(TensorSetTest, OpensTheShardsOfAnIndex) {
  Put("model-00001-of-00002.safetensors", OneTensor("z"));
  Put("model-00002-of-00002.safetensors", OneTensor("a"));
  PutIndex({{"a", "model-00002-of-00002.safetensors"}, {"z", "model-00001-of-00002.safetensors"}});
  const TensorSet tensors(folder_);
  ASSERT_EQ(tensors.tensors().size(), 2u);
  EXPECT_EQ(tensors.tensors()[0].name, "z");
  EXPECT_EQ(*tensors.Get("a").file, folder_ / "model-00002-of-00002.safetensors");
  EXPECT_EQ(tensors.total_bytes(), 8u);
}

TEST_F(TensorSetTest, AMissingShardIsNamedWithATensorItHolds) {
  Put("model-00001-of-00003.safetensors", OneTensor("a"));
  PutIndex({{"a", "model-00001-of-00003.safetensors"},
            {"b", "model-00002-of-00003.safetensors"},
            {"c", "model-00003-of-00003.safetensors"}});
  const std::string message = OpenMessage();
  EXPECT_TRUE(Contains(message, (folder_ / "model-00002-of-00003.safetensors").string()));
  EXPECT_TRUE(Contains(message, "the shard is missing, with tensor 'b' (2 of 3 shards"));
}

TEST_F(TensorSetTest, ATensorThatItsShardDoesNotHoldIsNamed) {
  Put("one.safetensors", OneTensor("a"));
  PutIndex({{"a", "one.safetensors"}, {"b", "one.safetensors"}});
  const std::string message = OpenMessage();
  EXPECT_TRUE(Contains(message, (folder_ / "one.safetensors").string() + ": tensor 'b'"));
  EXPECT_TRUE(Contains(message, "places it in this shard, which does not hold it"));
}

TEST_F(TensorSetTest, ATensorThatTheIndexDoesNotPlaceIsLeftOutWithAWarning) {
  Put("one.safetensors", OneTensor("a"));
  Put("two.safetensors", OneTensor("stray"));
  Put("three.safetensors",
      SafetensorsText(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                      R"("c":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                      "xy"));
  PutIndex({{"a", "one.safetensors"}, {"c", "three.safetensors"}});
  testing::internal::CaptureStderr();
  const TensorSet tensors(folder_);
  const std::string logged = testing::internal::GetCapturedStderr();
  EXPECT_EQ(tensors.tensors().size(), 2u);
  EXPECT_EQ(tensors.Get("a").bytes.size(), 4u) << "the one of the shard that the index names";
  EXPECT_EQ(tensors.Find("stray"), nullptr);
  EXPECT_TRUE(Contains(logged, "warning"));
  EXPECT_TRUE(Contains(logged, "three.safetensors: 1 tensors"));
}

TEST_F(TensorSetTest, ABadIndexIsRefused) {
  const std::string name = "model.safetensors.index.json";
  Put(name, "{");
  EXPECT_TRUE(Contains(OpenMessage(), name + ": line 1"));
  for (const char* text : {"[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})"}) {
    Put(name, text);
    EXPECT_TRUE(Contains(OpenMessage(), name + ": no usable weight_map"));
  }
  for (const char* shard : {"../../secret.safetensors", "/etc/passwd", "model.bin", ""}) {
    PutIndex({{"a", shard}});
    EXPECT_TRUE(Contains(OpenMessage(), "tensor 'a': bad shard name"));
  }
  PutIndex({{"a", 7}});
  EXPECT_TRUE(Contains(OpenMessage(), "tensor 'a': bad shard name"));
  Put(name, R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})");
  EXPECT_TRUE(Contains(OpenMessage(), "\"a\" appears twice"));
  Put(name, "version https://git-lfs.github.com/spec/v1\n");
  EXPECT_TRUE(Contains(OpenMessage(), "git lfs pull"));
}

TEST_F(TensorSetTest, ADirectoryWithoutSafetensorsIsToldWhatToDo) {
  EXPECT_TRUE(Contains(OpenMessage(), folder_.string() + ": no tensors"));
  Put("model.gguf", "GGUF");
  EXPECT_TRUE(Contains(OpenMessage(), "a GGUF file"));
  Put("pytorch_model-00001-of-00002.bin", "PK");
  EXPECT_TRUE(Contains(OpenMessage(), "safe_serialization=True"));
  Put("model-00001-of-00002.safetensors", OneTensor("a"));
  EXPECT_TRUE(Contains(OpenMessage(), "Fetch model.safetensors.index.json too"));
}

TEST_F(TensorSetTest, AMegatronCheckpointIsRecognisedByEachOfItsMarks) {
  for (const char* mark : {"latest_checkpointed_iteration.txt", "iter_0000020/x", "common.pt",
                           "__0_0.distcp", ".metadata", "mp_rank_00/model_optim_rng.pt"}) {
    SetUp();
    Put(mark, "20");
    const std::string message = OpenMessage();
    EXPECT_TRUE(Contains(message, folder_.string()));
    EXPECT_TRUE(Contains(message, "a Megatron (torch_dist) checkpoint"));
    EXPECT_TRUE(Contains(message, "convert_torch_dist_to_hf.py"));
  }
}

}  // namespace
}  // namespace quatrain
