#include "models/families.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace quatrain {
namespace {

constexpr std::array<Family, 5> kFamilies = {{
    // type        experts qk_norm qkv_bias o_bias window
    {"llama", false, false, false, true, false},
    {"mistral", false, false, false, false, true},
    {"qwen2", false, false, true, false, false},
    {"qwen3", false, true, false, true, false},
    {"qwen3_moe", true, true, false, true, false},
}};

// Collects the rows of one layer.
class LayerRows {
 public:
  LayerRows(const ModelConfig& config, int64_t layer, std::vector<WeightSpec>* rows)
      : config_(config), layer_(layer), rows_(rows) {
    prefix_ = "model.layers." + std::to_string(layer) + ".";
  }

  void AddNorm(const std::string& module, int64_t size) {
    rows_->push_back({prefix_ + module + ".weight", {size}, WeightRole::kNorm, layer_, -1});
  }
  void AddLinear(const std::string& module, int64_t out, int64_t in, WeightRole role,
                 int64_t expert = -1) {
    rows_->push_back({prefix_ + module + ".weight", {out, in}, role, layer_, expert});
  }
  void AddBias(const std::string& module, int64_t out) {
    rows_->push_back({prefix_ + module + ".bias", {out}, WeightRole::kBias, layer_, -1});
  }

  void AddAttention() {
    const int64_t hidden = config_.hidden_size;
    const int64_t q_size = config_.num_attention_heads * config_.head_dim;
    const int64_t kv_size = config_.num_key_value_heads * config_.head_dim;
    const auto add = [&](const char* name, int64_t out, int64_t in, bool has_bias) {
      AddLinear(std::string("self_attn.") + name, out, in, WeightRole::kAttention);
      if (has_bias) AddBias(std::string("self_attn.") + name, out);
    };
    AddNorm("input_layernorm", hidden);
    add("q_proj", q_size, hidden, config_.has_qkv_bias);
    add("k_proj", kv_size, hidden, config_.has_qkv_bias);
    add("v_proj", kv_size, hidden, config_.has_qkv_bias);
    add("o_proj", hidden, q_size, config_.has_o_bias);
    if (config_.has_qk_norm) {
      AddNorm("self_attn.q_norm", config_.head_dim);
      AddNorm("self_attn.k_norm", config_.head_dim);
    }
    AddNorm("post_attention_layernorm", hidden);
  }

  void AddMlp(const std::string& module, int64_t size, WeightRole role, int64_t expert) {
    const int64_t hidden = config_.hidden_size;
    const bool has_bias = config_.has_mlp_bias && role == WeightRole::kMlp;
    AddLinear(module + ".gate_proj", size, hidden, role, expert);
    if (has_bias) AddBias(module + ".gate_proj", size);
    AddLinear(module + ".up_proj", size, hidden, role, expert);
    if (has_bias) AddBias(module + ".up_proj", size);
    AddLinear(module + ".down_proj", hidden, size, role, expert);
    if (has_bias) AddBias(module + ".down_proj", hidden);
  }

  void AddFeedForward() {
    if (!config_.is_moe_layer[static_cast<size_t>(layer_)]) {
      AddMlp("mlp", config_.intermediate_size, WeightRole::kMlp, -1);
      return;
    }
    AddLinear("mlp.gate", config_.num_experts, config_.hidden_size, WeightRole::kRouter);
    for (int64_t expert = 0; expert < config_.num_experts; ++expert) {
      AddMlp("mlp.experts." + std::to_string(expert), config_.moe_intermediate_size,
             WeightRole::kExpert, expert);
    }
  }

 private:
  const ModelConfig& config_;
  int64_t layer_;
  std::vector<WeightSpec>* rows_;
  std::string prefix_;
};

}  // namespace

const Family& FindFamily(const std::string& model_type, const std::string& where) {
  std::string known;
  for (const Family& family : kFamilies) {
    if (model_type == family.model_type) return family;
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  throw Error(ErrorCode::kData,
              {.where = where,
               .what = "unknown architecture",
               .expected = "model_type one of " + known,
               .found = model_type.empty() ? "no model_type" : "'" + model_type + "'",
               .todo = "docs/adding_a_model.md says how a family is added"});
}

bool IsKnownFamily(const Json& root) {
  const Json& config =
      root.contains("text_config") && root["text_config"].is_object() ? root["text_config"] : root;
  const auto model_type = config.find("model_type");
  return model_type != config.end() &&
         std::any_of(kFamilies.begin(), kFamilies.end(),
                     [&](const Family& family) { return *model_type == family.model_type; });
}

std::vector<WeightSpec> WeightTableOf(const ModelConfig& config) {
  std::vector<WeightSpec> rows;
  const std::vector<int64_t> vocab_shape = {config.vocab_size, config.hidden_size};
  rows.push_back({"model.embed_tokens.weight", vocab_shape, WeightRole::kEmbedding, -1, -1});
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    LayerRows layer_rows(config, layer, &rows);
    layer_rows.AddAttention();
    layer_rows.AddFeedForward();
  }
  rows.push_back({"model.norm.weight", {config.hidden_size}, WeightRole::kNorm, -1, -1});
  if (!config.tie_word_embeddings) {
    rows.push_back({"lm_head.weight", vocab_shape, WeightRole::kLmHead, -1, -1});
  }
  return rows;
}

}  // namespace quatrain
