// Runs one layer over all samples in four steps, each up to the inputs of the weights that are
// quantised next, and the unquantised model beside it.
//
//   LayerWalk walk(ctx, decoder, reference, layer, batches);
//   for (const LayerStep step : kLayerSteps) {
//     LayerInputs inputs(...);           // of the weights of the step
//     walk.Run(step, inputs);            // earlier weights of the layer are quantised by now
//     ... quantise the weights of the step
//   }
//   walk.Finish();                       // the samples' inputs of the next layer
//
// Every weight thus meets the inputs that it will meet in the quantised model, and knows those of
// the unquantised one. A sample's hidden states are all that lives from step to step; the rest is
// computed again.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "calibrate/layer_inputs.h"
#include "models/decoder.h"

namespace quatrain {

// Samples that run together. Results do not depend on the cut.
struct SampleBatch {
  ForwardBatch batch;
  std::string where;        // for errors
  at::Tensor x_TD;          // hidden states of the quantised model
  at::Tensor reference_TD;  // of the unquantised one; the same tensor while nothing differs
};

// Which weights, in the order in which they run.
enum class LayerStep { kQkv, kO, kGateUp, kDown };
inline constexpr std::array<LayerStep, 4> kLayerSteps = {LayerStep::kQkv, LayerStep::kO,
                                                         LayerStep::kGateUp, LayerStep::kDown};
// Of a weight that a layer quantises.
LayerStep StepOf(const WeightSpec& spec);

class LayerWalk {
 public:
  // Borrows all. `reference` is the model without codes.
  LayerWalk(const OpContext& ctx, const Decoder& decoder, const Decoder& reference, int64_t layer,
            std::vector<SampleBatch>& batches);

  // Steps come in order, each once.
  void Run(LayerStep step, LayerInputs& inputs);
  void Finish();

 private:
  struct Traces {
    LayerTrace reference, quantized;
  };
  void RunBatch(LayerStep step, LayerInputs& inputs, size_t index);
  void RunReference(const LayerEnv& env, LayerStep step, SampleBatch& batch, LayerTrace& trace);
  void RunQuantized(const LayerEnv& env, LayerStep step, size_t index, LayerTrace& trace);

  const OpContext& ctx_;
  const Decoder& decoder_;
  const Decoder& reference_;
  int64_t layer_;
  std::vector<SampleBatch>& batches_;
  std::vector<at::Tensor> attended_TNH_;  // what o_proj reads, from its step to the next
};

}  // namespace quatrain
