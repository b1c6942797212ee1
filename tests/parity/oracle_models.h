// The models whose reference values lie in tests/goldens/oracles, and ways to read those.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "io/tensor_set.h"
#include "models/decoder.h"
#include "models/loader.h"

namespace quatrain {

inline std::string SourcePath(const std::string& path) {
  return std::string(QT_SOURCE_DIR) + "/" + path;
}

inline std::string ModelPath(const std::string& name) {
  return SourcePath((name.starts_with("small") ? "tests/goldens/models/" : "examples/models/") +
                    name);
}

// A model at one activation type, ready to run.
struct OracleModel {
  OracleModel(const std::string& name, at::ScalarType type)
      : checkpoint(ModelPath(name)),
        weights(LoadWeights(checkpoint, type)),
        decoder(checkpoint.config(), weights) {}
  Checkpoint checkpoint;
  ModelWeights weights;
  Decoder decoder;
};

template <class T>
std::vector<T> ReadVector(const TensorSet& set, const std::string& name) {
  const TensorView& view = set.Get(name);
  std::vector<T> values(view.bytes.size() / sizeof(T));
  std::memcpy(values.data(), view.bytes.data(), view.bytes.size());
  return values;
}

}  // namespace quatrain
