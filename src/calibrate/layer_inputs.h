// What calibration learns about one layer from a forward pass over all samples: a Hessian for every
// distinct input of the weights that will be quantised.
//
// q/k/v share an input, gate/up share one. An expert sees the tokens routed to it; its Hessian is
// shrunk towards the one that all tokens of the layer would give (BlendHessian, with as many prior
// tokens as the input has features), so that an expert with few tokens, or none, is calibrated too.
// For down_proj that needs the expert's own activations on tokens it did not get: a fixed number of
// them is run through every expert. In reference mode all tokens are, as llm-compressor does it,
// and one Hessian serves every expert's gate and up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "calibrate/hessian.h"
#include "calibrate/input_error.h"
#include "calibrate/reference_inputs.h"
#include "models/layer.h"
#include "models/weights.h"

namespace quatrain {

// Weights that read one input.
struct LayerInput {
  std::vector<int> weights;  // indices into ModelWeights; the first is observed for all of them
  Hessian hessian;           // after Finish: what the weights are calibrated with
  InputError error;          // against the unquantised model's inputs; empty without one
  int64_t expert = -1;       // -1 but for one expert's own input
  int64_t num_tokens = 0;    // that reached it by routing
};

enum class ExpertTokens { kRouted, kAll };

// Error kData on a NaN or Inf in the input of a linear, naming `module` and `where`.
void CheckFiniteInput(const at::Tensor& x_TI, const std::string& module, const std::string& where);

class LayerInputs {
 public:
  // Of the weights of `layer` for which is_quantized holds (by index into `weights`). `num_tokens`
  // is the size of the whole calibration set. Borrows weights, which must still be dense.
  LayerInputs(const OpContext& ctx, const ModelWeights& weights,
              const std::vector<bool>& is_quantized, int64_t layer, ExpertTokens expert_tokens,
              int64_t num_tokens);

  bool empty() const { return inputs_.empty(); }

  // For ForwardLayer; valid as long as this object. `where` names the samples of the batch in
  // errors: kData on a NaN or Inf, naming module and samples.
  LinearObserver Observer(std::string where);
  // The same, comparing with what the unquantised model reads. Borrows `reference`.
  LinearObserver Observer(std::string where, const ReferenceInputs& reference);

  // Takes in the experts' inputs of one batch, which wait for each other: an expert alone would not
  // keep all threads busy. Call when observers have seen a batch, before anything that its
  // reference borrows is gone. Errors of Observer.
  void FinishBatch();
  // Shrinks the experts' Hessians; call once, after the last batch.
  std::vector<LayerInput> Finish();

 private:
  void AddInput(int weight_index);
  void Observe(const Weight& weight, const at::Tensor& x_TI, const std::string& where,
               const ReferenceInputs* reference);
  struct Observation {
    LayerInput& input;
    const Weight& weight;
    at::Tensor x_TI;
    ReferenceRows reference;  // empty without one
    std::string where;
  };
  void TakeIn(const Observation& observation) const;
  void ObserveRouter(const at::Tensor& x_TD);
  void KeepProbeTokens(const at::Tensor& x_TD);
  at::Tensor ExpertActivation(int64_t expert, const at::Tensor& x_TD) const;
  LayerInput* InputOf(int weight_index);
  void BlendGateUp();
  void BlendDown();
  int ExpertWeight(int64_t expert, const char* projection) const;

  const OpContext& ctx_;
  const ModelWeights& weights_;
  int64_t layer_;
  ExpertTokens expert_tokens_;
  int64_t num_tokens_;
  std::vector<LayerInput> inputs_;
  std::vector<std::string> keys_;     // of inputs_
  std::vector<Observation> waiting_;  // of experts
  std::vector<int64_t> experts_;      // whose down_proj is quantised
  std::vector<at::Tensor> probe_;     // rows of the router's input
  int64_t num_probe_tokens_ = 0;      // to keep of num_tokens_
  int64_t num_seen_tokens_ = 0;
};

}  // namespace quatrain
