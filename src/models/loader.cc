#include "models/loader.h"

#include <cstring>
#include <set>

#include "base/log.h"
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

Checkpoint::Checkpoint(const std::filesystem::path& directory)
    : repo_(directory),
      config_(ParseModelConfig(repo_.config(), (directory / "config.json").string())),
      scheme_(FindQuantScheme(repo_.config(), (directory / "config.json").string())) {}

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
    return DenseFrom(*tensor, tensor->bytes, spec.shape, dense_type);
  }
  const std::optional<FusedSlice> slice = FusedSliceOf(spec);
  if (!slice.has_value() || repo_.tensors().Find(slice->tensor) == nullptr) {
    return DenseFrom(repo_.tensors().Get(spec.name), {}, spec.shape,
                     dense_type);  // throws: missing
  }
  const TensorView& fused = repo_.tensors().Get(slice->tensor);
  CheckShape(fused, {config_.num_experts, slice->rows, spec.shape[1]});
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

std::vector<std::string> Checkpoint::UnknownTensors() const {
  std::set<std::string> unknown;
  for (const TensorView& tensor : repo_.tensors().tensors()) unknown.insert(tensor.name);
  for (const WeightSpec& spec : WeightTableOf(config_)) {
    unknown.erase(spec.name);
    for (const std::string_view suffix :
         {kPackedSuffix, kScaleSuffix, kShapeSuffix, kZeroPointSuffix, kGroupIndexSuffix}) {
      unknown.erase(spec.module() + std::string(suffix));
    }
    if (const auto slice = FusedSliceOf(spec)) unknown.erase(slice->tensor);
  }
  // A tied head stored beside the embedding is the same weight.
  if (config_.tie_word_embeddings) unknown.erase("lm_head.weight");
  return {unknown.begin(), unknown.end()};
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
