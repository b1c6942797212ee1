// How close a quantised model is to the one that it was made from, on given texts: the figures by
// which quantisers are compared.
#pragma once

#include <cstdint>
#include <vector>

#include "models/decoder.h"

namespace quatrain {

// Sums over the positions of one sequence or of several. Logarithms are natural.
struct Fidelity {
  int64_t num_positions = 0;            // that predict a token: the last of a sequence does not
  double abs_logprob_difference = 0.0;  // |log p(next token) - log p_reference(next token)|
  double kl = 0.0;                      // KL(reference || quantised) over the whole vocabulary
  double loss = 0.0;                    // -log p(next token)
  double reference_loss = 0.0;

  void Add(const Fidelity& other);
  double mean_abs_logprob_difference() const;
  double mean_kl() const;
  double perplexity() const;
  double reference_perplexity() const;
};

// One model's side of a comparison.
struct ModelOutput {
  at::Tensor hidden_TD;  // after the final norm
  WeightView lm_head;    // [V, D]
};

// One sequence of token ids, of at least two, from the hidden states of both models.
Fidelity CompareOutputs(const OpContext& ctx, const ModelOutput& reference,
                        const ModelOutput& quantized, const std::vector<int32_t>& ids);

// One result for each sequence of token ids, each of at least two. Both models run as they are:
// load them as FP32 to leave out the rounding of activations. Same bits for any thread count.
std::vector<Fidelity> CompareModels(const OpContext& ctx, const Decoder& reference,
                                    const Decoder& quantized,
                                    const std::vector<std::vector<int32_t>>& sequences);

}  // namespace quatrain
