// Held-out text, run through the model before and after quantisation while its layers pass by, so
// that neither model is ever in memory: what perplexity and KL of the result are measured on.
#pragma once

#include <cstdint>
#include <vector>

#include "calibrate/fidelity.h"
#include "calibrate/hidden_states.h"
#include "models/decoder.h"

namespace quatrain {

// Borrows everything. Uses two entries of the hidden states for each sequence.
class HeldOut {
 public:
  // Tokens of the entries: those of the model as it was, then those of the quantised one.
  static std::vector<int64_t> EntryTokens(const std::vector<std::vector<int32_t>>& sequences);

  HeldOut(const OpContext& ctx, const Decoder& decoder,
          const std::vector<std::vector<int32_t>>& sequences, HiddenStates& states,
          size_t first_entry);

  void Embed();                      // with the embedding in memory
  void RunReference(int64_t layer);  // with the layer's weights as they were
  void RunQuantized(int64_t layer);  // with the layer's weights as they are written
  Fidelity Compare() const;          // with the final norm and lm_head in memory

 private:
  void Run(int64_t layer, size_t first_entry);

  const OpContext& ctx_;
  const Decoder& decoder_;
  const std::vector<std::vector<int32_t>>& sequences_;
  HiddenStates& states_;
  size_t reference_, quantized_;  // first entry of each
};

}  // namespace quatrain
