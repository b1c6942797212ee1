#include "models/model_config.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

Json Example(const std::string& model) {
  const std::string path = std::string(QT_SOURCE_DIR) + "/examples/models/" + model;
  return ParseJson(ReadFile(path + "/config.json"), path);
}

Json Moe() { return Example("tiny-qwen3-moe"); }
Json Dense() { return Example("tiny-llama"); }

Json With(Json config, const std::string& field, const Json& value) {
  config[field] = value;
  return config;
}

// What the refusal of a configuration says; empty if it is taken.
std::string Refusal(const Json& config) {
  try {
    ParseModelConfig(config, "dir/config.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

void ExpectRefused(const Json& config, const std::vector<std::string>& words) {
  const std::string text = Refusal(config);
  for (const std::string& word : words)
    EXPECT_NE(text.find(word), std::string::npos) << "'" << word << "' in: " << text;
  EXPECT_NE(text.find("dir/config.json"), std::string::npos) << text;
}

TEST(ModelConfig, ReadsTheExamples) {
  const ModelConfig moe = ParseModelConfig(Moe(), "c");
  EXPECT_EQ(moe.num_experts, 8);
  EXPECT_EQ(moe.num_experts_per_tok, 2);
  EXPECT_EQ(moe.num_moe_layers(), 4);
  EXPECT_TRUE(moe.norm_topk_prob && moe.tie_word_embeddings && moe.has_qk_norm);
  const ModelConfig dense = ParseModelConfig(Dense(), "c");
  EXPECT_EQ(dense.num_experts, 0);
  EXPECT_EQ(dense.num_moe_layers(), 0);
  EXPECT_FALSE(dense.has_qk_norm);
}

TEST(ModelConfig, OldAndNewSpellingsMeanTheSame) {
  Json old = Moe();
  old.erase("rope_parameters");
  old["rope_theta"] = 25000.0;
  old["num_experts"] = old["num_local_experts"];
  old.erase("num_local_experts");
  const Json now =
      With(Moe(), "rope_parameters", {{"rope_theta", 25000.0}, {"rope_type", "default"}});
  const ModelConfig a = ParseModelConfig(old, "c"), b = ParseModelConfig(now, "c");
  EXPECT_EQ(a.num_experts, b.num_experts);
  EXPECT_EQ(a.rope.theta, 25000.0);
  EXPECT_EQ(b.rope.theta, 25000.0);

  Json scaling = {{"type", "linear"}, {"factor", 4.0}};
  const ModelConfig linear_old = ParseModelConfig(With(old, "rope_scaling", scaling), "c");
  scaling = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 25000.0}};
  const ModelConfig linear_new = ParseModelConfig(With(Moe(), "rope_parameters", scaling), "c");
  EXPECT_EQ(RopeInverseFrequencies(linear_old), RopeInverseFrequencies(linear_new));
  EXPECT_EQ(linear_old.rope.type, RopeConfig::Type::kLinear);
}

TEST(ModelConfig, LinearAndLlama3FrequenciesFollowTheirFormulas) {
  const Json plain = With(Dense(), "rope_parameters", {{"rope_theta", 500000.0}});
  const std::vector<double> base = RopeInverseFrequencies(ParseModelConfig(plain, "c"));
  EXPECT_EQ(base.front(), 1.0);
  const Json linear = {{"rope_theta", 500000.0}, {"rope_type", "linear"}, {"factor", 8.0}};
  const auto slowed =
      RopeInverseFrequencies(ParseModelConfig(With(Dense(), "rope_parameters", linear), "c"));
  for (size_t i = 0; i < base.size(); ++i) EXPECT_EQ(slowed[i], base[i] / 8.0);
  const Json llama3 = {{"rope_theta", 500000.0},  {"rope_type", "llama3"},
                       {"factor", 8.0},           {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 8192}};
  const auto blended =
      RopeInverseFrequencies(ParseModelConfig(With(Dense(), "rope_parameters", llama3), "c"));
  EXPECT_EQ(blended.front(), base.front());      // short waves stay
  EXPECT_EQ(blended.back(), base.back() / 8.0);  // waves longer than the context are slowed
}

TEST(ModelConfig, DenseLayersAmongMoeOnes) {
  const auto layers = [](Json config) { return ParseModelConfig(config, "c").is_moe_layer; };
  EXPECT_EQ(layers(With(Moe(), "mlp_only_layers", {0, 3})),
            (std::vector<bool>{false, true, true, false}));
  EXPECT_EQ(layers(With(Moe(), "decoder_sparse_step", 2)),
            (std::vector<bool>{false, true, false, true}));
  const ModelConfig both = ParseModelConfig(
      With(With(Moe(), "decoder_sparse_step", 2), "mlp_only_layers", Json::array({1})), "c");
  EXPECT_EQ(both.is_moe_layer, (std::vector<bool>{false, false, false, true}));
  EXPECT_EQ(both.num_moe_layers(), 1);
  EXPECT_EQ(both.moe_layer_index(3), 0);
}

TEST(ModelConfig, TheDefaultsAreTransformers) {
  Json config = Moe();
  for (const char* field : {"norm_topk_prob", "tie_word_embeddings", "rope_parameters"})
    config.erase(field);
  const ModelConfig parsed = ParseModelConfig(config, "c");
  EXPECT_FALSE(parsed.norm_topk_prob);
  EXPECT_FALSE(parsed.tie_word_embeddings);
  EXPECT_EQ(parsed.rope.theta, 10000.0);
  Json dense = Dense();
  dense.erase("head_dim");
  dense.erase("num_key_value_heads");
  const ModelConfig heads = ParseModelConfig(dense, "c");
  EXPECT_EQ(heads.head_dim, heads.hidden_size / heads.num_attention_heads);
  EXPECT_EQ(heads.num_key_value_heads, heads.num_attention_heads);
  Json qwen2 = With(Dense(), "model_type", "qwen2");
  qwen2.erase("attention_bias");
  EXPECT_TRUE(ParseModelConfig(qwen2, "c").has_qkv_bias);
}

TEST(ModelConfig, AnUnknownArchitectureListsTheKnownOnes) {
  ExpectRefused(With(Dense(), "model_type", "gpt_neox"),
                {"gpt_neox", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"});
}

TEST(ModelConfig, AFieldOfAWrongTypeOrRangeIsNamed) {
  const std::vector<std::pair<std::string, Json>> cases = {
      {"vocab_size", "x"},
      {"vocab_size", 2.5},
      {"hidden_size", 0},
      {"num_hidden_layers", -1},
      {"num_hidden_layers", int64_t{1} << 40},
      {"num_hidden_layers", uint64_t{1} << 63},
      {"max_position_embeddings", int64_t{1} << 39},
      {"rms_norm_eps", "x"},
      {"rms_norm_eps", -1.0},
      {"rope_theta", 0},
      {"partial_rotary_factor", 0.5},
      {"rope_parameters", Json::array({1})},
      {"tie_word_embeddings", "yes"},
      {"attention_bias", 1},
      {"hidden_act", "gelu"},
      {"head_dim", 7},
      {"num_key_value_heads", 3},
  };
  for (const auto& [field, value] : cases) ExpectRefused(With(Dense(), field, value), {field});
  const std::vector<std::pair<std::string, Json>> moe_cases = {
      {"num_experts_per_tok", 99}, {"num_local_experts", "x"}, {"mlp_only_layers", "x"},
      {"decoder_sparse_step", 0},  {"norm_topk_prob", 1},      {"mlp_only_layers", {0.5}},
  };
  for (const auto& [field, value] : moe_cases) ExpectRefused(With(Moe(), field, value), {field});
}

TEST(ModelConfig, AnglesThatWouldBeNoNumbersAreRefused) {
  const auto rope = [](const Json& value) { return With(Dense(), "rope_parameters", value); };
  ExpectRefused(rope({{"rope_theta", -5.0}}), {"rope_theta", "above 0"});
  ExpectRefused(rope({{"rope_type", "yarn"}, {"factor", 2.0}}), {"rope_type", "yarn"});
  ExpectRefused(rope({{"rope_type", "linear"}}), {"factor"});
  ExpectRefused(rope({{"rope_type", "linear"}, {"factor", 0.5}}), {"factor"});
  ExpectRefused(rope({{"rope_type", "llama3"},
                      {"factor", 8.0},
                      {"low_freq_factor", 4.0},
                      {"high_freq_factor", 4.0},
                      {"original_max_position_embeddings", 8192}}),
                {"high_freq_factor", "low_freq_factor"});
}

TEST(ModelConfig, AWindowShorterThanTheContextIsAnotherAttention) {
  const Json window = With(With(Dense(), "sliding_window", 16), "use_sliding_window", true);
  ExpectRefused(window, {"sliding_window"});
  EXPECT_EQ(Refusal(With(window, "use_sliding_window", false)), "");
  EXPECT_EQ(Refusal(With(window, "sliding_window", 1 << 20)), "");
  ExpectRefused(With(With(Dense(), "model_type", "mistral"), "sliding_window", 16),
                {"sliding_window"});
}

TEST(ModelConfig, TheDecoderOfAMultimodalModelIsFound) {
  const Json nested = {{"model_type", "some_vl"}, {"text_config", Dense()}};
  EXPECT_EQ(ParseModelConfig(nested, "c").model_type, "llama");
}

}  // namespace
}  // namespace quatrain
