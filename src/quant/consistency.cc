#include "quant/consistency.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"
#include "kernels/int4.h"
#include "quant/compressed_tensors.h"
#include "quant/module_match.h"

namespace quatrain {
namespace {

constexpr std::array<std::string_view, 5> kCompanions = {kPackedSuffix, kScaleSuffix, kShapeSuffix,
                                                         kZeroPointSuffix, kGroupIndexSuffix};

std::string ShapeText(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

bool IsEmbedding(std::string_view module) {
  for (std::string_view name : {"embed_tokens", "word_embeddings", "wte", "wpe"}) {
    if (module.ends_with(name)) return true;
  }
  return false;
}

bool IsFusedExperts(std::string_view name) {
  return name.ends_with(".experts.gate_up_proj") || name.ends_with(".experts.down_proj");
}

// The module of a tensor whose name ends in `suffix`, or empty.
std::string ModuleOf(const std::string& name, std::string_view suffix) {
  return name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : std::string();
}

const TensorMeta* Find(const TensorTable& tensors, const std::string& module,
                       std::string_view suffix) {
  const auto found = tensors.find(module + std::string(suffix));
  return found == tensors.end() ? nullptr : &found->second;
}

// Collects the problems of one quantised module.
class ModuleCheck {
 public:
  ModuleCheck(const QuantScheme& scheme, const TensorTable& tensors, const std::string& module,
              std::vector<std::string>* problems)
      : scheme_(scheme), tensors_(tensors), module_(module), problems_(problems) {}

  void Run() {
    if (Find(tensors_, module_, kWeightSuffix) != nullptr) {
      Add("{0}.weight and {0}.weight_packed are both present", module_);
    }
    const TensorMeta* shape = Find(tensors_, module_, kShapeSuffix);
    if (shape == nullptr || Find(tensors_, module_, kScaleSuffix) == nullptr) {
      if (shape == nullptr) Add("{}.weight_shape is missing", module_);
      if (Find(tensors_, module_, kScaleSuffix) == nullptr) {
        Add("{}.weight_scale is missing", module_);
      }
      return;
    }
    if ((shape->dtype != "I64" && shape->dtype != "I32") || shape->values.size() != 2 ||
        shape->values[0] <= 0 || shape->values[1] <= 0) {
      Add("{}.weight_shape is {} {} of {}, expected I64 [2] of N and K", module_, shape->dtype,
          ShapeText(shape->shape), ShapeText(shape->values));
      return;
    }
    CheckShapes(shape->values[0], shape->values[1]);
  }

 private:
  void CheckShapes(int64_t out_features, int64_t in_features) {
    const int64_t g = scheme_.GroupSizeFor(in_features);
    if (in_features % g != 0) {
      Add("{}: K = {} is not whole groups of {}", module_, in_features, g);
      return;
    }
    const int bits = scheme_.num_bits;
    Expect(kPackedSuffix, "I32", {out_features, PackedWords(in_features, bits)});
    Expect(kScaleSuffix, "BF16", {out_features, in_features / g});
    const bool has_zero_point = Find(tensors_, module_, kZeroPointSuffix) != nullptr;
    if (has_zero_point == scheme_.symmetric) {
      Add("{}.weight_zero_point is {}, but config.json says symmetric {}", module_,
          has_zero_point ? "present" : "missing", scheme_.symmetric);
    } else if (has_zero_point) {
      Expect(kZeroPointSuffix, "I32", {PackedWords(out_features, bits), in_features / g});
    }
    if (Find(tensors_, module_, kGroupIndexSuffix) != nullptr) {
      Expect(kGroupIndexSuffix, "I32", {in_features});
    }
  }

  void Expect(std::string_view suffix, const std::string& dtype,
              const std::vector<int64_t>& shape) {
    const TensorMeta& found = *Find(tensors_, module_, suffix);
    if (found.dtype == dtype && found.shape == shape) return;
    Add("{}{} is {} {}, expected {} {}", module_, suffix, found.dtype, ShapeText(found.shape),
        dtype, ShapeText(shape));
  }

  template <class... Args>
  void Add(fmt::format_string<Args...> format, Args&&... args) {
    problems_->push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  const QuantScheme& scheme_;
  const TensorTable& tensors_;
  const std::string& module_;
  std::vector<std::string>* problems_;
};

// The fused weight that engines make of a module and its siblings, or empty.
std::string FusedGroupOf(const std::string& module) {
  const size_t experts = module.find(".experts.");
  if (experts != std::string::npos) return module.substr(0, experts) + ".experts (all of a layer)";
  const size_t dot = module.rfind('.');
  const std::string last = dot == std::string::npos ? module : module.substr(dot + 1);
  const std::string parent = dot == std::string::npos ? "" : module.substr(0, dot + 1);
  const auto is_one_of = [&](std::initializer_list<const char*> names) {
    return std::find(names.begin(), names.end(), last) != names.end();
  };
  if (is_one_of({"q_proj", "k_proj", "v_proj"})) return parent + "{q,k,v}_proj";
  if (is_one_of({"gate_proj", "up_proj"})) return parent + "{gate,up}_proj";
  if (is_one_of({"w1", "w3"})) return parent + "{w1,w3}";
  if (is_one_of({"q_a_proj", "kv_a_proj_with_mqa"})) return parent + "{q_a,kv_a}_proj";
  return {};
}

void CheckFusedGroups(const std::vector<LinearModule>& modules,
                      std::vector<std::string>* problems) {
  std::map<std::string, std::array<const LinearModule*, 2>>
      groups;  // an example in BF16, one quantised
  for (const LinearModule& module : modules) {
    const std::string group = FusedGroupOf(module.module);
    if (!group.empty()) groups[group][module.is_quantized ? 1 : 0] = &module;
  }
  for (const auto& [group, examples] : groups) {
    if (examples[0] == nullptr || examples[1] == nullptr) continue;
    problems->push_back(fmt::format("engines fuse {}, but {} is quantised and {} is not", group,
                                    examples[1]->module, examples[0]->module));
  }
}

void CheckLeftovers(const TensorTable& tensors, std::vector<std::string>* problems) {
  for (const auto& [name, meta] : tensors) {
    for (std::string_view suffix : kCompanions) {
      const std::string module = ModuleOf(name, suffix);
      if (module.empty() || Find(tensors, module, kPackedSuffix) != nullptr) continue;
      problems->push_back(fmt::format("{} is present without {}{}", name, module, kPackedSuffix));
    }
  }
}

}  // namespace

std::vector<LinearModule> LinearModulesOf(const TensorTable& tensors) {
  std::vector<LinearModule> modules;
  for (const auto& [name, meta] : tensors) {
    const std::string packed = ModuleOf(name, kPackedSuffix);
    const std::string weight = ModuleOf(name, kWeightSuffix);
    if (!packed.empty()) {
      const TensorMeta* shape = Find(tensors, packed, kShapeSuffix);
      const bool has_shape = shape != nullptr && shape->values.size() == 2;
      modules.push_back(
          {packed, true, has_shape ? shape->values[0] : 0, has_shape ? shape->values[1] : 0});
    } else if (!weight.empty() && meta.shape.size() == 2 && !IsEmbedding(weight) &&
               Find(tensors, weight, kPackedSuffix) == nullptr) {
      modules.push_back({weight, false, meta.shape[0], meta.shape[1]});
    } else if (IsFusedExperts(name) && meta.shape.size() == 3) {
      modules.push_back({name, false, meta.shape[1], meta.shape[2]});
    }
  }
  return modules;
}

std::vector<std::string> FindInconsistencies(const QuantScheme& scheme, const TensorTable& tensors,
                                             const std::string& where) {
  std::vector<std::string> problems;
  const QuantizedModules quantized(scheme, where);
  const std::vector<LinearModule> modules = LinearModulesOf(tensors);
  for (const LinearModule& module : modules) {
    const bool is_announced = quantized.Contains(module.module);
    if (module.is_quantized) ModuleCheck(scheme, tensors, module.module, &problems).Run();
    if (module.is_quantized && !is_announced) {
      problems.push_back(fmt::format(
          "{} is quantised, but config.json ignores it or does not target it", module.module));
    } else if (!module.is_quantized && is_announced) {
      problems.push_back(fmt::format(
          "{} is not quantised, but config.json says so (it is not in ignore)", module.module));
    }
  }
  CheckLeftovers(tensors, &problems);
  CheckFusedGroups(modules, &problems);
  return problems;
}

std::vector<std::string> FindUnannounced(const TensorTable& tensors) {
  std::vector<std::string> problems;
  for (const auto& [name, meta] : tensors) {
    if (name.ends_with(kPackedSuffix)) {
      problems.push_back(name + " is present, but config.json has no quantization_config");
    }
  }
  CheckLeftovers(tensors, &problems);
  return problems;
}

void ThrowIfInconsistent(const std::vector<std::string>& problems, const std::string& where) {
  if (problems.empty()) return;
  throw Error(ErrorCode::kData,
              {.where = where,
               .what = fmt::format(
                   "tensors and config.json disagree: {}{}", problems.front(),
                   problems.size() == 1 ? "" : fmt::format(" (and {} more)", problems.size() - 1)),
               .todo = "Run 'quatrain inspect' on the directory for the whole list, then convert "
                       "the model again"});
}

}  // namespace quatrain
