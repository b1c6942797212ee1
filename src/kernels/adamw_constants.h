// What one AdamW step multiplies with: computed in double, used in FP32, as torch's scalars are.
// One source for the CPU's and the GPU's update.
#pragma once

#include <cmath>

#include "kernels/adamw.h"

namespace quatrain {

struct AdamWConstants {
  float grad_scale, decay, grad_share, beta2, square_share, root_correction2, eps, minus_step_size;
};

inline AdamWConstants ConstantsOf(const AdamWStep& step, double weight_decay) {
  const double t = static_cast<double>(step.step);
  const double correction1 = 1.0 - std::pow(step.beta1, t);
  const double correction2 = 1.0 - std::pow(step.beta2, t);
  return {.grad_scale = static_cast<float>(step.grad_scale),
          .decay = static_cast<float>(1.0 - step.lr * weight_decay),
          .grad_share = static_cast<float>(1.0 - step.beta1),
          .beta2 = static_cast<float>(step.beta2),
          .square_share = static_cast<float>(1.0 - step.beta2),
          .root_correction2 = static_cast<float>(std::sqrt(correction2)),
          .eps = static_cast<float>(step.eps),
          .minus_step_size = static_cast<float>(-(step.lr / correction1))};
}

}  // namespace quatrain
