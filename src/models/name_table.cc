#include "models/name_table.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <string_view>

#include "quant/compressed_tensors.h"

namespace quatrain {
namespace {

constexpr std::array<std::string_view, 11> kAttention = {
    "q_proj", "k_proj",   "v_proj",   "o_proj",    "out_proj",          "qkv_proj",
    "W_pack", "q_a_proj", "q_b_proj", "kv_b_proj", "kv_a_proj_with_mqa"};
constexpr std::array<std::string_view, 7> kMlp = {
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"};
constexpr std::array<std::string_view, 4> kOtherTowers = {"vision", "visual", "audio", "mtp"};

std::vector<std::string> SplitAtDots(std::string_view name) {
  std::vector<std::string> parts(1);
  for (const char c : name) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

std::optional<int64_t> NumberOf(const std::string& text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return number;
}

template <size_t N>
bool IsOneOf(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Names with numbers in the order of their values: experts.2 before experts.10.
bool NaturalLess(const std::string& a, const std::string& b) {
  const std::vector<std::string> x = SplitAtDots(a), y = SplitAtDots(b);
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    if (x[i] == y[i]) continue;
    const auto m = NumberOf(x[i]), n = NumberOf(y[i]);
    return m && n ? *m < *n : x[i] < y[i];
  }
  return x.size() < y.size();
}

// Layers of the decoder; everything beyond is another's.
int64_t NumLayers(const Json& root) {
  const Json& config =
      root.contains("text_config") && root["text_config"].is_object() ? root["text_config"] : root;
  const auto field = config.find("num_hidden_layers");
  return field != config.end() && field->is_number_integer() ? field->get<int64_t>()
                                                             : std::numeric_limits<int64_t>::max();
}

// Where a name stands in the model.
struct Place {
  std::vector<std::string> parts;
  int64_t layer = -1, expert = -1;
  bool is_foreign = false;  // of another tower, or a layer beyond the decoder's

  std::string_view last() const { return parts.back(); }
  std::string_view parent() const {
    return parts.size() > 1 ? std::string_view(parts[parts.size() - 2]) : std::string_view();
  }
};

Place PlaceOf(const std::string& module, int64_t num_layers) {
  Place place{.parts = SplitAtDots(module)};
  for (size_t i = 0; i < place.parts.size(); ++i) {
    for (const std::string_view tower : kOtherTowers) {
      place.is_foreign = place.is_foreign || place.parts[i].find(tower) != std::string::npos;
    }
    if (i == 0) continue;
    const auto number = NumberOf(place.parts[i]);
    if (number && place.layer < 0 && place.parts[i - 1] == "layers") place.layer = *number;
    if (number && place.parts[i - 1] == "experts") place.expert = *number;
  }
  place.is_foreign = place.is_foreign || place.layer >= num_layers;
  return place;
}

// The part of a 2-D weight; nullopt if its name does not tell.
std::optional<WeightRole> MatrixRoleOf(const Place& place) {
  const std::string_view last = place.last(), parent = place.parent();
  if (place.layer < 0) {
    if (last == "lm_head") return WeightRole::kLmHead;
    if (last == "embed_tokens") return WeightRole::kEmbedding;
    return std::nullopt;
  }
  if (place.expert >= 0 && IsOneOf(kMlp, last)) return WeightRole::kExpert;
  const bool is_router = (last == "gate" && (parent == "mlp" || parent == "block_sparse_moe")) ||
                         last == "router" || last == "shared_expert_gate";
  if (is_router) return WeightRole::kRouter;
  if (parent.find("attn") != std::string_view::npos && IsOneOf(kAttention, last)) {
    return WeightRole::kAttention;
  }
  const bool is_mlp = parent == "mlp" || parent == "feed_forward" ||
                      parent.find("shared_expert") != std::string_view::npos;
  if (is_mlp && IsOneOf(kMlp, last)) return WeightRole::kMlp;
  return std::nullopt;
}

// N and K of a weight_shape; empty if it holds something else.
std::vector<int64_t> ShapeOf(const TensorSet& tensors, const std::string& module) {
  const TensorView* tensor = tensors.Find(module + std::string(kShapeSuffix));
  std::vector<int64_t> shape;
  if (tensor == nullptr) return shape;
  for (size_t i = 0; i < 2; ++i) {
    int64_t wide = 0;
    int32_t narrow = 0;
    if (tensor->dtype == DType::kI64 && tensor->bytes.size() == 2 * sizeof(wide)) {
      std::memcpy(&wide, tensor->bytes.data() + i * sizeof(wide), sizeof(wide));
    } else if (tensor->dtype == DType::kI32 && tensor->bytes.size() == 2 * sizeof(narrow)) {
      std::memcpy(&narrow, tensor->bytes.data() + i * sizeof(narrow), sizeof(narrow));
      wide = narrow;
    }
    if (wide <= 0) return {};
    shape.push_back(wide);
  }
  return shape;
}

class NameTable {
 public:
  NameTable(const TensorSet& tensors, const Json& config)
      : tensors_(tensors), num_layers_(NumLayers(config)) {}

  std::vector<WeightSpec> Make() {
    for (const TensorView& tensor : tensors_.tensors()) Add(tensor);
    std::sort(rows_.begin(), rows_.end(), [](const WeightSpec& a, const WeightSpec& b) {
      const auto rank = [](const WeightSpec& spec) {
        if (spec.role == WeightRole::kEmbedding) return int64_t{-1};
        return spec.layer >= 0 ? spec.layer : std::numeric_limits<int64_t>::max();
      };
      return rank(a) != rank(b) ? rank(a) < rank(b) : NaturalLess(a.name, b.name);
    });
    return std::move(rows_);
  }

 private:
  void Add(const TensorView& tensor) {
    const std::string& name = tensor.name;
    if (tensor.shape.size() == 3) return AddFused(tensor);
    for (const std::string_view suffix :
         {kWeightSuffix, kPackedSuffix, std::string_view(".bias")}) {
      if (!name.ends_with(suffix)) continue;
      const std::string module = name.substr(0, name.size() - suffix.size());
      const Place place = PlaceOf(module, num_layers_);
      if (place.is_foreign) return;
      if (suffix == ".bias") return AddVector(tensor, place, WeightRole::kBias);
      if (suffix == kWeightSuffix && tensor.shape.size() == 1) {
        const bool is_norm = place.last().find("norm") != std::string_view::npos;
        if (is_norm) AddVector(tensor, place, WeightRole::kNorm);
        return;
      }
      const std::optional<WeightRole> role = MatrixRoleOf(place);
      const std::vector<int64_t> shape =
          suffix == kPackedSuffix ? ShapeOf(tensors_, module) : tensor.shape;
      if (role && shape.size() == 2) {
        rows_.push_back(
            {module + std::string(kWeightSuffix), shape, *role, place.layer, place.expert});
      }
      return;
    }
  }

  void AddVector(const TensorView& tensor, const Place& place, WeightRole role) {
    if (tensor.shape.size() != 1) return;
    if (role == WeightRole::kBias && !MatrixRoleOf(place)) return;
    rows_.push_back({tensor.name, tensor.shape, role, place.layer, place.expert});
  }

  // gate_up_proj [E, 2 I, D] with its down_proj [E, D, I]; other layouts are not understood.
  void AddFused(const TensorView& tensor) {
    constexpr std::string_view kGateUp = ".experts.gate_up_proj", kDown = ".experts.down_proj";
    if (!tensor.name.ends_with(kGateUp)) return;
    const std::string experts = tensor.name.substr(0, tensor.name.size() - kGateUp.size());
    const TensorView* down = tensors_.Find(experts + std::string(kDown));
    const Place place = PlaceOf(experts, num_layers_);
    if (down == nullptr || down->shape.size() != 3 || place.is_foreign || place.layer < 0) return;
    const int64_t count = tensor.shape[0], size = down->shape[2], hidden = tensor.shape[2];
    if (down->shape != std::vector<int64_t>{count, hidden, size} || tensor.shape[1] != 2 * size) {
      return;
    }
    for (int64_t expert = 0; expert < count; ++expert) {
      const std::string prefix = experts + ".experts." + std::to_string(expert);
      const auto add = [&](const char* projection, int64_t out, int64_t in) {
        rows_.push_back({prefix + projection, {out, in}, WeightRole::kExpert, place.layer, expert});
      };
      add(".gate_proj.weight", size, hidden);
      add(".up_proj.weight", size, hidden);
      add(".down_proj.weight", hidden, size);
    }
  }

  const TensorSet& tensors_;
  int64_t num_layers_;
  std::vector<WeightSpec> rows_;
};

}  // namespace

std::vector<WeightSpec> WeightTableFromNames(const TensorSet& tensors, const Json& config) {
  return NameTable(tensors, config).Make();
}

}  // namespace quatrain
