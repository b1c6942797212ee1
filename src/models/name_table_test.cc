#include "models/name_table.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "io/safetensors_writer.h"
#include "models/loader.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

class NameTableTest : public testing::Test {
 protected:
  NameTableTest() : folder_(fs::path(testing::TempDir()) / fmt::format("name_table_{}", getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~NameTableTest() override { fs::remove_all(folder_); }

  // A table of BF16 zeros of these names and shapes.
  std::vector<WeightSpec> TableOf(
      const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors,
      const Json& config = Json::object()) const {
    std::vector<TensorPlan> plan;
    for (const auto& [name, shape] : tensors) plan.push_back({name, DType::kBF16, shape});
    SafetensorsWriter writer(folder_, plan);
    for (const TensorPlan& tensor : plan) {
      writer.Write(tensor.name, std::vector<std::byte>(*BytesOf(tensor.dtype, tensor.shape)));
    }
    writer.Finish();
    return WeightTableFromNames(TensorSet(folder_), config);
  }

  fs::path folder_;
};

std::string Describe(const std::vector<WeightSpec>& table) {
  std::string text;
  for (const WeightSpec& spec : table) {
    text += fmt::format("{} {} [{}] layer {} expert {}\n", spec.name, static_cast<int>(spec.role),
                        fmt::join(spec.shape, ", "), spec.layer, spec.expert);
  }
  return text;
}

TEST_F(NameTableTest, KnownFamiliesHaveTheSameTableByNamesAlone) {
  for (const char* model : {"tiny-llama", "tiny-qwen3-moe"}) {
    const Checkpoint known(std::string(QT_SOURCE_DIR) + "/examples/models/" + model);
    std::vector<WeightSpec> expected = known.table();
    std::vector<WeightSpec> found =
        WeightTableFromNames(known.repo().tensors(), known.repo().config());
    // The order inside a layer is another.
    for (auto* table : {&expected, &found}) {
      std::sort(table->begin(), table->end(),
                [](const WeightSpec& a, const WeightSpec& b) { return a.name < b.name; });
    }
    EXPECT_EQ(Describe(found), Describe(expected)) << model;
  }
}

TEST_F(NameTableTest, DeepSeekNamesAreUnderstoodAndItsMtpLayerIsNot) {
  const std::vector<WeightSpec> table =
      TableOf({{"model.layers.0.self_attn.q_a_proj.weight", {8, 16}},
               {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight", {8, 16}},
               {"model.layers.0.self_attn.q_a_layernorm.weight", {8}},
               {"model.layers.0.mlp.gate.weight", {2, 16}},
               {"model.layers.0.mlp.gate.e_score_correction_bias", {2}},
               {"model.layers.0.mlp.shared_experts.up_proj.weight", {8, 16}},
               {"model.layers.0.mlp.experts.10.up_proj.weight", {8, 16}},
               {"model.layers.0.mlp.experts.9.up_proj.weight", {8, 16}},
               {"model.layers.1.self_attn.q_a_proj.weight", {8, 16}},
               {"model.layers.1.eh_proj.weight", {8, 16}},
               {"visual.blocks.0.mlp.gate_proj.weight", {8, 16}},
               {"model.embed_tokens.weight", {32, 16}}},
              {{"num_hidden_layers", 1}});
  EXPECT_EQ(Describe(table),
            "model.embed_tokens.weight 0 [32, 16] layer -1 expert -1\n"
            "model.layers.0.mlp.experts.9.up_proj.weight 7 [8, 16] layer 0 expert 9\n"
            "model.layers.0.mlp.experts.10.up_proj.weight 7 [8, 16] layer 0 expert 10\n"
            "model.layers.0.mlp.gate.weight 4 [2, 16] layer 0 expert -1\n"
            "model.layers.0.mlp.shared_experts.up_proj.weight 6 [8, 16] layer 0 expert -1\n"
            "model.layers.0.self_attn.kv_a_proj_with_mqa.weight 5 [8, 16] layer 0 expert -1\n"
            "model.layers.0.self_attn.q_a_layernorm.weight 2 [8] layer 0 expert -1\n"
            "model.layers.0.self_attn.q_a_proj.weight 5 [8, 16] layer 0 expert -1\n");
}

TEST_F(NameTableTest, FusedExpertsAreRowsOfTheirOwnUnlessTheirLayoutIsAnother) {
  const std::vector<WeightSpec> table =
      TableOf({{"model.layers.0.mlp.experts.gate_up_proj", {2, 12, 16}},
               {"model.layers.0.mlp.experts.down_proj", {2, 16, 6}}});
  ASSERT_EQ(table.size(), 6u);
  EXPECT_EQ(table[0].name, "model.layers.0.mlp.experts.0.down_proj.weight");
  EXPECT_EQ(table[1].shape, (std::vector<int64_t>{6, 16}));
  // Transposed, as gpt-oss and Llama 4 store them: [E, D, 2 I].
  EXPECT_TRUE(TableOf({{"model.layers.0.mlp.experts.gate_up_proj", {2, 16, 12}},
                       {"model.layers.0.mlp.experts.down_proj", {2, 6, 16}}})
                  .empty());
}

}  // namespace
}  // namespace quatrain
