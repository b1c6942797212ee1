// What tests of models and of the folders above them share: a directory of a very small model with
// random weights.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/random.h"
#include "io/safetensors_writer.h"
#include "io/test_support.h"
#include "models/loader.h"

namespace quatrain {

// qwen3_moe of 3 layers, the middle one dense; 4 experts of which 2 are chosen.
inline Json SmallMoeConfig() {
  return {{"model_type", "qwen3_moe"},
          {"architectures", {"Qwen3MoeForCausalLM"}},
          {"torch_dtype", "float32"},
          {"vocab_size", 48},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"head_dim", 16},
          {"max_position_embeddings", 64},
          {"num_experts", 4},
          {"num_experts_per_tok", 2},
          {"moe_intermediate_size", 32},
          {"norm_topk_prob", true},
          {"mlp_only_layers", {1}},
          {"tie_word_embeddings", false}};
}

// Tensors to write, by name.
struct RawTensor {
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape = {};
  std::string bytes = {};
};
using RawTensors = std::map<std::string, RawTensor>;

inline RawTensor RawOf(const at::Tensor& tensor, DType dtype) {
  const at::Tensor whole = tensor.contiguous();
  return {dtype, whole.sizes().vec(),
          std::string(static_cast<const char*>(whole.const_data_ptr()), whole.nbytes())};
}

// Random BF16 values of every row of the table, as wide as a trained model's; norms near 1.
inline std::map<std::string, at::Tensor> RandomWeights(const ModelConfig& config, uint64_t seed) {
  std::map<std::string, at::Tensor> weights;
  for (const WeightSpec& spec : WeightTableOf(config)) {
    at::Tensor values = EmptyTensor(spec.shape, at::kFloat);
    const float center = spec.role == WeightRole::kNorm ? 1.0f : 0.0f;
    for (int64_t i = 0; i < values.numel(); ++i) {
      const double u = UniformDouble(seed, weights.size(), static_cast<uint64_t>(i));
      values.data_ptr<float>()[i] = center + static_cast<float>(u - 0.5) * 0.4f;
    }
    weights[spec.name] = values.to(at::kBFloat16);
  }
  return weights;
}

// Folders of such models.
class ModelFolderTest : public FolderTest {
 protected:
  std::filesystem::path PutModel(const std::string& name, const Json& config,
                                 const RawTensors& tensors) const {
    const std::filesystem::path folder = folder_ / name;
    std::filesystem::create_directories(folder);
    Put(name + "/config.json", config.dump());
    std::vector<TensorPlan> plan;
    for (const auto& [tensor, raw] : tensors) plan.push_back({tensor, raw.dtype, raw.shape});
    SafetensorsWriter writer(folder, plan);
    for (const auto& [tensor, raw] : tensors)
      writer.Write(tensor, std::as_bytes(std::span(raw.bytes)));
    writer.Finish();
    return folder;
  }

  static RawTensors Bf16Tensors(const std::map<std::string, at::Tensor>& weights) {
    RawTensors tensors;
    for (const auto& [name, tensor] : weights) tensors[name] = RawOf(tensor, DType::kBF16);
    return tensors;
  }

  static std::map<std::string, at::Tensor> SmallMoe(uint64_t seed = 1) {
    return RandomWeights(ParseModelConfig(SmallMoeConfig(), "small"), seed);
  }
  std::filesystem::path PutSmallMoe(const std::string& name) const {
    return PutModel(name, SmallMoeConfig(), Bf16Tensors(SmallMoe()));
  }
};

}  // namespace quatrain
