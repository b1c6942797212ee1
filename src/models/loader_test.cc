#include "models/loader.h"

#include "models/test_support.h"
#include "quant/compressed_tensors.h"

namespace quatrain {
namespace {

const std::string kExpert = "model.layers.0.mlp.experts.1.gate_proj.weight";

class Loader : public ModelFolderTest {
 protected:
  static const Weight& Of(const ModelWeights& weights, const std::string& name) {
    const int index = weights.Find(name);
    EXPECT_GE(index, 0) << name;
    return weights[static_cast<size_t>(index)];
  }

  // The experts of `weights` as transformers 5 fuses them.
  static RawTensors Fused(std::map<std::string, at::Tensor> weights, at::ScalarType type,
                          DType dtype) {
    for (const int layer : {0, 2}) {
      const std::string experts = fmt::format("model.layers.{}.mlp.experts.", layer);
      std::vector<at::Tensor> gate_up, down;
      for (int expert = 0; expert < 4; ++expert) {
        const auto take = [&](const char* part) {
          const std::string name = fmt::format("{}{}.{}.weight", experts, expert, part);
          at::Tensor tensor = weights.at(name);
          weights.erase(name);
          return tensor;
        };
        const at::Tensor gate = take("gate_proj");
        gate_up.push_back(at::cat({gate, take("up_proj")}, 0));
        down.push_back(take("down_proj"));
      }
      weights[experts + "gate_up_proj"] = at::stack(gate_up);
      weights[experts + "down_proj"] = at::stack(down);
    }
    RawTensors tensors;
    for (const auto& [name, tensor] : weights) tensors[name] = RawOf(tensor.to(type), dtype);
    return tensors;
  }

  std::string LoadMessage(const RawTensors& tensors, const Json& config = SmallMoeConfig()) const {
    const auto folder = PutModel("bad", config, tensors);
    return MessageOf([&] { LoadWeights(Checkpoint(folder), at::kBFloat16); });
  }

  // The small model with one expert as codes.
  RawTensors Quantized(QuantizedWeight* codes) const {
    RawTensors tensors = Bf16Tensors(SmallMoe());
    const at::Tensor dense = SmallMoe().at(kExpert);
    ThreadPool pool(1);
    *codes = Quantize(
        pool, {kExpert, {static_cast<const BFloat16*>(dense.const_data_ptr()), 32 * 64}, 32, 64},
        QuantScheme{});
    const std::string module = kExpert.substr(0, kExpert.rfind('.'));
    tensors.erase(kExpert);
    const auto text = [](const auto& values) {
      return std::string(reinterpret_cast<const char*>(values.data()),
                         values.size() * sizeof(values[0]));
    };
    tensors[module + std::string(kPackedSuffix)] = {DType::kI32, {32, 8}, text(codes->packed)};
    tensors[module + std::string(kScaleSuffix)] = {DType::kBF16, {32, 2}, text(codes->scale)};
    tensors[module + std::string(kShapeSuffix)] = {
        DType::kI64, {2}, text(std::vector<int64_t>{32, 64})};
    return tensors;
  }
  static Json QuantizedConfig() {
    Json config = SmallMoeConfig();
    config["quantization_config"] = MakeQuantizationConfig(QuantScheme{});
    return config;
  }
};

TEST_F(Loader, PerExpertAndFusedTensorsGiveEqualWeights) {
  const ModelWeights split = LoadWeights(Checkpoint(PutSmallMoe("split")), at::kBFloat16);
  const auto folder =
      PutModel("fused", SmallMoeConfig(), Fused(SmallMoe(), at::kBFloat16, DType::kBF16));
  const Checkpoint checkpoint(folder);
  EXPECT_TRUE(checkpoint.UnknownTensors().empty());
  const ModelWeights fused = LoadWeights(checkpoint, at::kBFloat16);
  ASSERT_EQ(split.size(), fused.size());
  for (size_t i = 0; i < split.size(); ++i) {
    EXPECT_EQ(split[i].spec.name, fused[i].spec.name);
    EXPECT_TRUE(at::equal(split[i].dense, fused[i].dense)) << split[i].spec.name;
    EXPECT_TRUE(at::equal(split[i].dense, SmallMoe().at(split[i].spec.name)));
  }
}

TEST_F(Loader, Fp16AndFp32SourcesAreRoundedToBf16) {
  std::map<std::string, at::Tensor> fine;
  for (const auto& [name, tensor] : SmallMoe()) fine[name] = tensor.to(at::kFloat) * 1.003;
  for (const auto& [type, dtype] :
       {std::pair{at::kHalf, DType::kF16}, std::pair{at::kFloat, DType::kF32}}) {
    const auto folder = PutModel("fine", SmallMoeConfig(), Fused(fine, type, dtype));
    const ModelWeights weights = LoadWeights(Checkpoint(folder), at::kBFloat16);
    for (size_t i = 0; i < weights.size(); ++i) {
      const at::Tensor expected = fine.at(weights[i].spec.name).to(type).to(at::kBFloat16);
      EXPECT_TRUE(at::equal(weights[i].dense, expected)) << weights[i].spec.name;
    }
    const ModelWeights exact = LoadWeights(Checkpoint(folder), at::kFloat);
    EXPECT_TRUE(at::equal(Of(exact, kExpert).dense, fine.at(kExpert).to(type).to(at::kFloat)));
  }
}

TEST_F(Loader, AMissingTensorIsNamed) {
  RawTensors tensors = Bf16Tensors(SmallMoe());
  tensors.erase(kExpert);
  EXPECT_TRUE(Contains(LoadMessage(tensors), kExpert));
  tensors = Fused(SmallMoe(), at::kBFloat16, DType::kBF16);
  tensors.erase("model.layers.2.mlp.experts.down_proj");
  EXPECT_TRUE(Contains(LoadMessage(tensors), "model.layers.2.mlp.experts.0.down_proj.weight"));
}

TEST_F(Loader, AMisshapenTensorIsNamedWithBothShapes) {
  RawTensors tensors = Bf16Tensors(SmallMoe());
  tensors[kExpert].shape = {64, 32};
  const std::string text = LoadMessage(tensors);
  EXPECT_TRUE(Contains(text, kExpert));
  EXPECT_TRUE(Contains(text, "[32, 64]"));
  EXPECT_TRUE(Contains(text, "[64, 32]"));
  tensors = Fused(SmallMoe(), at::kBFloat16, DType::kBF16);
  tensors["model.layers.0.mlp.experts.gate_up_proj"].shape = {4, 32, 128};
  EXPECT_TRUE(Contains(LoadMessage(tensors), "model.layers.0.mlp.experts.gate_up_proj"));
}

TEST_F(Loader, AWeightOfIntegersIsRefused) {
  RawTensors tensors = Bf16Tensors(SmallMoe());
  tensors[kExpert].dtype = DType::kI16;
  const std::string text = LoadMessage(tensors);
  EXPECT_TRUE(Contains(text, kExpert));
  EXPECT_TRUE(Contains(text, "I16"));
}

TEST_F(Loader, CodesAreReadAsTheyStand) {
  QuantizedWeight codes;
  const RawTensors tensors = Quantized(&codes);
  const auto folder = PutModel("int4", QuantizedConfig(), tensors);
  const ModelWeights weights = LoadWeights(Checkpoint(folder), at::kBFloat16);
  const Weight& weight = Of(weights, kExpert);
  ASSERT_TRUE(weight.is_quantized());
  EXPECT_EQ(weight.codes.packed, codes.packed);
  EXPECT_EQ(weight.codes.group_size, 32);
  ThreadPool pool(1);
  const std::vector<BFloat16> dense = Dequantize(pool, codes);
  const at::Tensor values = weight.ToFloat32();
  for (size_t i = 0; i < dense.size(); ++i)
    ASSERT_EQ(values.data_ptr<float>()[i], ToFloat(dense[i])) << i;
  EXPECT_FALSE(Of(weights, "model.layers.0.mlp.experts.0.gate_proj.weight").is_quantized());
}

TEST_F(Loader, CodesWithAWrongOrMissingCompanionAreRefusedByName) {
  QuantizedWeight codes;
  const RawTensors good = Quantized(&codes);
  const std::string module = kExpert.substr(0, kExpert.rfind('.'));
  for (const std::string_view suffix : {kScaleSuffix, kShapeSuffix}) {
    RawTensors tensors = good;
    tensors.erase(module + std::string(suffix));
    EXPECT_TRUE(Contains(LoadMessage(tensors, QuantizedConfig()), module + std::string(suffix)));
  }
  RawTensors tensors = good;
  RawTensor& shape = tensors[module + std::string(kShapeSuffix)];
  const std::vector<int64_t> wrong = {64, 32};
  std::memcpy(shape.bytes.data(), wrong.data(), 16);
  EXPECT_TRUE(Contains(LoadMessage(tensors, QuantizedConfig()), "[64, 32]"));
  const std::vector<int32_t> narrow = {32, 64};
  shape.dtype = DType::kI32;
  shape.bytes = std::string(reinterpret_cast<const char*>(narrow.data()), 8);
  EXPECT_EQ(LoadMessage(tensors, QuantizedConfig()), "no error") << "older files have I32";
  tensors = good;
  tensors[module + std::string(kScaleSuffix)].bytes[0] = '\0';
  tensors[module + std::string(kScaleSuffix)].bytes[1] = '\0';
  EXPECT_TRUE(Contains(LoadMessage(tensors, QuantizedConfig()), "row 0, group 0"));
}

TEST_F(Loader, TensorsOutsideTheTableAreListed) {
  RawTensors tensors = Bf16Tensors(SmallMoe());
  tensors["model.layers.3.input_layernorm.weight"] = tensors["model.norm.weight"];
  tensors["a.vision.tower"] = {DType::kU8, {3}, "abc"};
  const Checkpoint checkpoint(PutModel("more", SmallMoeConfig(), tensors));
  EXPECT_EQ(checkpoint.UnknownTensors(),
            (std::vector<std::string>{"a.vision.tower", "model.layers.3.input_layernorm.weight"}));
}

TEST_F(Loader, ATiedHeadStoredBesideTheEmbeddingIsNoOtherWeight) {
  Json config = SmallMoeConfig();
  config["tie_word_embeddings"] = true;
  const Checkpoint checkpoint(PutModel("tied", config, Bf16Tensors(SmallMoe())));
  EXPECT_TRUE(checkpoint.UnknownTensors().empty());
  EXPECT_EQ(LoadWeights(checkpoint, at::kBFloat16).Find("lm_head.weight"), -1);
}

TEST_F(Loader, AllocateLikeTakesAnotherGroupSize) {
  QuantizedWeight codes;
  const RawTensors tensors = Quantized(&codes);
  const ModelWeights weights =
      LoadWeights(Checkpoint(PutModel("int4", QuantizedConfig(), tensors)), at::kBFloat16);
  const ModelWeights wider = AllocateLike(weights, 64);
  EXPECT_EQ(Of(wider, kExpert).codes.scale.size(), 32u);
  EXPECT_EQ(Of(AllocateLike(weights, 0), kExpert).codes.scale.size(), 64u);
  EXPECT_TRUE(Contains(MessageOf([&] { AllocateLike(weights, 48); }), kExpert));
}

}  // namespace
}  // namespace quatrain
