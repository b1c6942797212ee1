// One conversion: BF16 directory in, pack-quantized directory out, checked before it is published.
//
// Weights pass through memory a layer at a time: loaded from the mapped source, calibrated, written
// to their place in the output, let go. The output grows in a work folder beside the output
// directory, "<output>.partial"; a conversion that was killed goes on there, and ends with the same
// bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "calibrate/calibrate.h"
#include "calibrate/fidelity.h"
#include "cli/conversion_plan.h"
#include "cli/inspection.h"

namespace quatrain {

enum class ExistingOutput {
  kRefuse,     // an output directory that is not empty
  kOverwrite,  // replace it, but only if a conversion or a training run made it
};

// What becomes of the work folder that an earlier conversion to the same output left.
enum class EarlierWork {
  kContinue,  // go on with it; refuse if it was another conversion
  kRestart,   // throw it away
};

struct ConversionConfig {
  std::filesystem::path input_dir;
  std::filesystem::path output_dir;
  CalibrationRequest data;  // its source may be empty for round-to-nearest
  QuantScheme scheme;       // bits, group size and rule
  CalibrateOptions calibrate;
  std::optional<QuantScope> scope;  // nullopt: experts if the model has some, else all linears
  Indivisible indivisible = Indivisible::kRefuse;
  ExistingOutput existing_output = ExistingOutput::kRefuse;
  EarlierWork earlier_work = EarlierWork::kContinue;
  uint64_t max_shard_bytes = 5'000'000'000;
  uint64_t seed = 0;
};

struct ConversionSummary {
  int64_t num_quantized = 0;
  int64_t num_weights = 0;            // linears in all
  std::vector<std::string> kept;      // in scope, yet BF16: the group size does not divide them
  std::vector<std::string> copied;    // tensors without a place in the model, byte for byte
  std::vector<std::string> cast;      // tensors that were not BF16
  std::vector<ModuleReport> modules;  // empty for round-to-nearest
  std::vector<int64_t> code_counts;   // from the lowest code up
  std::optional<Fidelity> fidelity;   // on held-out text
  Json data;                          // null for round-to-nearest
  QuantScope scope;
  QuantScheme scheme;
  ConversionPlan plan;
  uint64_t source_bytes = 0;       // of tensors
  int64_t num_resumed_stages = 0;  // that an earlier run had done
  double seconds = 0.0;            // of all runs
  uint64_t peak_memory_bytes = 0;  // of the largest of them
  Inspection inspection;           // of what was written
  std::filesystem::path output_dir;

  std::vector<const ModuleReport*> Fallbacks() const;
  std::vector<std::string> ColdModules() const;  // to which no token was routed
  double FallbackFraction() const;               // of all quantised weights
};

// The directory appears at once, when all of it is written and checked. Errors of every step;
// kUsage for a source that is quantised already, an output directory that must not be replaced, a
// calibration of an unknown architecture, or work that another command began; kResource if memory
// or disk will not do. When it stops in the middle, by an error or by `progress`, what is whole is
// kept and the message says so.
ConversionSummary Convert(ThreadPool& pool, const ConversionConfig& config,
                          const CalibrateProgress& progress);

// "gptq", "reference", "rtn".
std::string CalibrateMethodName(CalibrateMethod method);

}  // namespace quatrain
