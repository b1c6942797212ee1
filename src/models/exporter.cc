#include "models/exporter.h"

#include "base/file.h"
#include "base/random.h"
#include "io/content_hash.h"
#include "quant/compressed_tensors.h"

namespace quatrain {
namespace {

template <class T>
std::span<const std::byte> BytesOfVector(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

std::string Name(const std::string& module, std::string_view suffix) {
  return module + std::string(suffix);
}

// The tensors of a weight, in the order in which it is written.
std::vector<TensorPlan> PlanOf(const WeightSpec& spec, const WeightFormat& format) {
  if (format.num_bits == 0) return {{spec.name, DType::kBF16, spec.shape}};
  const std::string module = spec.module();
  const int64_t rows = spec.shape[0], columns = spec.shape[1];
  return {{Name(module, kPackedSuffix), DType::kI32, {rows, PackedWords(columns, format.num_bits)}},
          {Name(module, kScaleSuffix), DType::kBF16, {rows, columns / format.group_size}},
          {Name(module, kShapeSuffix), DType::kI64, {2}}};
}

// The bytes of those tensors, borrowed.
std::vector<std::span<const std::byte>> BytesOf(const Weight& weight) {
  if (weight.is_quantized()) {
    return {BytesOfVector(weight.codes.packed), BytesOfVector(weight.codes.scale),
            BytesOfVector(weight.spec.shape)};
  }
  QT_CHECK(weight.dense.scalar_type() == at::kBFloat16, "{} is not BF16", weight.spec.name);
  return {{static_cast<const std::byte*>(weight.dense.const_data_ptr()), weight.dense.nbytes()}};
}

WeightFormat FormatOf(const Weight& weight) {
  return {weight.codes.num_bits, weight.codes.group_size};
}

Json ConfigOf(const Checkpoint& source, const std::optional<QuantScheme>& scheme) {
  Json config = source.repo().config();
  config.erase("quantization_config");
  if (config.contains("text_config") && config["text_config"].is_object()) {
    config["text_config"].erase("quantization_config");
  }
  config[config.contains("torch_dtype") ? "torch_dtype" : "dtype"] = "bfloat16";
  if (scheme.has_value()) config["quantization_config"] = MakeQuantizationConfig(*scheme);
  return config;
}

}  // namespace

uint64_t WeightHash(const Weight& weight) {
  uint64_t hash = 0;
  for (const std::span<const std::byte> bytes : BytesOf(weight)) {
    hash = HashBits(hash, bytes.size(), ContentHash(bytes));
  }
  return hash;
}

ModelWriter::ModelWriter(const Checkpoint& source, const std::vector<WeightSpec>& table,
                         const std::vector<WeightFormat>& formats,
                         const std::filesystem::path& folder,
                         const SafetensorsWriterOptions& options)
    : source_(source), folder_(folder), unknown_(source.UnknownTensors()) {
  QT_CHECK(formats.size() == table.size());
  std::vector<TensorPlan> plan;
  for (size_t i = 0; i < table.size(); ++i) {
    formats_.emplace(table[i].name, formats[i]);
    for (TensorPlan& tensor : PlanOf(table[i], formats[i])) plan.push_back(std::move(tensor));
  }
  for (const std::string& name : unknown_) {
    const TensorView& tensor = source.repo().tensors().Get(name);
    plan.push_back({name, source.IsBlockFp8(tensor) ? DType::kBF16 : tensor.dtype, tensor.shape});
  }
  writer_.emplace(folder, plan, options);
}

uint64_t ModelWriter::Write(const Weight& weight) {
  const WeightFormat& planned = formats_.at(weight.spec.name);
  QT_CHECK(planned.num_bits == weight.codes.num_bits, "{} has {} bits, planned were {}",
           weight.spec.name, weight.codes.num_bits, planned.num_bits);
  const std::vector<TensorPlan> plan = PlanOf(weight.spec, planned);
  const std::vector<std::span<const std::byte>> bytes = BytesOf(weight);
  for (size_t i = 0; i < plan.size(); ++i) writer_->Write(plan[i].name, bytes[i]);
  return WeightHash(weight);
}

void ModelWriter::MarkWritten(const WeightSpec& spec) {
  for (const TensorPlan& tensor : PlanOf(spec, formats_.at(spec.name))) {
    writer_->MarkWritten(tensor.name);
  }
}

void ModelWriter::WriteUnknown() {
  for (const std::string& name : unknown_) {
    const TensorView& tensor = source_.repo().tensors().Get(name);
    if (source_.IsBlockFp8(tensor)) {
      writer_->Write(name, BytesOfVector(source_.DequantizeFp8(tensor)));
    } else {
      writer_->Write(name, tensor.bytes);
    }
    ReleasePages(tensor.bytes);
  }
}

void ModelWriter::MarkUnknownWritten() {
  for (const std::string& name : unknown_) writer_->MarkWritten(name);
}

void ModelWriter::Finish(const ExportOptions& options) {
  for (const auto& [name, format] : formats_) {
    QT_CHECK(format.num_bits == 0 || options.scheme.has_value(), "codes without a scheme");
  }
  writer_->Finish();
  source_.repo().CopyAuxiliaryFiles(folder_);
  WriteFileAtomic(folder_ / "config.json", ConfigOf(source_, options.scheme).dump(2) + "\n");
  if (!options.quatrain_json.is_null()) {
    WriteFileAtomic(folder_ / "quatrain.json", options.quatrain_json.dump(2) + "\n");
  }
}

void ExportModel(const Checkpoint& source, const ModelWeights& weights,
                 const ExportOptions& options, const std::filesystem::path& folder) {
  std::vector<WeightSpec> table;
  std::vector<WeightFormat> formats;
  for (size_t i = 0; i < weights.size(); ++i) {
    table.push_back(weights[i].spec);
    formats.push_back(FormatOf(weights[i]));
  }
  ModelWriter writer(source, table, formats, folder);
  for (size_t i = 0; i < weights.size(); ++i) writer.Write(weights[i]);
  writer.WriteUnknown();
  writer.Finish(options);
}

}  // namespace quatrain
