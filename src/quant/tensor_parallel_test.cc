#include "quant/tensor_parallel.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

// One letter a tensor-parallel size 1, 2, 4, 8: o(k), s(low), b(reaks).
std::string Verdicts(const std::string& module, int64_t out_features, int64_t in_features,
                     int64_t group_size) {
  const ParallelLinear linear = ClassifyLinear(module, out_features, in_features);
  const std::vector<ParallelRow> rows = TensorParallelTable({&linear, 1}, group_size);
  std::string letters;
  for (const ParallelCell& cell : rows.at(0).cells) {
    letters += ParallelVerdictName(cell.verdict)[0];
    EXPECT_EQ(cell.reason.empty(), cell.verdict == ParallelVerdict::kOk);
  }
  return letters;
}

TEST(TensorParallelTable, Qwen3_30B_A3B) {
  const std::string down = "model.layers.0.mlp.experts.0.down_proj";
  const std::string gate = "model.layers.0.mlp.experts.0.gate_proj";
  EXPECT_EQ(Verdicts(down, 2048, 768, 128), "oobb");
  EXPECT_EQ(Verdicts(gate, 768, 2048, 128), "oobb");
  EXPECT_EQ(Verdicts(down, 2048, 768, 64), "ooob");
  EXPECT_EQ(Verdicts(down, 2048, 768, 32), "ooos");
  EXPECT_EQ(Verdicts("model.layers.0.self_attn.o_proj", 2048, 4096, 32), "oooo");
}

TEST(TensorParallelTable, Qwen3_235B) {
  EXPECT_EQ(Verdicts("model.layers.0.mlp.experts.0.down_proj", 4096, 1536, 128), "ooob");
}

TEST(TensorParallelTable, DeepSeekV3AndKimiK2NeverBreak) {
  for (int64_t group_size : {32, 64, 128}) {
    EXPECT_EQ(Verdicts("model.layers.9.mlp.experts.5.down_proj", 7168, 2048, group_size), "oooo");
  }
}

TEST(TensorParallelTable, Qwen2_5_72B) {
  EXPECT_EQ(Verdicts("model.layers.0.mlp.down_proj", 8192, 29568, 128), "obbb");
  EXPECT_EQ(Verdicts("model.layers.0.mlp.gate_proj", 29568, 8192, 128), "ooss");
  EXPECT_EQ(Verdicts("model.layers.0.self_attn.q_proj", 8192, 8192, 128), "oooo");
}

TEST(TensorParallelTable, PerChannelHasNoGroupsToBreak) {
  EXPECT_EQ(Verdicts("model.layers.0.mlp.down_proj", 8192, 29568, 0), "osss");
}

TEST(TensorParallelTable, ADimensionThatCannotBeCutBreaks) {
  EXPECT_EQ(Verdicts("model.layers.0.self_attn.k_proj", 196, 1024, 32), "sssb");
}

TEST(TensorParallelTable, SaysWhyInNumbers) {
  const ParallelLinear linear = ClassifyLinear("model.layers.0.mlp.experts.0.down_proj", 2048, 768);
  const std::vector<ParallelRow> rows = TensorParallelTable({&linear, 1}, 128);
  EXPECT_EQ(rows[0].cells[2].tp, 4);
  EXPECT_EQ(rows[0].cells[2].reason, "intermediate size 768 / 4 = 192 is not whole groups of 128");
}

TEST(TensorParallelTable, MergesLayersAndExperts) {
  const std::vector<ParallelLinear> linears = {
      ClassifyLinear("model.layers.0.mlp.experts.0.down_proj", 128, 128),
      ClassifyLinear("model.layers.0.mlp.experts.1.down_proj", 128, 128),
      ClassifyLinear("model.layers.12.mlp.experts.1.down_proj", 128, 128),
      ClassifyLinear("model.layers.12.mlp.down_proj", 128, 128)};
  const std::vector<ParallelRow> rows = TensorParallelTable(linears, 32);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].linear.name, "model.layers.*.mlp.experts.*.down_proj");
  EXPECT_TRUE(rows[0].linear.is_expert);
  EXPECT_FALSE(rows[1].linear.is_expert);
}

TEST(ClassifyLinear, KnowsHowEnginesCutEachProjection) {
  EXPECT_EQ(ClassifyLinear("a.self_attn.q_proj", 1, 1).cut, ParallelCut::kColumn);
  EXPECT_EQ(ClassifyLinear("a.self_attn.kv_b_proj", 1, 1).cut, ParallelCut::kColumn);
  EXPECT_EQ(ClassifyLinear("a.self_attn.kv_a_proj_with_mqa", 1, 1).cut, ParallelCut::kReplicated);
  EXPECT_EQ(ClassifyLinear("a.mlp.down_proj", 1, 1).cut, ParallelCut::kRow);
  EXPECT_EQ(ClassifyLinear("a.block_sparse_moe.experts.3.w2", 1, 1).cut, ParallelCut::kRow);
  EXPECT_TRUE(ClassifyLinear("a.block_sparse_moe.experts.3.w1", 1, 1).is_expert);
  EXPECT_FALSE(ClassifyLinear("a.mlp.shared_experts.up_proj", 1, 1).is_expert);
}

}  // namespace
}  // namespace quatrain
