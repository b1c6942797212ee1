// The model families: what each one's recipe is and which weights it has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/model_config.h"

namespace quatrain {

// What a model_type implies beyond its config.json.
struct Family {
  const char* model_type;
  bool has_experts;
  bool has_qk_norm;
  bool has_qkv_bias;  // default of attention_bias
  bool has_o_bias_with_attention_bias;
  bool uses_window_by_default;  // mistral: a sliding_window in the config acts without
                                // use_sliding_window
};

// Error kData naming `where` and listing the known types.
const Family& FindFamily(const std::string& model_type, const std::string& where);

// Does FindFamily know the model_type of a config.json, or of its text_config?
bool IsKnownFamily(const Json& config);

// The part a weight plays; decides what may be quantised and how tensor parallelism would cut it.
enum class WeightRole {
  kEmbedding,
  kLmHead,
  kNorm,
  kBias,
  kRouter,
  kAttention,  // q/k/v/o_proj
  kMlp,        // dense gate/up/down_proj
  kExpert,     // routed experts' gate/up/down_proj
};

// One row of the weight table: a tensor of the checkpoint in its 2-D (or 1-D) form.
struct WeightSpec {
  std::string name;            // HF name with suffix: model.layers.0.self_attn.q_proj.weight
  std::vector<int64_t> shape;  // [out_features, in_features] or [n]
  WeightRole role;
  int64_t layer = -1;   // -1 outside the layers
  int64_t expert = -1;  // -1 but for experts

  // Linears that int4.md section 4 lists as quantisable.
  bool is_quantisable() const {
    return role == WeightRole::kAttention || role == WeightRole::kMlp ||
           role == WeightRole::kExpert;
  }
  // Name of the module: without ".weight" or ".bias".
  std::string module() const { return name.substr(0, name.rfind('.')); }
};

// Every weight of the model in the order of its files: embedding, layers ascending, final norm,
// lm_head (absent when tied). Loader, exporter, converter, trainer and reports all read this table.
std::vector<WeightSpec> WeightTableOf(const ModelConfig& config);

}  // namespace quatrain
