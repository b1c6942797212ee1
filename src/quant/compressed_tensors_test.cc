#include "quant/compressed_tensors.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "base/file.h"
#include "quant/module_match.h"

namespace quatrain {
namespace {

const char kMinimal[] =
    R"({"config_groups":{"group_0":{"input_activations":null,"output_activations":null,"targets":["Linear"],)"
    R"("weights":{"actorder":null,"block_structure":null,"dynamic":false,"group_size":32,"num_bits":4,)"
    R"("observer":"minmax","observer_kwargs":{},"strategy":"group","symmetric":true,"type":"int"}}},)"
    R"("format":"pack-quantized","ignore":["lm_head","re:.*mlp.gate$"],"kv_cache_scheme":null,)"
    R"("quant_method":"compressed-tensors","quantization_status":"compressed"})";

std::string MessageOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_NE(error.code(), ErrorCode::kInternal);
    return error.what();
  }
  return "no error";
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Changes one value of the minimal form by its JSON pointer and parses the result.
QuantScheme ParseWith(const std::string& pointer, const Json& value) {
  Json config = ParseJson(kMinimal, "minimal");
  config[Json::json_pointer(pointer)] = value;
  return ParseQuantizationConfig(config, "config.json: quantization_config");
}

const std::string kWeights = "/config_groups/group_0/weights";

TEST(CompressedTensors, WritesTheMinimalFormByteForByte) {
  const QuantScheme scheme{.ignore = {"lm_head", "re:.*mlp.gate$"}};
  EXPECT_EQ(DumpJson(MakeQuantizationConfig(scheme)), kMinimal);
}

TEST(CompressedTensors, WritesChannelsWithoutAGroupSize) {
  const Json config = MakeQuantizationConfig({.num_bits = 8, .group_size = 0});
  const Json& weights = config.at("config_groups").at("group_0").at("weights");
  EXPECT_EQ(weights.at("strategy"), "channel");
  EXPECT_TRUE(weights.at("group_size").is_null());
  EXPECT_EQ(weights.at("num_bits"), 8);
}

TEST(CompressedTensors, ReadsWhatItWrites) {
  for (int num_bits : {4, 8}) {
    for (int64_t group_size : {0, 32, 64, 128}) {
      const QuantScheme scheme{
          .num_bits = num_bits, .group_size = group_size, .ignore = {"lm_head", "re:.*gate$"}};
      const Json model = {{"model_type", "x"},
                          {"quantization_config", MakeQuantizationConfig(scheme)}};
      const std::optional<QuantScheme> read = FindQuantScheme(model, "config.json");
      ASSERT_TRUE(read.has_value());
      EXPECT_EQ(read->num_bits, num_bits);
      EXPECT_EQ(read->group_size, group_size);
      EXPECT_EQ(read->ignore, scheme.ignore);
      EXPECT_TRUE(read->symmetric);
    }
  }
}

TEST(CompressedTensors, ReadsTheConfigurationsOfLlmCompressor) {
  const std::string folder = std::string(QT_SOURCE_DIR) + "/tests/goldens/compressed-tensors/";
  struct Case {
    const char* name;
    int64_t group_size;
    const char* quantized;
    const char* dense;
  };
  const Case cases[] = {
      {"tiny-llama-gptq-w4-g128-all", 128, "model.layers.0.self_attn.q_proj", "lm_head"},
      {"tiny-qwen3-moe-gptq-w4-g32-all", 32, "model.layers.3.mlp.experts.7.up_proj",
       "model.layers.3.mlp.gate"},
      {"tiny-qwen3-moe-rtn-w4-g32-experts", 32, "model.layers.3.mlp.experts.7.up_proj",
       "model.layers.3.self_attn.k_proj"}};
  for (const Case& one : cases) {
    const std::string path = folder + one.name + "/config.json";
    const std::optional<QuantScheme> scheme =
        FindQuantScheme(ParseJson(ReadFile(path), path), path);
    ASSERT_TRUE(scheme.has_value()) << path;
    EXPECT_EQ(scheme->num_bits, 4);
    EXPECT_EQ(scheme->group_size, one.group_size);
    EXPECT_TRUE(scheme->symmetric);
    const QuantizedModules modules(*scheme, path);
    EXPECT_TRUE(modules.Contains(one.quantized)) << path;
    EXPECT_FALSE(modules.Contains(one.dense)) << path;
  }
}

TEST(CompressedTensors, AModelWithoutConfigurationHasNoScheme) {
  EXPECT_FALSE(FindQuantScheme(Json{{"model_type", "llama"}}, "c").has_value());
  EXPECT_FALSE(FindQuantScheme(Json{{"quantization_config", nullptr}}, "c").has_value());
}

TEST(CompressedTensors, ReadsANestedTextConfig) {
  const Json config = {{"model_type", "x"},
                       {"text_config", {{"quantization_config", ParseJson(kMinimal, "minimal")}}}};
  const std::optional<QuantScheme> scheme = FindQuantScheme(config, "config.json");
  ASSERT_TRUE(scheme.has_value());
  EXPECT_EQ(scheme->group_size, 32);
}

TEST(CompressedTensors, AcceptsWhatDoesNotChangeAWeight) {
  for (const Json& order : {Json("static"), Json("weight"), Json("group"), Json(nullptr)}) {
    EXPECT_EQ(ParseWith(kWeights + "/actorder", order).group_size, 32);
  }
  EXPECT_EQ(ParseWith(kWeights + "/some_new_field", nullptr).group_size, 32);
  EXPECT_EQ(ParseWith("/version", "0.9.4").group_size, 32);
  EXPECT_EQ(ParseWith("/sparsity_config", Json::object()).group_size, 32);
  EXPECT_EQ(ParseWith("/global_compression_ratio", 1.4).group_size, 32);
  EXPECT_FALSE(ParseWith(kWeights + "/symmetric", false).symmetric);
  EXPECT_EQ(ParseWith(kWeights + "/strategy", nullptr).group_size, 32);
  Json channel = ParseJson(kMinimal, "minimal");
  channel[Json::json_pointer(kWeights + "/strategy")] = "channel";
  channel[Json::json_pointer(kWeights + "/group_size")] = -1;
  EXPECT_EQ(ParseQuantizationConfig(channel, "c").group_size, 0);
}

TEST(CompressedTensors, RefusesWhatItDoesNotComputeByFieldAndValue) {
  struct Case {
    std::string pointer;
    Json value;
    const char* expected;
    const char* found;
  };
  const Case cases[] = {
      {"/quant_method", "gptq", ".quant_method", "found \"gptq\""},
      {"/format", "float-quantized", ".format", "'pack-quantized'"},
      {"/quantization_status", "frozen", ".quantization_status", "'compressed'"},
      {"/kv_cache_scheme", {{"num_bits", 8}}, ".kv_cache_scheme", "num_bits"},
      {"/transform_config", {{"hadamard", 1}}, ".transform_config", "hadamard"},
      {"/sparsity_config", {{"format", "sparse-24"}}, ".sparsity_config", "sparse-24"},
      {"/unheard_of", 1, ".unheard_of", "no such field"},
      {"/config_groups", Json::object(), ".config_groups", "one group"},
      {"/ignore", "lm_head", ".ignore", "a list of strings"},
      {kWeights, nullptr, ".config_groups.group_0.weights", "an object"},
      {kWeights + "/strategy", "block", ".weights.strategy", "'group' or 'channel'"},
      {kWeights + "/type", "float", ".weights.type", "'int'"},
      {kWeights + "/num_bits", 3, ".weights", "4 or 8"},
      {kWeights + "/group_size", 48, ".weights", "found 48"},
      {kWeights + "/group_size", nullptr, ".weights.group_size", "32, 64 or 128"},
      {kWeights + "/dynamic", true, ".weights.dynamic", "false"},
      {kWeights + "/actorder", "sideways", ".weights.actorder", "sideways"},
      {kWeights + "/block_structure", {128, 128}, ".weights.block_structure", "128"},
      {"/config_groups/group_0/input_activations",
       {{"num_bits", 8}},
       ".input_activations",
       "num_bits"},
      {"/config_groups/group_0/format", "nvfp4-pack-quantized", ".group_0.format", "nvfp4"},
      {"/config_groups/group_0/targets", Json::array(), ".group_0.targets", "Linear"}};
  for (const Case& one : cases) {
    const std::string message = MessageOf([&] { ParseWith(one.pointer, one.value); });
    EXPECT_TRUE(Contains(message, one.expected)) << one.pointer << ": " << message;
    EXPECT_TRUE(Contains(message, one.found)) << one.pointer << ": " << message;
    EXPECT_TRUE(Contains(message, "config.json")) << message;
  }
}

TEST(CompressedTensors, MergesGroupsOfOneSchemeAndRefusesMixedOnes) {
  Json config = ParseJson(kMinimal, "minimal");
  Json second = config["config_groups"]["group_0"];
  second["targets"] = {"re:.*extra.*"};
  config["config_groups"]["group_1"] = second;
  EXPECT_EQ(ParseQuantizationConfig(config, "c").targets,
            (std::vector<std::string>{"Linear", "re:.*extra.*"}));
  config["config_groups"]["group_1"]["weights"]["num_bits"] = 8;
  const std::string message = MessageOf([&] { ParseQuantizationConfig(config, "c"); });
  EXPECT_TRUE(Contains(message, "one number of bits")) << message;
}

}  // namespace
}  // namespace quatrain
