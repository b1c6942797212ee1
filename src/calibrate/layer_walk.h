// Runs one layer over all samples in four steps, each up to the inputs of the weights that are
// quantised next, and the unquantised model beside it.
//
//   LayerWalk walk(ctx, decoder, reference, layer, batches, states);
//   for (const LayerStep step : kLayerSteps) {
//     LayerInputs inputs(...);           // of the weights of the step
//     walk.Run(step, inputs, after);     // earlier weights of the layer are quantised by now
//     ... quantise the weights of the step
//   }
//   walk.Finish(after);                  // the samples' inputs of the next layer are written
//
// Every weight thus meets the inputs that it will meet in the quantised model, and knows those of
// the unquantised one. Hidden states, what attention left and what SwiGLU left are all that waits
// from step to step, in WalkStates; the rest is computed again. In memory there is one batch at a
// time.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "calibrate/hidden_states.h"
#include "calibrate/layer_inputs.h"
#include "models/decoder.h"

namespace quatrain {

// Samples that run together. Results do not depend on the cut.
struct SampleBatch {
  ForwardBatch batch;
  std::string where;  // for errors
};

// Of B batches, entry by entry.
struct WalkStates {
  HiddenStates& hidden;     // [0, B): of the quantised model; [B, 2 B): of the unquantised one
  HiddenStates& attended;   // what o_proj reads, from its step to the next
  HiddenStates& activated;  // what down_proj reads, from its step to the end
};

// Those of one layer for batches of `tokens` tokens, in memory or in files of `folder`.
HiddenStates AttendedStates(const ModelConfig& config, std::vector<int64_t> tokens,
                            std::optional<std::filesystem::path> folder);
HiddenStates ActivatedStates(const ModelConfig& config, int64_t layer, std::vector<int64_t> tokens,
                             std::optional<std::filesystem::path> folder);
// Bytes of both, in the layer where they are largest.
uint64_t StepStateBytes(const ModelConfig& config, int64_t num_tokens);

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
            const std::vector<SampleBatch>& batches, WalkStates states);

  // Steps come in order, each once. `after_batch` is called after every batch and may throw to
  // stop.
  void Run(LayerStep step, LayerInputs& inputs, FunctionRef<void()> after_batch);
  void Finish(FunctionRef<void()> after_batch);

 private:
  struct Traces {
    LayerTrace reference, quantized;
  };
  void RunBatch(LayerStep step, LayerInputs& inputs, size_t index);
  void RunReference(const LayerEnv& env, LayerStep step, size_t entry, LayerTrace& trace);
  void RunQuantized(const LayerEnv& env, LayerStep step, size_t index, LayerTrace& trace);
  bool is_last() const { return layer_ + 1 == decoder_.config().num_hidden_layers; }

  const OpContext& ctx_;
  const Decoder& decoder_;
  const Decoder& reference_;
  int64_t layer_;
  const std::vector<SampleBatch>& batches_;
  WalkStates states_;
};

}  // namespace quatrain
