// config.json -> ModelConfig: HF field names kept, old and new spellings read, one recipe for the
// decoder.
//
// Known model_type: llama, mistral, qwen2, qwen3, qwen3_moe. What differs between them is fields of
// this struct, set in src/models/families.cc; the decoder asks the fields and never the name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace quatrain {

// How angles are derived from positions (HF rope_parameters / rope_scaling).
struct RopeConfig {
  enum class Type { kDefault, kLinear, kLlama3 };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                             // linear, llama3
  double low_freq_factor = 1.0;                    // llama3
  double high_freq_factor = 4.0;                   // llama3
  double original_max_position_embeddings = 8192;  // llama3
};

struct ModelConfig {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // dense MLP
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  RopeConfig rope;

  // Mixture of experts; num_experts == 0 means none.
  int64_t num_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t moe_intermediate_size = 0;
  bool norm_topk_prob = false;
  std::vector<bool> is_moe_layer;  // one per layer

  // The family's recipe.
  bool has_qkv_bias = false;
  bool has_o_bias = false;
  bool has_mlp_bias = false;
  bool has_qk_norm = false;  // per-head RMSNorm on q and k before RoPE

  int64_t num_moe_layers() const;
  // Index among MoE layers; layer must be one.
  int64_t moe_layer_index(int64_t layer) const;
};

// Reads the fields of a config.json. `where` names the file in errors. Error kData: an unknown
// model_type (lists the known ones), a missing or ill-typed field, an unsupported feature (by field
// and value).
ModelConfig ParseModelConfig(const Json& config, const std::string& where);

// Inverse frequencies [head_dim / 2] in double, by RopeConfig (HF modeling_rope_utils: default,
// linear, llama3).
std::vector<double> RopeInverseFrequencies(const ModelConfig& config);

}  // namespace quatrain
