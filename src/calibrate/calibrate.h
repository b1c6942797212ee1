// Quantises a model in place, layer by layer: run a layer over all samples, calibrate its weights
// on the inputs they saw, run it again with the quantised weights to make the next layer's inputs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "calibrate/calibration_data.h"
#include "calibrate/gptq.h"
#include "calibrate/quant_plan.h"
#include "models/model_config.h"
#include "models/weights.h"
#include "ops/tensor.h"

namespace quatrain {

enum class CalibrateMethod {
  kGptq,       // our default: routed tokens blended with the layer's, dead columns kept, dampening
               // ladder
  kReference,  // llm-compressor 0.14: every expert sees every token
  kRtn,        // round-to-nearest: needs no data
};

struct CalibrateOptions {
  CalibrateMethod method = CalibrateMethod::kGptq;
  double dampening_frac = 0.01;
  ActOrder actorder = ActOrder::kStatic;
};

// What became of one weight. Errors are ||X (W - W')|| / ||X W|| over the inputs X it was
// calibrated on.
struct ModuleReport {
  std::string module;
  int64_t num_tokens = 0;  // that reached it
  double relative_error = 0.0;
  double rtn_relative_error = 0.0;  // of round-to-nearest with absmax/7 on the same inputs
  double dampening_frac = 0.0;
  std::string fallback;  // why it was rounded to nearest; empty if it was not

  Json ToJson() const;
};

// Called after every step with a short text about the next one; may throw to stop.
using CalibrateProgress = std::function<void(int64_t done, int64_t total, const std::string& note)>;

// Replaces the weights that `plan` quantises, which must be BF16, by codes. Same bits for any
// thread count. Errors: kData naming a module whose inputs, Hessian or weight are not finite, with
// the samples; whatever `progress` throws, the weights then being partly quantised.
std::vector<ModuleReport> CalibrateModel(const OpContext& ctx, const ModelConfig& config,
                                         const QuantPlan& plan, const CalibrateOptions& options,
                                         const CalibrationData& data, ModelWeights& weights,
                                         const CalibrateProgress& progress);

// The same by round-to-nearest, from the weights alone: scales by the plan's rule (kSearched: least
// squared error).
void RoundModel(const OpContext& ctx, const QuantPlan& plan, ModelWeights& weights,
                const CalibrateProgress& progress);

}  // namespace quatrain
