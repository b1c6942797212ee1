// Quantises a model in place, layer by layer: run a layer over all samples, calibrate its weights
// on the inputs they saw, go on with the quantised weights to make the next layer's inputs. Our
// default does so step by step within a layer, beside the unquantised model (layer_walk.h). Only
// the weights of the layer at hand must be in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "calibrate/calibration_data.h"
#include "calibrate/gptq.h"
#include "calibrate/hidden_states.h"
#include "calibrate/quant_plan.h"
#include "models/decoder.h"
#include "models/model_config.h"
#include "models/weights.h"
#include "ops/tensor.h"

namespace quatrain {

enum class CalibrateMethod {
  kGptq,       // our default: weights in the order in which they run, corrected for the errors of
               // their inputs; routed tokens blended with the layer's, dead columns kept, dampening
               // ladder
  kReference,  // llm-compressor 0.14: every expert sees every token
  kRtn,        // round-to-nearest: needs no data
};

struct CalibrateOptions {
  CalibrateMethod method = CalibrateMethod::kGptq;
  double dampening_frac = 0.01;
  ActOrder actorder = ActOrder::kStatic;
};

// What became of one weight. Errors are ||X (T - W')|| / ||X T|| over the inputs X it was
// calibrated on; T is what the codes approximate: W, corrected for the errors of its inputs
// (kGptq).
struct ModuleReport {
  std::string module;
  int64_t num_tokens = 0;  // that reached it
  double relative_error = 0.0;
  double rtn_relative_error = 0.0;  // W by round-to-nearest, absmax/7, against the same T
  double dampening_frac = 0.0;
  std::string fallback;  // why it was rounded to nearest; empty if it was not

  Json ToJson() const;
  static ModuleReport FromJson(const Json& json);
};

// Called after every step with a short text about the next one; may throw to stop.
using CalibrateProgress = std::function<void(int64_t done, int64_t total, const std::string& note)>;

// What a calibration works on; all of it is borrowed.
struct CalibrationTask {
  const ModelConfig& config;
  const QuantPlan& plan;
  const CalibrateOptions& options;
  const CalibrationData& data;
  ModelWeights& weights;
};

// A calibration that its caller takes from layer to layer, so that weights can come and go between:
//   Calibration calibration(ctx, task, decoder, states, progress);
//   calibration.Embed();                    // with the embedding in memory
//   states.Advance();
//   for each layer: calibration.RunLayer(layer), states.Advance();
class Calibration {
 public:
  // Tokens of the first entries of the hidden states: one for each batch of samples, and under
  // kGptq as many again for the unquantised model.
  static std::vector<int64_t> EntryTokens(const CalibrationData& data, CalibrateMethod method);

  // Bytes beside the hidden states that wait from one step of a layer to another, in the folder of
  // the hidden states.
  static uint64_t StepBytes(const ModelConfig& config, const CalibrationData& data,
                            CalibrateMethod method);

  // `decoder` runs task.weights. `states` has the entries of EntryTokens, and maybe more behind.
  Calibration(const OpContext& ctx, const CalibrationTask& task, const Decoder& decoder,
              HiddenStates& states, const CalibrateProgress& progress);
  ~Calibration();

  void Embed();
  // Replaces the layer's weights that the plan quantises, which must be BF16, by codes, and leaves
  // the next layer's inputs. Errors of CalibrateModel.
  std::vector<ModuleReport> RunLayer(int64_t layer);
  // For progress: what an earlier process did counts as no step.
  void SkipLayer(int64_t layer);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// The whole model, whose weights must be in memory: replaces those that the plan quantises, which
// must be BF16, by codes. Same bits for any thread count. Errors: kData naming a module whose
// inputs, Hessian or weight are not finite, with the samples; whatever `progress` throws, the
// weights then being partly quantised.
std::vector<ModuleReport> CalibrateModel(const OpContext& ctx, const CalibrationTask& task,
                                         const CalibrateProgress& progress);

// One weight by round-to-nearest, from its values alone: scales by the scheme's rule (kSearched:
// least squared error).
void RoundWeight(const OpContext& ctx, const QuantScheme& scheme, Weight& weight);

}  // namespace quatrain
