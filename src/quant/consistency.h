// Does a directory hold what its config.json says? Names, dtypes and shapes of all tensors against
// the scheme.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quant/scheme.h"

namespace quatrain {

// What a safetensors header says about a tensor, and the content of a weight_shape.
struct TensorMeta {
  std::string dtype;  // "BF16", "I32"
  std::vector<int64_t> shape;
  std::vector<int64_t> values = {};  // of tensors named *.weight_shape: N and K
};
using TensorTable = std::map<std::string, TensorMeta>;  // by name

// A linear module found in the table.
struct LinearModule {
  std::string module;
  bool is_quantized = false;
  int64_t out_features = 0;
  int64_t in_features = 0;
};

// Every linear: the modules with a weight_packed, and those with a 2-D weight that are no
// embedding. Fused 3-D experts (mlp.experts.gate_up_proj) count as linears in BF16. Sorted by name.
std::vector<LinearModule> LinearModulesOf(const TensorTable& tensors);

// Everything that is wrong, one sentence each that names the tensor; empty if the table is
// consistent:
//   a companion tensor missing or left over, weight and weight_packed both, wrong dtype or shape,
//   groups that do not divide K, a module quantised though ignored or BF16 though not ignored, zero
//   points that the scheme does not have, and modules which engines fuse (q/k/v, gate/up, all
//   experts of a layer) that are not all quantised or all BF16.
std::vector<std::string> FindInconsistencies(const QuantScheme& scheme, const TensorTable& tensors,
                                             const std::string& where);

// The same for a model without a quantization_config: it must hold no quantised tensor.
std::vector<std::string> FindUnannounced(const TensorTable& tensors);

// Error kData naming `where`, the first problem and how many there are, unless `problems` is empty.
void ThrowIfInconsistent(const std::vector<std::string>& problems, const std::string& where);

}  // namespace quatrain
