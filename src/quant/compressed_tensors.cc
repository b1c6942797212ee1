#include "quant/compressed_tensors.h"

#include <initializer_list>
#include <vector>

#include "base/error.h"

namespace quatrain {
namespace {

constexpr const char* kConvertAgain =
    "Convert the BF16 original with 'quatrain convert', which writes what this program reads";

// One JSON object of the configuration: typed fields, and an error for every one nobody asked for.
class Section {
 public:
  Section(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json_.is_object()) Refuse("", "an object");
  }

  // The value of a key; nullptr if it is absent or null.
  const Json* Get(const char* key) {
    known_.push_back(key);
    const auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }

  std::string String(const char* key, const std::string& fallback) {
    const Json* value = Get(key);
    if (value == nullptr) return fallback;
    if (!value->is_string()) Refuse(key, "a string");
    return value->get<std::string>();
  }

  // Refuses every value but the listed ones (and absent or null).
  std::string OneOf(const char* key, std::initializer_list<const char*> accepted) {
    const std::string value = String(key, *accepted.begin());
    for (const char* one : accepted) {
      if (value == one) return value;
    }
    std::string names;
    for (const char* one : accepted)
      names += (names.empty() ? "'" : " or '") + std::string(one) + "'";
    Refuse(key, names);
  }

  bool Bool(const char* key, bool fallback) {
    const Json* value = Get(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) Refuse(key, "true or false");
    return value->get<bool>();
  }

  std::vector<std::string> Strings(const char* key) {
    const Json* value = Get(key);
    std::vector<std::string> result;
    if (value == nullptr) return result;
    if (!value->is_array()) Refuse(key, "a list of strings");
    for (const Json& item : *value) {
      if (!item.is_string()) Refuse(key, "a list of strings");
      result.push_back(item.get<std::string>());
    }
    return result;
  }

  // A feature that would change what the weights mean: null, absent or an empty object only.
  void MustBeEmpty(const char* key) {
    const Json* value = Get(key);
    if (value != nullptr && !(value->is_object() && value->empty())) Refuse(key, "null");
  }

  void Skip(const char* key) { known_.push_back(key); }

  // Call when all keys were asked for.
  void RefuseUnknownKeys() {
    for (const auto& [key, value] : json_.items()) {
      bool is_known = value.is_null();
      for (const char* known : known_) is_known = is_known || key == known;
      if (!is_known) Refuse(key, "no such field");
    }
  }

  [[noreturn]] void Refuse(const std::string& key, const std::string& expected) const {
    std::string found = "nothing";
    if (key.empty()) {
      found = DumpJson(json_);
    } else if (json_.is_object() && json_.contains(key)) {
      found = DumpJson(json_.at(key));
    }
    if (found.size() > 120) found = found.substr(0, 117) + "...";
    throw Error(ErrorCode::kData, {.where = where_ + (key.empty() ? "" : "." + key),
                                   .what = "unsupported quantisation",
                                   .expected = expected,
                                   .found = found,
                                   .todo = kConvertAgain});
  }

 private:
  const Json& json_;
  std::string where_;
  std::vector<const char*> known_;
};

// group_size of the scheme from strategy and group_size of the file.
int64_t ParseGroupSize(Section& weights) {
  const Json* strategy = weights.Get("strategy");
  const Json* size = weights.Get("group_size");
  if (size != nullptr && !size->is_number_integer()) weights.Refuse("group_size", "an integer");
  const int64_t value = size == nullptr ? -1 : size->get<int64_t>();
  // Without a strategy the size decides, as in the reference implementation.
  if (strategy == nullptr && size == nullptr) weights.Refuse("strategy", "'group' or 'channel'");
  const bool is_group = strategy == nullptr ? value > 0 : *strategy == Json("group");
  if (!is_group && strategy != nullptr && *strategy != Json("channel")) {
    weights.Refuse("strategy", "'group' or 'channel'");
  }
  if (is_group && value <= 0) weights.Refuse("group_size", "32, 64 or 128");
  if (!is_group && value != -1) weights.Refuse("group_size", "null for one scale per channel");
  return is_group ? value : 0;
}

// Orderings by group store weight_g_idx, which the reader understands; the others leave nothing in
// the file.
void CheckActivationOrder(Section& weights) {
  const Json* order = weights.Get("actorder");
  if (order == nullptr || order->is_boolean()) return;
  weights.OneOf("actorder", {"static", "weight", "group"});
}

QuantScheme ParseWeights(const Json& json, const std::string& where) {
  Section weights(json, where);
  QuantScheme scheme;
  const Json* num_bits = weights.Get("num_bits");
  if (num_bits == nullptr || !num_bits->is_number_integer()) weights.Refuse("num_bits", "4 or 8");
  scheme.num_bits = num_bits->get<int>();
  weights.OneOf("type", {"int"});
  scheme.group_size = ParseGroupSize(weights);
  scheme.symmetric = weights.Bool("symmetric", true);
  if (weights.Bool("dynamic", false)) weights.Refuse("dynamic", "false");
  CheckActivationOrder(weights);
  weights.MustBeEmpty("block_structure");
  weights.OneOf("scale_dtype", {"bfloat16", "torch.bfloat16"});
  weights.Skip("zp_dtype");
  weights.Skip("observer");
  weights.Skip("observer_kwargs");
  weights.RefuseUnknownKeys();
  CheckScheme(scheme, where);
  return scheme;
}

QuantScheme ParseGroup(const Json& json, const std::string& where) {
  Section group(json, where);
  const Json* weights = group.Get("weights");
  if (weights == nullptr) group.Refuse("weights", "an object");
  QuantScheme scheme = ParseWeights(*weights, where + ".weights");
  scheme.targets = group.Strings("targets");
  if (scheme.targets.empty()) group.Refuse("targets", "[\"Linear\"]");
  group.OneOf("format", {"pack-quantized"});
  group.MustBeEmpty("input_activations");
  group.MustBeEmpty("output_activations");
  group.RefuseUnknownKeys();
  return scheme;
}

bool SameCodes(const QuantScheme& a, const QuantScheme& b) {
  return a.num_bits == b.num_bits && a.group_size == b.group_size && a.symmetric == b.symmetric;
}

// All groups of a file must describe the same codes; their targets add up.
QuantScheme ParseGroups(Section& config, const std::string& where) {
  const Json* groups = config.Get("config_groups");
  if (groups == nullptr || !groups->is_object() || groups->empty()) {
    config.Refuse("config_groups", "an object with one group");
  }
  std::optional<QuantScheme> scheme;
  for (const auto& [name, json] : groups->items()) {
    const QuantScheme next = ParseGroup(json, where + ".config_groups." + name);
    if (!scheme.has_value()) {
      scheme = next;
    } else if (!SameCodes(*scheme, next)) {
      config.Refuse("config_groups", "groups of one number of bits and one group size");
    } else {
      scheme->targets.insert(scheme->targets.end(), next.targets.begin(), next.targets.end());
    }
  }
  return *scheme;
}

}  // namespace

QuantScheme ParseQuantizationConfig(const Json& quantization_config, const std::string& where) {
  Section config(quantization_config, where);
  if (config.Get("quant_method") == nullptr) config.Refuse("quant_method", "'compressed-tensors'");
  config.OneOf("quant_method", {"compressed-tensors"});
  config.OneOf("format", {"pack-quantized"});
  config.OneOf("quantization_status", {"compressed"});
  QuantScheme scheme = ParseGroups(config, where);
  scheme.ignore = config.Strings("ignore");
  config.MustBeEmpty("kv_cache_scheme");
  config.MustBeEmpty("sparsity_config");
  config.MustBeEmpty("transform_config");
  config.Skip("global_compression_ratio");
  config.Skip("version");
  config.RefuseUnknownKeys();
  return scheme;
}

std::optional<QuantScheme> FindQuantScheme(const Json& config, const std::string& where) {
  constexpr const char* kKey = "quantization_config";
  if (!config.is_object()) return std::nullopt;
  const auto own = config.find(kKey);
  if (own != config.end() && !own->is_null()) {
    return ParseQuantizationConfig(*own, where + ": " + kKey);
  }
  const auto text = config.find("text_config");
  if (text == config.end() || !text->is_object()) return std::nullopt;
  const auto nested = text->find(kKey);
  if (nested == text->end() || nested->is_null()) return std::nullopt;
  return ParseQuantizationConfig(*nested, where + ": text_config." + kKey);
}

Json MakeQuantizationConfig(const QuantScheme& scheme) {
  QT_CHECK(scheme.symmetric, "asymmetric schemes are only read");
  CheckScheme(scheme, "quantization_config");
  const Json group_size = scheme.is_per_channel() ? Json() : Json(scheme.group_size);
  const Json weights = {{"actorder", nullptr},
                        {"block_structure", nullptr},
                        {"dynamic", false},
                        {"group_size", group_size},
                        {"num_bits", scheme.num_bits},
                        {"observer", "minmax"},
                        {"observer_kwargs", Json::object()},
                        {"strategy", scheme.is_per_channel() ? "channel" : "group"},
                        {"symmetric", true},
                        {"type", "int"}};
  const Json group = {{"input_activations", nullptr},
                      {"output_activations", nullptr},
                      {"targets", Json::array({"Linear"})},
                      {"weights", weights}};
  return {{"config_groups", {{"group_0", group}}},
          {"format", "pack-quantized"},
          {"ignore", scheme.ignore},
          {"kv_cache_scheme", nullptr},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}

}  // namespace quatrain
