#include "models/loader.h"

#include <cstring>
#include <set>

#include "base/file.h"
#include "base/log.h"
#include "models/name_table.h"
#include "quant/compressed_tensors.h"

namespace quatrain {
namespace {

std::string ShapeText(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

void CheckShape(const TensorView& tensor, const std::vector<int64_t>& expected) {
  if (tensor.shape == expected) return;
  throw Error(ErrorCode::kShape, {.where = tensor.where(),
                                  .what = "the shape does not fit config.json",
                                  .expected = ShapeText(expected),
                                  .found = ShapeText(tensor.shape)});
}

at::ScalarType FloatTypeOf(const TensorView& tensor) {
  switch (tensor.dtype) {
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kF16:
      return at::kHalf;
    case DType::kF32:
      return at::kFloat;
    default:
      throw Error(ErrorCode::kData, {.where = tensor.where(),
                                     .what = "the weight has a type that cannot be read",
                                     .expected = "BF16, F16 or F32",
                                     .found = std::string(DTypeName(tensor.dtype))});
  }
}

// Copies bytes (a whole tensor or a slice) into a new tensor of `type`.
at::Tensor DenseFrom(const TensorView& tensor, std::span<const std::byte> bytes,
                     const std::vector<int64_t>& shape, at::ScalarType type) {
  at::Tensor source = EmptyTensor(shape, FloatTypeOf(tensor));
  QT_CHECK(source.nbytes() == bytes.size(), "{}", tensor.where());
  std::memcpy(source.data_ptr(), bytes.data(), bytes.size());
  // The input of the quantiser is always a BF16 value (docs/int4_format.md).
  return type == at::kFloat ? source.to(at::kFloat) : source.to(at::kBFloat16);
}

// Where an expert's matrix lies in the fused 3-D tensors of transformers 5.
struct FusedSlice {
  std::string tensor;
  int64_t row_begin;  // of an expert's rows
  int64_t rows;       // of the tensor per expert
};
std::optional<FusedSlice> FusedSliceOf(const WeightSpec& spec) {
  if (spec.role != WeightRole::kExpert) return std::nullopt;
  const std::string experts = spec.name.substr(0, spec.name.find(".experts.") + 9);
  const int64_t size = spec.shape[0];
  if (spec.name.ends_with(".gate_proj.weight"))
    return FusedSlice{experts + "gate_up_proj", 0, 2 * size};
  if (spec.name.ends_with(".up_proj.weight"))
    return FusedSlice{experts + "gate_up_proj", size, 2 * size};
  return FusedSlice{experts + "down_proj", 0, size};
}

template <class T>
std::vector<T> Elements(const TensorView& tensor, DType dtype) {
  if (tensor.dtype != dtype) {
    throw Error(ErrorCode::kData, {.where = tensor.where(),
                                   .what = "the tensor has another type",
                                   .expected = std::string(DTypeName(dtype)),
                                   .found = std::string(DTypeName(tensor.dtype))});
  }
  std::vector<T> elements(tensor.bytes.size() / sizeof(T));
  std::memcpy(elements.data(), tensor.bytes.data(), tensor.bytes.size());
  return elements;
}

// The two values of weight_shape, as I64 or (older files) I32.
void CheckWeightShape(const TensorView& tensor, const std::vector<int64_t>& expected) {
  CheckShape(tensor, {2});
  std::vector<int64_t> values;
  if (tensor.dtype == DType::kI32) {
    for (const int32_t value : Elements<int32_t>(tensor, DType::kI32)) values.push_back(value);
  } else {
    values = Elements<int64_t>(tensor, DType::kI64);
  }
  if (values == expected) return;
  throw Error(ErrorCode::kShape, {.where = tensor.where(),
                                  .what = "its values do not fit config.json",
                                  .expected = ShapeText(expected),
                                  .found = ShapeText(values),
                                  .todo = "Convert the BF16 original again"});
}

}  // namespace

Checkpoint::Checkpoint(const std::filesystem::path& directory, UnknownFamily unknown_family)
    : repo_(directory) {
  const std::string where = (directory / "config.json").string();
  if (unknown_family == UnknownFamily::kRefuse || IsKnownFamily(repo_.config())) {
    config_ = ParseModelConfig(repo_.config(), where);
    table_ = WeightTableOf(*config_);
  } else {
    table_ = WeightTableFromNames(repo_.tensors(), repo_.config());
  }
  block_fp8_ = FindBlockFp8(repo_.config(), where);
  if (!block_fp8_.has_value()) scheme_ = FindQuantScheme(repo_.config(), where);
}

const ModelConfig& Checkpoint::config() const {
  QT_CHECK(config_.has_value(), "{} is of no known family", name());
  return *config_;
}

Weight Checkpoint::Load(const WeightSpec& spec, at::ScalarType dense_type) const {
  if (scheme_.has_value() && spec.is_quantisable() &&
      repo_.tensors().Find(spec.module() + std::string(kPackedSuffix)) != nullptr) {
    return LoadQuantized(spec);
  }
  return {spec, LoadDense(spec, dense_type), {}};
}

at::Tensor Checkpoint::LoadDense(const WeightSpec& spec, at::ScalarType dense_type) const {
  if (const TensorView* tensor = repo_.tensors().Find(spec.name)) {
    CheckShape(*tensor, spec.shape);
    if (IsBlockFp8(*tensor)) {
      const std::vector<BFloat16> weight_OI = DequantizeFp8(*tensor);
      at::Tensor dense = EmptyTensor(spec.shape, at::kBFloat16);
      std::memcpy(dense.data_ptr(), weight_OI.data(), weight_OI.size() * sizeof(BFloat16));
      return dense_type == at::kFloat ? dense.to(at::kFloat) : dense;
    }
    return DenseFrom(*tensor, tensor->bytes, spec.shape, dense_type);
  }
  const std::optional<FusedSlice> slice = FusedSliceOf(spec);
  if (!slice.has_value() || repo_.tensors().Find(slice->tensor) == nullptr) {
    return DenseFrom(repo_.tensors().Get(spec.name), {}, spec.shape,
                     dense_type);  // throws: missing
  }
  const TensorView& fused = repo_.tensors().Get(slice->tensor);
  const int64_t num_experts = config_               ? config_->num_experts
                              : fused.shape.empty() ? 0
                                                    : fused.shape[0];
  CheckShape(fused, {num_experts, slice->rows, spec.shape[1]});
  const size_t row_bytes =
      static_cast<size_t>(spec.shape[1]) * c10::elementSize(FloatTypeOf(fused));
  const size_t begin =
      static_cast<size_t>(spec.expert * slice->rows + slice->row_begin) * row_bytes;
  return DenseFrom(fused,
                   fused.bytes.subspan(begin, static_cast<size_t>(spec.shape[0]) * row_bytes),
                   spec.shape, dense_type);
}

Weight Checkpoint::LoadQuantized(const WeightSpec& spec) const {
  const std::string module = spec.module();
  const int64_t rows = spec.shape[0], columns = spec.shape[1];
  const int64_t group_size = scheme_->GroupSizeFor(columns);
  CheckDivides(spec.name, columns, group_size);
  const TensorView& packed = repo_.tensors().Get(module + std::string(kPackedSuffix));
  const TensorView& scale = repo_.tensors().Get(module + std::string(kScaleSuffix));
  CheckShape(packed, {rows, PackedWords(columns, scheme_->num_bits)});
  CheckShape(scale, {rows, columns / group_size});
  CheckWeightShape(repo_.tensors().Get(module + std::string(kShapeSuffix)), spec.shape);
  const TensorView* zero_point = repo_.tensors().Find(module + std::string(kZeroPointSuffix));
  const TensorView* group_index = repo_.tensors().Find(module + std::string(kGroupIndexSuffix));
  if (zero_point != nullptr || group_index != nullptr) {
    return LoadForeign(spec, {packed, scale, zero_point, group_index});
  }
  Weight weight{spec, {}, {}};
  weight.codes.num_bits = scheme_->num_bits;
  weight.codes.out_features = rows;
  weight.codes.in_features = columns;
  weight.codes.group_size = group_size;
  weight.codes.packed = Elements<int32_t>(packed, DType::kI32);
  weight.codes.scale = Elements<BFloat16>(scale, DType::kBF16);
  CheckScales(scale.where(), weight.codes.scale, columns / group_size, scheme_->grid());
  return weight;
}

Weight Checkpoint::LoadForeign(const WeightSpec& spec, const ForeignTensors& tensors) const {
  const auto words = Elements<int32_t>(tensors.packed, DType::kI32);
  const auto scale = Elements<BFloat16>(tensors.scale, DType::kBF16);
  std::vector<int32_t> zero_point, group_index;
  if (tensors.zero_point != nullptr)
    zero_point = Elements<int32_t>(*tensors.zero_point, DType::kI32);
  if (tensors.group_index != nullptr)
    group_index = Elements<int32_t>(*tensors.group_index, DType::kI32);
  const std::vector<BFloat16> dense =
      DequantizeForeign({.module = tensors.packed.where(),
                         .num_bits = scheme_->num_bits,
                         .out_features = spec.shape[0],
                         .in_features = spec.shape[1],
                         .group_size = scheme_->GroupSizeFor(spec.shape[1]),
                         .packed = words,
                         .scale = scale,
                         .zero_point = zero_point,
                         .group_index = group_index});
  Weight weight{spec, EmptyTensor(spec.shape, at::kBFloat16), {}};
  std::memcpy(weight.dense.data_ptr(), dense.data(), dense.size() * sizeof(BFloat16));
  return weight;
}

bool Checkpoint::IsBlockFp8(const TensorView& tensor) const {
  return block_fp8_.has_value() && tensor.dtype == DType::kF8E4M3 && tensor.shape.size() == 2 &&
         tensor.name.ends_with(kWeightSuffix);
}

std::vector<BFloat16> Checkpoint::DequantizeFp8(const TensorView& tensor) const {
  const std::string module = tensor.name.substr(0, tensor.name.size() - kWeightSuffix.size());
  const TensorView& scale = repo_.tensors().Get(module + std::string(kFp8ScaleSuffix));
  const auto blocks = [](int64_t size, int64_t block) { return (size + block - 1) / block; };
  CheckShape(scale, {blocks(tensor.shape[0], block_fp8_->block_rows),
                     blocks(tensor.shape[1], block_fp8_->block_columns)});
  const at::Tensor factors = DenseFrom(scale, scale.bytes, scale.shape, at::kFloat);
  return DequantizeBlockFp8(tensor.bytes, tensor.shape[1],
                            {factors.const_data_ptr<float>(), static_cast<size_t>(factors.numel())},
                            *block_fp8_);
}

std::vector<std::string> Checkpoint::UnknownTensors() const {
  std::set<std::string> unknown;
  for (const TensorView& tensor : repo_.tensors().tensors()) unknown.insert(tensor.name);
  const auto erase_companions = [&](const std::string& module) {
    for (const std::string_view suffix : {kPackedSuffix, kScaleSuffix, kShapeSuffix,
                                          kZeroPointSuffix, kGroupIndexSuffix, kFp8ScaleSuffix}) {
      unknown.erase(module + std::string(suffix));
    }
  };
  for (const TensorView& tensor : repo_.tensors().tensors()) {
    if (!IsBlockFp8(tensor)) continue;
    unknown.erase(tensor.name.substr(0, tensor.name.rfind('.')) + std::string(kFp8ScaleSuffix));
  }
  for (const WeightSpec& spec : table_) {
    unknown.erase(spec.name);
    erase_companions(spec.module());
    if (const auto slice = FusedSliceOf(spec)) unknown.erase(slice->tensor);
  }
  // A tied head stored beside the embedding is the same weight.
  if (config_ && config_->tie_word_embeddings) unknown.erase("lm_head.weight");
  return {unknown.begin(), unknown.end()};
}

std::vector<std::string> Checkpoint::CastTensors() const {
  std::set<std::string> cast;
  for (const WeightSpec& spec : table_) {
    const TensorView* tensor = repo_.tensors().Find(spec.name);
    if (const auto slice = FusedSliceOf(spec); tensor == nullptr && slice.has_value()) {
      tensor = repo_.tensors().Find(slice->tensor);
    }
    if (tensor != nullptr && tensor->dtype != DType::kBF16) cast.insert(tensor->name);
  }
  for (const std::string& name : UnknownTensors()) {
    if (IsBlockFp8(repo_.tensors().Get(name))) cast.insert(name);
  }
  return {cast.begin(), cast.end()};
}

void Checkpoint::Release(const WeightSpec& spec) const {
  const auto release = [&](const std::string& name) {
    const TensorView* const tensor = repo_.tensors().Find(name);
    if (tensor != nullptr) ReleasePages(tensor->bytes);
  };
  release(spec.name);
  release(spec.module() + std::string(kPackedSuffix));
  release(spec.module() + std::string(kScaleSuffix));
  if (const auto slice = FusedSliceOf(spec)) release(slice->tensor);
}

ModelWeights UnloadedWeights(const Checkpoint& checkpoint) {
  std::vector<Weight> weights;
  for (const WeightSpec& spec : checkpoint.table()) weights.push_back({spec, {}, {}});
  return ModelWeights(std::move(weights));
}

ModelWeights LoadWeights(const Checkpoint& checkpoint, at::ScalarType dense_type) {
  // A layer or bias that config.json does not speak of would be missed in silence otherwise.
  if (const std::vector<std::string> unread = checkpoint.UnknownTensors(); !unread.empty()) {
    Log().warn(
        "{}: {} tensors have no place in the model that config.json describes and are not "
        "read (the first: '{}')",
        checkpoint.name(), unread.size(), unread.front());
  }
  std::vector<Weight> weights;
  for (const WeightSpec& spec : WeightTableOf(checkpoint.config())) {
    weights.push_back(checkpoint.Load(spec, dense_type));
  }
  return ModelWeights(std::move(weights));
}

ModelWeights AllocateLike(const ModelWeights& format, int64_t group_size) {
  std::vector<Weight> weights;
  for (size_t i = 0; i < format.size(); ++i) {
    const Weight& source = format[i];
    Weight weight{source.spec, {}, {}};
    if (source.is_quantized()) {
      QuantizedWeight& codes = weight.codes;
      codes.num_bits = source.codes.num_bits;
      codes.out_features = source.codes.out_features;
      codes.in_features = source.codes.in_features;
      codes.group_size = group_size == 0 ? source.codes.group_size : group_size;
      CheckDivides(source.spec.name, codes.in_features, codes.group_size);
      codes.packed.resize(
          static_cast<size_t>(codes.out_features * PackedWords(codes.in_features, codes.num_bits)));
      codes.scale.resize(static_cast<size_t>(codes.out_features * codes.num_groups()));
    } else {
      weight.dense = ZeroTensor(source.spec.shape, at::kBFloat16);
    }
    weights.push_back(std::move(weight));
  }
  return ModelWeights(std::move(weights));
}

}  // namespace quatrain
