// LM head and log-probabilities over tensors, in row blocks so that [rows, vocab] FP32 logits never
// exist whole. Letters: R rows (positions that predict a token), D hidden, V vocabulary.
#pragma once

#include "kernels/linear.h"
#include "ops/tensor.h"

namespace quatrain {

struct TokenLogprobs {
  std::vector<float> logprobs;  // R, nats, of the target at 1 / inv_temperature
  std::vector<float> entropy;   // R, nats; empty unless asked for
};

enum class Entropy { kSkip, kCompute };

// x_RD through the LM head [V, D]. Same bits as the sampler's log-probabilities for the same hidden
// rows.
TokenLogprobs LmHeadLogprobs(const OpContext& ctx, const at::Tensor& x_RD,
                             const WeightView& lm_head, std::span<const int32_t> targets,
                             float inv_temperature, Entropy entropy);

struct LmHeadGradCall {
  at::Tensor x_RD;
  WeightView lm_head;
  std::span<const int32_t> targets;
  float inv_temperature = 1.0f;
  std::span<const float> dlogprobs;  // R
  std::span<const float> dentropy;   // R or empty
  at::Tensor dx_RD;                  // FP32, overwritten
  at::Tensor dlm_head_VD;            // FP32, accumulated; undefined: not wanted
};
void LmHeadLogprobsGrad(const OpContext& ctx, const LmHeadGradCall& call);

}  // namespace quatrain
