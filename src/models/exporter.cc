#include "models/loader.h"
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

// Adds a weight's tensors to the plan, in the order in which WriteWeight writes them.
void PlanWeight(const Weight& weight, std::vector<TensorPlan>* plan) {
  if (!weight.is_quantized()) {
    QT_CHECK(weight.dense.scalar_type() == at::kBFloat16, "{} is not BF16", weight.spec.name);
    plan->push_back({weight.spec.name, DType::kBF16, weight.spec.shape});
    return;
  }
  const QuantizedWeight& codes = weight.codes;
  const std::string module = weight.spec.module();
  plan->push_back({Name(module, kPackedSuffix),
                   DType::kI32,
                   {codes.out_features, PackedWords(codes.in_features, codes.num_bits)}});
  plan->push_back(
      {Name(module, kScaleSuffix), DType::kBF16, {codes.out_features, codes.num_groups()}});
  plan->push_back({Name(module, kShapeSuffix), DType::kI64, {2}});
}

void WriteWeight(const Weight& weight, SafetensorsWriter* writer) {
  if (!weight.is_quantized()) {
    writer->Write(weight.spec.name, {static_cast<const std::byte*>(weight.dense.const_data_ptr()),
                                     weight.dense.nbytes()});
    return;
  }
  const std::string module = weight.spec.module();
  writer->Write(Name(module, kPackedSuffix), BytesOfVector(weight.codes.packed));
  writer->Write(Name(module, kScaleSuffix), BytesOfVector(weight.codes.scale));
  writer->Write(Name(module, kShapeSuffix), BytesOfVector(weight.spec.shape));
}

Json ConfigOf(const Checkpoint& source, const std::optional<QuantScheme>& scheme) {
  Json config = source.repo().config();
  config.erase("quantization_config");
  config[config.contains("torch_dtype") ? "torch_dtype" : "dtype"] = "bfloat16";
  if (scheme.has_value()) config["quantization_config"] = MakeQuantizationConfig(*scheme);
  return config;
}

}  // namespace

void ExportModel(const Checkpoint& source, const ModelWeights& weights,
                 const ExportOptions& options, const std::filesystem::path& folder) {
  std::vector<TensorPlan> plan;
  for (size_t i = 0; i < weights.size(); ++i) {
    QT_CHECK(!weights[i].is_quantized() || options.scheme.has_value(), "codes without a scheme");
    PlanWeight(weights[i], &plan);
  }
  const std::vector<std::string> unknown = source.UnknownTensors();
  for (const std::string& name : unknown) {
    const TensorView& tensor = source.repo().tensors().Get(name);
    plan.push_back({name, tensor.dtype, tensor.shape});
  }
  SafetensorsWriter writer(folder, plan);
  for (size_t i = 0; i < weights.size(); ++i) WriteWeight(weights[i], &writer);
  for (const std::string& name : unknown) {
    writer.Write(name, source.repo().tensors().Get(name).bytes);
  }
  writer.Finish();
  source.repo().CopyAuxiliaryFiles(folder);
  WriteFileAtomic(folder / "config.json", ConfigOf(source, options.scheme).dump(2) + "\n");
  if (!options.quatrain_json.is_null()) {
    WriteFileAtomic(folder / "quatrain.json", options.quatrain_json.dump(2) + "\n");
  }
}

}  // namespace quatrain
