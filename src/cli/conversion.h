// One conversion: BF16 directory in, pack-quantized directory out, checked before it is published.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "calibrate/calibrate.h"

namespace quatrain {

enum class ExistingOutput {
  kRefuse,     // an output directory that is not empty
  kOverwrite,  // replace it, but only if a conversion or a training run made it
};

struct ConversionConfig {
  std::filesystem::path input_dir;
  std::filesystem::path output_dir;
  CalibrationRequest data;  // its source may be empty for round-to-nearest
  QuantScheme scheme;       // bits, group size and rule
  CalibrateOptions calibrate;
  QuantScope scope = QuantScope::kAllLinear;
  Indivisible indivisible = Indivisible::kRefuse;
  ExistingOutput existing_output = ExistingOutput::kRefuse;
  uint64_t seed = 0;
};

struct ConversionSummary {
  int64_t num_quantized = 0;
  int64_t num_weights = 0;            // linears in all
  std::vector<std::string> kept;      // in scope, yet BF16: the group size does not divide them
  std::vector<std::string> copied;    // tensors without a place in the model, byte for byte
  std::vector<std::string> cast;      // tensors that were not BF16
  std::vector<ModuleReport> modules;  // empty for round-to-nearest
  Json data;                          // null for round-to-nearest
  std::filesystem::path output_dir;

  std::vector<const ModuleReport*> Fallbacks() const;
};

// Nothing is written under output_dir unless all of it succeeds; it appears at once. Errors of
// every step, and kUsage for a source that is quantised already or an output directory that must
// not be replaced, kResource if memory or disk will not do.
ConversionSummary Convert(ThreadPool& pool, const ConversionConfig& config,
                          const CalibrateProgress& progress);

// "gptq", "reference", "rtn".
std::string CalibrateMethodName(CalibrateMethod method);

}  // namespace quatrain
