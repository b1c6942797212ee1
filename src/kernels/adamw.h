// AdamW and the next weight in one pass: FP32 master and moments in, BF16 weight or codes and
// scales out.
//
// Per element (Loshchilov & Hutter, arXiv:1711.05101; the order of torch.optim.AdamW):
//   g = grad * grad_scale
//   w -= lr * weight_decay * w
//   m = b1 m + (1 - b1) g
//   v = b2 v + (1 - b2) g^2
//   w -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
// then the weight that every later forward reads: rn_bf16(w), or its codes and scales
// (kernels/int4.h) of rn_bf16(w).
#pragma once

#include <cstdint>
#include <span>

#include "base/threads.h"
#include "kernels/int4_quantize.h"

namespace quatrain {

struct AdamWStep {
  double lr = 1e-6, beta1 = 0.9, beta2 = 0.98, eps = 1e-8;
  int64_t step = 1;         // t, from 1
  double grad_scale = 1.0;  // global-norm clipping factor
};

struct AdamWTask {
  float* master = nullptr;      // [O, I]
  float* exp_avg = nullptr;     // m
  float* exp_avg_sq = nullptr;  // v
  const float* grad = nullptr;
  int64_t out_features = 0;   // O (1 for a vector)
  int64_t in_features = 0;    // I
  double weight_decay = 0.0;  // 0 for 1-D tensors
  // The weight to write; the ones that are null are skipped. Codes: packed and scale together with
  // spec.
  float* weight_float = nullptr;
  BFloat16* weight_bf16 = nullptr;
  // An update finds there what the last one or WriteWeightFromMaster wrote, the codes of `master`,
  // and counts those that it changes.
  int32_t* packed = nullptr;  // [O, P]
  BFloat16* scale = nullptr;  // [O, G]
  QuantizeSpec spec = {};
  const char* name = "";  // of the weight, for errors
};

struct AdamWStats {
  int64_t num_codes = 0;
  int64_t num_flipped_codes = 0;
  int64_t num_scales = 0;
  int64_t num_changed_scales = 0;
};

// Updates all tasks in place; rows are cut in fixed chunks, so bits do not depend on the thread
// count. Frozen scales (spec.rule kFrozen) are kept. Non-finite master: Error kData naming task,
// row and column (before anything is written for that row).
AdamWStats AdamWUpdate(ThreadPool& pool, const AdamWStep& step, std::span<const AdamWTask> tasks);

// Only the last part: weight from master (start of training, resume).
void WriteWeightFromMaster(ThreadPool& pool, std::span<const AdamWTask> tasks);

}  // namespace quatrain
