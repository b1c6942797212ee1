#include "models/model_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "models/families.h"

namespace quatrain {
namespace {

// More than any model has; a larger number is a damaged file, and the tables of angles and layers
// that it asked for would take all memory.
constexpr int64_t kMaxLayers = 10000;
constexpr int64_t kMaxPositions = int64_t{1} << 24;

// One config.json object with errors that name file and field.
class Fields {
 public:
  Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  bool Has(const char* name) const { return json_.contains(name) && !json_[name].is_null(); }

  int64_t Int(const char* name) const {
    const Json& value = Required(name);
    if (!value.is_number_integer()) Fail(name, "an integer", value.dump());
    const auto number = value.get<int64_t>();
    if (number <= 0 || number > (int64_t{1} << 40)) Fail(name, "a positive integer", value.dump());
    return number;
  }
  int64_t IntOr(const char* name, int64_t fallback) const {
    return Has(name) ? Int(name) : fallback;
  }

  double Number(const char* name) const {
    const Json& value = Required(name);
    if (!value.is_number()) Fail(name, "a number", value.dump());
    return value.get<double>();
  }
  double NumberOr(const char* name, double fallback) const {
    return Has(name) ? Number(name) : fallback;
  }
  double Positive(const char* name) const {
    const double number = Number(name);
    if (!(number > 0.0)) Fail(name, "a number above 0", json_[name].dump());
    return number;
  }
  double PositiveOr(const char* name, double fallback) const {
    return Has(name) ? Positive(name) : fallback;
  }
  int64_t IntUpTo(const char* name, int64_t most) const {
    const int64_t number = Int(name);
    if (number > most) Fail(name, fmt::format("at most {}", most), fmt::format("{}", number));
    return number;
  }

  bool BoolOr(const char* name, bool fallback) const {
    if (!Has(name)) return fallback;
    if (!json_[name].is_boolean()) Fail(name, "true or false", json_[name].dump());
    return json_[name].get<bool>();
  }

  std::string StringOr(const char* name, const std::string& fallback) const {
    if (!Has(name)) return fallback;
    if (!json_[name].is_string()) Fail(name, "a string", json_[name].dump());
    return json_[name].get<std::string>();
  }

  const Json& Required(const char* name) const {
    if (!Has(name)) Fail(name, "this field", "none");
    return json_[name];
  }

  [[noreturn]] void Fail(const std::string& field, const std::string& expected,
                         const std::string& found) const {
    throw Error(ErrorCode::kData, {.where = where_,
                                   .what = "field '" + field + "' cannot be used",
                                   .expected = expected,
                                   .found = found,
                                   .todo = "Check that this is the model's own config.json"});
  }

 private:
  const Json& json_;
  std::string where_;
};

// Angles for a part of each head only are another model.
void RefusePartialRope(const Fields& fields) {
  const double share = fields.NumberOr("partial_rotary_factor", 1.0);
  if (share != 1.0) fields.Fail("partial_rotary_factor", "1", fmt::format("{:g}", share));
}

// rope_parameters (transformers 5) or rope_theta + rope_scaling (before).
RopeConfig ParseRope(const Json& config, const Fields& fields, const std::string& where) {
  RopeConfig rope;
  rope.theta = fields.PositiveOr("rope_theta", 10000.0);
  RefusePartialRope(fields);
  const char* name = fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!fields.Has(name)) return rope;
  if (!config[name].is_object()) fields.Fail(name, "an object", config[name].dump());
  const Fields inner(config[name], where + ": " + name);
  rope.theta = inner.PositiveOr("rope_theta", rope.theta);
  RefusePartialRope(inner);
  const std::string type = inner.StringOr("rope_type", inner.StringOr("type", "default"));
  if (type == "default") return rope;
  rope.factor = inner.Number("factor");
  if (!(rope.factor >= 1.0)) inner.Fail("factor", "a number >= 1", config[name]["factor"].dump());
  if (type == "linear") {
    rope.type = RopeConfig::Type::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeConfig::Type::kLlama3;
    rope.low_freq_factor = inner.Positive("low_freq_factor");
    rope.high_freq_factor = inner.Positive("high_freq_factor");
    rope.original_max_position_embeddings = inner.Positive("original_max_position_embeddings");
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      inner.Fail("high_freq_factor",
                 fmt::format("more than low_freq_factor = {:g}", rope.low_freq_factor),
                 fmt::format("{:g}", rope.high_freq_factor));
    }
  } else {
    inner.Fail("rope_type", "default, linear or llama3", "'" + type + "'");
  }
  return rope;
}

void ParseExperts(const Json& config, const Fields& fields, ModelConfig* out) {
  // transformers 5 writes num_local_experts where 4 wrote num_experts.
  out->num_experts =
      fields.Has("num_experts") ? fields.Int("num_experts") : fields.Int("num_local_experts");
  out->num_experts_per_tok = fields.Int("num_experts_per_tok");
  out->moe_intermediate_size = fields.Int("moe_intermediate_size");
  out->norm_topk_prob = fields.BoolOr("norm_topk_prob", false);
  if (out->num_experts_per_tok > out->num_experts) {
    fields.Fail("num_experts_per_tok", fmt::format("at most num_experts = {}", out->num_experts),
                fmt::format("{}", out->num_experts_per_tok));
  }
  const int64_t step = fields.IntOr("decoder_sparse_step", 1);
  std::vector<int64_t> dense_layers;
  if (fields.Has("mlp_only_layers")) {
    if (!config["mlp_only_layers"].is_array()) {
      fields.Fail("mlp_only_layers", "a list of layer indices", config["mlp_only_layers"].dump());
    }
    for (const Json& layer : config["mlp_only_layers"]) {
      if (!layer.is_number_integer()) fields.Fail("mlp_only_layers", "integers", layer.dump());
      dense_layers.push_back(layer.get<int64_t>());
    }
  }
  for (int64_t layer = 0; layer < out->num_hidden_layers; ++layer) {
    const bool is_listed_dense =
        std::find(dense_layers.begin(), dense_layers.end(), layer) != dense_layers.end();
    out->is_moe_layer[static_cast<size_t>(layer)] = !is_listed_dense && (layer + 1) % step == 0;
  }
}

void CheckSupported(const Fields& fields, const ModelConfig& config) {
  const std::string act = fields.StringOr("hidden_act", "silu");
  if (act != "silu") fields.Fail("hidden_act", "silu", "'" + act + "'");
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    fields.Fail("num_key_value_heads",
                fmt::format("a divisor of num_attention_heads = {}", config.num_attention_heads),
                fmt::format("{}", config.num_key_value_heads));
  }
  if (config.head_dim % 8 != 0 || config.head_dim > 256) {
    fields.Fail("head_dim", "a multiple of 8 up to 256", fmt::format("{}", config.head_dim));
  }
}

}  // namespace

int64_t ModelConfig::num_moe_layers() const {
  return std::count(is_moe_layer.begin(), is_moe_layer.end(), true);
}

int64_t ModelConfig::moe_layer_index(int64_t layer) const {
  QT_CHECK(is_moe_layer.at(static_cast<size_t>(layer)), "layer {} has no experts", layer);
  return std::count(is_moe_layer.begin(), is_moe_layer.begin() + layer, true);
}

ModelConfig ParseModelConfig(const Json& root, const std::string& where) {
  if (!root.is_object()) {
    throw Error(ErrorCode::kData, {.where = where,
                                   .what = "not a model configuration",
                                   .expected = "a JSON object",
                                   .found = root.type_name()});
  }
  // Multimodal checkpoints nest the decoder's fields.
  const Json& config =
      root.contains("text_config") && root["text_config"].is_object() ? root["text_config"] : root;
  const Fields fields(config, where);
  ModelConfig out;
  out.model_type = fields.StringOr("model_type", "");
  const Family& family = FindFamily(out.model_type, where);
  out.vocab_size = fields.Int("vocab_size");
  out.hidden_size = fields.Int("hidden_size");
  out.intermediate_size = fields.Int("intermediate_size");
  out.num_hidden_layers = fields.IntUpTo("num_hidden_layers", kMaxLayers);
  out.num_attention_heads = fields.Int("num_attention_heads");
  out.num_key_value_heads = fields.IntOr("num_key_value_heads", out.num_attention_heads);
  if (!fields.Has("head_dim") && out.hidden_size % out.num_attention_heads != 0) {
    fields.Fail("hidden_size", "a multiple of num_attention_heads where head_dim is absent",
                fmt::format("{}", out.hidden_size));
  }
  out.head_dim = fields.IntOr("head_dim", out.hidden_size / out.num_attention_heads);
  out.max_position_embeddings = fields.IntUpTo("max_position_embeddings", kMaxPositions);
  out.rms_norm_eps = fields.PositiveOr("rms_norm_eps", 1e-6);
  out.tie_word_embeddings = fields.BoolOr("tie_word_embeddings", false);
  out.rope = ParseRope(config, fields, where);
  out.is_moe_layer.assign(static_cast<size_t>(out.num_hidden_layers), false);
  if (family.has_experts) ParseExperts(config, fields, &out);
  const bool attention_bias = fields.BoolOr("attention_bias", family.has_qkv_bias);
  out.has_qkv_bias = attention_bias;
  out.has_o_bias = family.has_o_bias_with_attention_bias && attention_bias;
  out.has_mlp_bias = fields.BoolOr("mlp_bias", false);
  out.has_qk_norm = family.has_qk_norm;
  CheckSupported(fields, out);
  // A window at least as long as the context changes nothing; a shorter one is another attention.
  const bool uses_window = fields.BoolOr("use_sliding_window", family.uses_window_by_default);
  if (uses_window && fields.Has("sliding_window") &&
      fields.Int("sliding_window") < out.max_position_embeddings) {
    fields.Fail("sliding_window", "none, or at least max_position_embeddings",
                config["sliding_window"].dump());
  }
  return out;
}

std::vector<double> RopeInverseFrequencies(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  std::vector<double> inverse(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < inverse.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    double frequency = std::pow(rope.theta, -exponent);
    if (rope.type == RopeConfig::Type::kLinear) frequency /= rope.factor;
    if (rope.type == RopeConfig::Type::kLlama3) {
      const double wavelength = 2.0 * std::numbers::pi / frequency;
      const double context = rope.original_max_position_embeddings;
      const double smooth = (context / wavelength - rope.low_freq_factor) /
                            (rope.high_freq_factor - rope.low_freq_factor);
      const double blend = std::clamp(smooth, 0.0, 1.0);
      frequency = (1.0 - blend) * frequency / rope.factor + blend * frequency;
    }
    inverse[i] = frequency;
  }
  return inverse;
}

}  // namespace quatrain
