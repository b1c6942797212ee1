// HF or INT4 tensors <-> the weight table. The only reader and writer of tensor names.
//
//   Checkpoint checkpoint("examples/models/tiny-qwen3-moe");
//   ModelWeights weights = LoadWeights(checkpoint, at::kBFloat16);
//   ExportModel(checkpoint, weights, {...}, folder);
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "io/hf_repo.h"
#include "io/safetensors_writer.h"
#include "models/weights.h"
#include "quant/scheme.h"

namespace quatrain {

// A model directory opened for reading; tensors stay mapped.
class Checkpoint {
 public:
  // Errors of HfRepo, ParseModelConfig and the quantization_config's parser.
  explicit Checkpoint(const std::filesystem::path& directory);

  const HfRepo& repo() const { return repo_; }
  const ModelConfig& config() const { return config_; }
  // The scheme of quantization_config; nullopt for a BF16 directory.
  const std::optional<QuantScheme>& scheme() const { return scheme_; }
  std::string name() const { return repo_.directory().string(); }

  // One weight of the table: dense as `dense_type` (BF16 or FP32; FP16 and FP32 sources are rounded
  // to BF16), or codes where the directory has them; per-expert tensors or slices of fused 3-D
  // ones. Error kData or kShape naming file and tensor: missing, wrong shape or dtype, incomplete
  // or inconsistent codes.
  Weight Load(const WeightSpec& spec, at::ScalarType dense_type) const;

  // Tensors that no row of the table reads (MTP layers, vision towers), sorted; exporters copy them
  // byte for byte.
  std::vector<std::string> UnknownTensors() const;

 private:
  // Zero points or scattered groups, as other tools wrote them: readable, as an ordinary BF16
  // weight.
  struct ForeignTensors {
    const TensorView& packed;
    const TensorView& scale;
    const TensorView* zero_point;
    const TensorView* group_index;
  };
  Weight LoadQuantized(const WeightSpec& spec) const;
  Weight LoadForeign(const WeightSpec& spec, const ForeignTensors& tensors) const;
  at::Tensor LoadDense(const WeightSpec& spec, at::ScalarType dense_type) const;

  HfRepo repo_;
  ModelConfig config_;
  std::optional<QuantScheme> scheme_;
};

// All weights of the table; warns of tensors that no row reads. Errors of Checkpoint::Load.
ModelWeights LoadWeights(const Checkpoint& checkpoint, at::ScalarType dense_type);

// A table of the same model in another format, memory allocated and zeroed: quantised where
// `format` is (its bits; group_size overrides it unless 0), BF16 elsewhere.
ModelWeights AllocateLike(const ModelWeights& format, int64_t group_size);

struct ExportOptions {
  std::optional<QuantScheme> scheme;  // of the quantised weights; must be set if there are any
  Json quatrain_json;                 // content of quatrain.json; null: none is written
};
// Writes a Hugging Face directory into `folder` (existing, empty): tensors, config.json (the
// source's, with the new quantization_config and dtype), the auxiliary files and unknown tensors of
// `source`. Dense weights must be BF16. Error kIo, kResource (disk).
void ExportModel(const Checkpoint& source, const ModelWeights& weights,
                 const ExportOptions& options, const std::filesystem::path& folder);

}  // namespace quatrain
