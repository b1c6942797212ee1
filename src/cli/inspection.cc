#include "cli/inspection.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "io/hf_repo.h"
#include "models/loader.h"
#include "quant/compressed_tensors.h"
#include "quant/consistency.h"
#include "quant/quantized_weight.h"

namespace quatrain {
namespace {

// A copy, behind which the mapped pages may go.
template <class T>
std::vector<T> Elements(const TensorView& tensor) {
  std::vector<T> elements(tensor.bytes.size() / sizeof(T));
  std::memcpy(elements.data(), tensor.bytes.data(), elements.size() * sizeof(T));
  ReleasePages(tensor.bytes);
  return elements;
}

std::vector<int64_t> ShapeValues(const TensorView& tensor) {
  if (tensor.dtype == DType::kI64) return Elements<int64_t>(tensor);
  std::vector<int64_t> values;
  if (tensor.dtype != DType::kI32) return values;
  for (int32_t value : Elements<int32_t>(tensor)) values.push_back(value);
  return values;
}

TensorTable TableOf(const TensorSet& tensors) {
  TensorTable table;
  for (const TensorView& tensor : tensors.tensors()) {
    TensorMeta meta{std::string(DTypeName(tensor.dtype)), tensor.shape};
    if (tensor.name.ends_with(kShapeSuffix)) meta.values = ShapeValues(tensor);
    table[tensor.name] = std::move(meta);
  }
  return table;
}

int64_t NumElements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

// Bytes and parameters by what a tensor is.
std::vector<SizeRow> SizesOf(const TensorSet& tensors, const TensorTable& table) {
  SizeRow codes{"quantised linears"}, dense{"linears in 16 bits"},
      rest{"embeddings, norms, biases"};
  std::map<std::string, bool> is_linear;
  for (const LinearModule& module : LinearModulesOf(table)) {
    is_linear[module.module] = true;
    if (module.is_quantized) codes.num_parameters += module.out_features * module.in_features;
  }
  for (const TensorView& tensor : tensors.tensors()) {
    const size_t dot = tensor.name.rfind('.');
    const std::string module = tensor.name.substr(0, dot);
    const bool is_companion = tensor.name.find(".weight_") != std::string::npos;
    const bool is_weight = tensor.name.ends_with(kWeightSuffix) && is_linear.contains(module);
    SizeRow& row = is_companion                                   ? codes
                   : is_weight || is_linear.contains(tensor.name) ? dense
                                                                  : rest;
    row.num_tensors += 1;
    row.bytes += static_cast<int64_t>(tensor.bytes.size());
    if (!is_companion) row.num_parameters += NumElements(tensor.shape);
  }
  return {codes, dense, rest};
}

std::vector<ModuleRow> RowsOf(const std::vector<LinearModule>& modules) {
  std::vector<ModuleRow> rows;
  for (const LinearModule& module : modules) {
    const ParallelLinear linear =
        ClassifyLinear(module.module, module.out_features, module.in_features);
    const auto same = std::find_if(rows.begin(), rows.end(), [&](const ModuleRow& row) {
      return row.pattern == linear.name && row.is_quantized == module.is_quantized &&
             row.out_features == module.out_features && row.in_features == module.in_features;
    });
    if (same != rows.end()) {
      same->count += 1;
    } else {
      rows.push_back(
          {linear.name, module.out_features, module.in_features, module.is_quantized, 1});
    }
  }
  return rows;
}

// One quantised module as its tensors stand in the file; its shapes were checked before.
class StoredModule {
 public:
  StoredModule(const TensorSet& tensors, const LinearModule& module, const QuantScheme& scheme)
      : scale_name_(module.module + std::string(kScaleSuffix)) {
    weight_.num_bits = scheme.num_bits;
    weight_.out_features = module.out_features;
    weight_.in_features = module.in_features;
    weight_.group_size = scheme.GroupSizeFor(module.in_features);
    weight_.packed = Elements<int32_t>(tensors.Get(module.module + std::string(kPackedSuffix)));
    weight_.scale = Elements<BFloat16>(tensors.Get(scale_name_));
    if (const TensorView* tensor = tensors.Find(module.module + std::string(kZeroPointSuffix))) {
      zero_point_ = Elements<int32_t>(*tensor);
    }
    if (const TensorView* tensor = tensors.Find(module.module + std::string(kGroupIndexSuffix))) {
      group_index_ = Elements<int32_t>(*tensor);
    }
    module_ = module.module;
  }

  const std::string& module() const { return module_; }
  const QuantizedWeight& weight() const { return weight_; }

  void CheckScaleValues() const {
    CheckScales(scale_name_, weight_.scale, weight_.num_groups(),
                GridOf(ScaleRule::kFrozen, weight_.num_bits));
  }

  std::vector<BFloat16> Values(ThreadPool& pool) const {
    if (zero_point_.empty() && group_index_.empty()) return Dequantize(pool, weight_);
    return DequantizeForeign({.module = module_,
                              .num_bits = weight_.num_bits,
                              .out_features = weight_.out_features,
                              .in_features = weight_.in_features,
                              .group_size = weight_.group_size,
                              .packed = weight_.packed,
                              .scale = weight_.scale,
                              .zero_point = zero_point_,
                              .group_index = group_index_});
  }

 private:
  std::string module_, scale_name_;
  QuantizedWeight weight_;
  std::vector<int32_t> zero_point_, group_index_;
};

// Widens the range of codes seen so far.
void NoteCodes(const QuantizedWeight& weight, std::optional<CodeGrid>* used) {
  const std::vector<int8_t> codes = UnpackWeight(weight);
  if (codes.empty()) return;
  const auto [lo, hi] = std::minmax_element(codes.begin(), codes.end());
  if (!used->has_value()) *used = CodeGrid{weight.num_bits, *lo, *hi};
  (*used)->lo = std::min<int>((*used)->lo, *lo);
  (*used)->hi = std::max<int>((*used)->hi, *hi);
}

// Sums by row, so that any thread count gives the same figure.
ErrorRow MeasureError(ThreadPool& pool, const std::string& tensor,
                      std::span<const BFloat16> measured_OI, std::span<const BFloat16> reference_OI,
                      int64_t in_features) {
  struct RowSums {
    double difference = 0.0, reference = 0.0, largest = 0.0;
  };
  const auto columns = static_cast<size_t>(in_features);
  std::vector<RowSums> sums(reference_OI.size() / columns);
  pool.ParallelFor(static_cast<int64_t>(sums.size()), [&](int64_t index, int /*worker*/) {
    const auto row = static_cast<size_t>(index);
    RowSums& sum = sums[row];
    for (size_t i = row * columns; i < (row + 1) * columns; ++i) {
      const double reference = ToFloat(reference_OI[i]);
      const double difference = ToFloat(measured_OI[i]) - reference;
      sum.difference += difference * difference;
      sum.reference += reference * reference;
      sum.largest = std::max(sum.largest, std::fabs(difference));
    }
  });
  RowSums total;
  for (const RowSums& sum : sums) {
    total.difference += sum.difference;
    total.reference += sum.reference;
    total.largest = std::max(total.largest, sum.largest);
  }
  const double relative =
      total.difference == 0.0 ? 0.0 : std::sqrt(total.difference / total.reference);
  return {tensor, relative, total.largest};
}

// A weight of the reference as BF16 values [O, I].
class Reference {
 public:
  explicit Reference(const std::filesystem::path& directory) : checkpoint_(directory) {
    if (checkpoint_.scheme().has_value()) {
      throw Error(ErrorCode::kUsage, {.where = "--against " + directory.string(),
                                      .what = "the reference is itself quantised",
                                      .expected = "the BF16 directory the model was made from",
                                      .found = checkpoint_.scheme()->Name()});
    }
    for (const WeightSpec& spec : WeightTableOf(checkpoint_.config())) specs_[spec.name] = spec;
  }

  // nullptr if the model has no weight of that name.
  const WeightSpec* Find(const std::string& name) const {
    const auto found = specs_.find(name);
    return found == specs_.end() ? nullptr : &found->second;
  }
  std::vector<BFloat16> Values(const WeightSpec& spec) const {
    const Weight weight = checkpoint_.Load(spec, at::kBFloat16);
    const auto* data = static_cast<const BFloat16*>(weight.dense.const_data_ptr());
    return {data, data + weight.dense.numel()};
  }

 private:
  Checkpoint checkpoint_;
  std::map<std::string, WeightSpec> specs_;
};

void CompareModule(ThreadPool& pool, const Reference& reference, const StoredModule& stored,
                   Inspection* inspection) {
  const std::string name = stored.module() + std::string(kWeightSuffix);
  const WeightSpec* spec = reference.Find(name);
  const QuantizedWeight& weight = stored.weight();
  if (spec == nullptr ||
      spec->shape != std::vector<int64_t>{weight.out_features, weight.in_features}) {
    inspection->problems.push_back(fmt::format("{} [{}, {}] is not a weight of the reference model",
                                               name, weight.out_features, weight.in_features));
    return;
  }
  inspection->errors.push_back(
      MeasureError(pool, name, stored.Values(pool), reference.Values(*spec), weight.in_features));
}

// Weights that are not quantised must be those of the reference, bit for bit.
void CompareDense(ThreadPool& pool, const Reference& reference, const TensorSet& tensors,
                  Inspection* inspection) {
  for (const TensorView& tensor : tensors.tensors()) {
    const WeightSpec* spec = reference.Find(tensor.name);
    if (spec == nullptr || tensor.dtype != DType::kBF16 || tensor.shape != spec->shape) continue;
    const std::vector<BFloat16> expected = reference.Values(*spec);
    const std::vector<BFloat16> found = Elements<BFloat16>(tensor);
    if (std::memcmp(found.data(), expected.data(), tensor.bytes.size()) == 0) continue;
    inspection->errors.push_back(
        MeasureError(pool, tensor.name, found, expected, tensor.shape.back()));
  }
}

void ReadMetadata(const std::filesystem::path& directory, Inspection* inspection) {
  const std::filesystem::path path = directory / kMetadataFile;
  if (!std::filesystem::exists(path)) return;
  inspection->metadata = ParseMetadata(ParseJson(ReadFile(path), path.string()), path.string());
  if (inspection->scheme.has_value()) {
    inspection->scheme = WithMetadata(*inspection->scheme, *inspection->metadata, path.string());
  }
}

void CheckUsedCodes(Inspection* inspection) {
  if (!inspection->metadata.has_value() || !inspection->used_codes.has_value()) return;
  const CodeGrid& used = *inspection->used_codes;
  const CodeGrid& grid = inspection->metadata->grid;
  if (used.lo >= grid.lo && used.hi <= grid.hi) return;
  inspection->problems.push_back(
      fmt::format("codes {}..{} are in use, but quatrain.json says {}..{}", used.lo, used.hi,
                  grid.lo, grid.hi));
}

// Scales, codes and errors of every quantised module, one in memory at a time.
void InspectCodes(ThreadPool& pool, const TensorSet& tensors,
                  const std::vector<LinearModule>& modules, const Reference* reference,
                  Inspection* inspection) {
  for (const LinearModule& module : modules) {
    if (!module.is_quantized) continue;
    const StoredModule stored(tensors, module, *inspection->scheme);
    NoteCodes(stored.weight(), &inspection->used_codes);
    try {
      stored.CheckScaleValues();
      if (reference != nullptr) CompareModule(pool, *reference, stored, inspection);
    } catch (const Error& error) {
      inspection->problems.push_back(error.what());
    }
  }
  CheckUsedCodes(inspection);
}

}  // namespace

int64_t Inspection::total_bytes() const {
  int64_t total = 0;
  for (const SizeRow& row : sizes) total += row.bytes;
  return total;
}

int64_t Inspection::total_parameters() const {
  int64_t total = 0;
  for (const SizeRow& row : sizes) total += row.num_parameters;
  return total;
}

Inspection InspectModel(ThreadPool& pool, const std::filesystem::path& directory,
                        const std::optional<std::filesystem::path>& against) {
  const HfRepo repo(directory);
  const std::string config = (directory / "config.json").string();
  Inspection inspection;
  inspection.directory = directory.string();
  inspection.scheme = FindQuantScheme(repo.config(), config);
  ReadMetadata(directory, &inspection);
  const TensorTable table = TableOf(repo.tensors());
  const std::vector<LinearModule> modules = LinearModulesOf(table);
  inspection.sizes = SizesOf(repo.tensors(), table);
  inspection.modules = RowsOf(modules);
  std::optional<Reference> reference;
  if (against.has_value()) reference.emplace(*against);

  if (!inspection.scheme.has_value()) {
    inspection.problems = FindUnannounced(table);
  } else {
    inspection.problems = FindInconsistencies(*inspection.scheme, table, config);
    std::vector<ParallelLinear> linears;
    for (const LinearModule& module : modules) {
      if (!module.is_quantized) continue;
      linears.push_back(ClassifyLinear(module.module, module.out_features, module.in_features));
    }
    inspection.parallel = TensorParallelTable(linears, inspection.scheme->group_size);
    // Content is read only where names and shapes hold.
    if (inspection.problems.empty()) {
      InspectCodes(pool, repo.tensors(), modules, reference ? &*reference : nullptr, &inspection);
    }
  }
  if (reference.has_value()) CompareDense(pool, *reference, repo.tensors(), &inspection);
  return inspection;
}

}  // namespace quatrain
