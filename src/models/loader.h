// HF or INT4 tensors <-> the weight table. The only reader and writer of tensor names.
//
//   Checkpoint checkpoint("examples/models/tiny-qwen3-moe");
//   ModelWeights weights = LoadWeights(checkpoint, at::kBFloat16);
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "io/hf_repo.h"
#include "models/block_fp8.h"
#include "models/weights.h"
#include "quant/scheme.h"

namespace quatrain {

// What becomes of a model_type that src/models/families.cc does not know.
enum class UnknownFamily {
  kRefuse,
  kByNames,  // its weight table is made from names (models/name_table.h); it cannot be run
};

// A model directory opened for reading; tensors stay mapped.
class Checkpoint {
 public:
  // Errors of HfRepo, ParseModelConfig and the quantization_config's parser.
  explicit Checkpoint(const std::filesystem::path& directory,
                      UnknownFamily unknown_family = UnknownFamily::kRefuse);

  const HfRepo& repo() const { return repo_; }
  // False if the family is unknown: there is a table, but no config().
  bool has_config() const { return config_.has_value(); }
  const ModelConfig& config() const;
  const std::vector<WeightSpec>& table() const { return table_; }
  // The scheme of quantization_config; nullopt for a BF16 directory.
  const std::optional<QuantScheme>& scheme() const { return scheme_; }
  std::string name() const { return repo_.directory().string(); }

  // One weight of the table: dense as `dense_type` (BF16 or FP32; FP16, FP32 and block-FP8 sources
  // are rounded to BF16), or codes where the directory has them; per-expert tensors or slices of
  // fused 3-D ones. Error kData or kShape naming file and tensor: missing, wrong shape or dtype,
  // incomplete or inconsistent codes.
  Weight Load(const WeightSpec& spec, at::ScalarType dense_type) const;

  // Tensors that no row of the table reads (MTP layers, vision towers), sorted; exporters copy them
  // byte for byte, but for those IsBlockFp8 says yes to.
  std::vector<std::string> UnknownTensors() const;

  // A 2-D tensor in block-scaled FP8, which a BF16 model can only hold dequantised.
  bool IsBlockFp8(const TensorView& tensor) const;
  std::vector<BFloat16> DequantizeFp8(const TensorView& tensor) const;

  // Names of tensors of the table whose elements are not BF16 (nor codes), sorted: Load rounds
  // them.
  std::vector<std::string> CastTensors() const;

  // Gives back the memory that reading this weight's mapped tensors took.
  void Release(const WeightSpec& spec) const;

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
  std::optional<ModelConfig> config_;
  std::vector<WeightSpec> table_;
  std::optional<BlockFp8> block_fp8_;
  std::optional<QuantScheme> scheme_;
};

// All weights of the table; warns of tensors that no row reads. Errors of Checkpoint::Load.
ModelWeights LoadWeights(const Checkpoint& checkpoint, at::ScalarType dense_type);

// The same table with no weight in memory; who needs one loads it and lets it go.
ModelWeights UnloadedWeights(const Checkpoint& checkpoint);

// A table of the same model in another format, memory allocated and zeroed: quantised where
// `format` is (its bits; group_size overrides it unless 0), BF16 elsewhere.
ModelWeights AllocateLike(const ModelWeights& format, int64_t group_size);

}  // namespace quatrain
