// Parameters: FP32 masters and moments, and the one pass that turns a gradient into the weights of
// the next forward.
//
// A master never takes part in a forward pass. Step() is AdamW on the master and, in the same pass,
// the BF16 tensor or the codes and scales that training and rollout read (kernels/adamw.h). Weights
// that share memory with the engine's are thereby updated for the engine too; a second table with
// another format (the mismatched cases) is written beside.
#pragma once

#include <vector>

#include "kernels/adamw.h"
#include "models/weights.h"
#include "quant/scheme.h"

namespace quatrain {

struct OptimizerConfig {
  double lr = 1e-6;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.98;
  double adam_eps = 1e-8;
  double weight_decay = 0.1;   // not on 1-D tensors, as in Megatron
  double clip_grad = 1.0;      // global L2 norm; 0: off
  bool decay_vectors = false;  // also decay 1-D tensors (torch.optim.AdamW over one group)
};

// Where the masters of quantised weights begin.
enum class MasterStart {
  kValues,  // the start's own values; codes follow from them
  kCodes,  // the start's value moved, if need be, into the cell of the table's code (kernels/int4.h
           // MoveIntoCell), so that the codes stay as calibration chose them; needs kFrozen
};

class Parameters {
 public:
  // Masters are the values of `start` (w' where it is quantised). `trained` is the table of the
  // training forward, `rollout` the engine's if it is another one (else null); both are borrowed
  // and written at once, so that they hold the weights of the masters; a weight that is BF16 in
  // both must be one tensor. Quantised weights follow the rule and bounds of `scheme`: under
  // kFrozen the tables' scales are kept. Error kData naming tensor and place of a weight that has
  // no codes.
  Parameters(const OpContext& ctx, const ModelWeights& start, ModelWeights* trained,
             ModelWeights* rollout, const OptimizerConfig& config, const QuantScheme& scheme,
             MasterStart master_start);

  size_t size() const { return masters_.size(); }
  const WeightSpec& spec(size_t index) const { return specs_[index]; }
  at::Tensor& master(size_t index) { return masters_[index]; }
  at::Tensor& exp_avg(size_t index) { return exp_avg_[index]; }
  at::Tensor& exp_avg_sq(size_t index) { return exp_avg_sq_[index]; }
  int64_t step() const { return step_; }

  // --check-weight-update-equal: makes every weight of both tables anew from its master and
  // compares bits. Error kData naming the first that differs.
  void CheckWeights(const OpContext& ctx);

  // After a resume filled masters and moments: sets the step and writes the weights.
  void Restore(const OpContext& ctx, int64_t step);

  struct StepResult {
    double grad_norm = 0.0;  // global L2 before clipping
    AdamWStats stats;
  };
  // One optimizer step from accumulated gradients (missing ones count as zero). Error kData naming
  // the step and the first such tensor when the norm is not finite; nothing has changed then.
  StepResult Step(const OpContext& ctx, Gradients& gradients, double lr);

 private:
  std::vector<AdamWTask> Tasks(Gradients* gradients);
  void AddOutput(Weight& weight, AdamWTask* task) const;
  // The table's weight, or the rollout table's, that holds codes; null if neither does.
  Weight* QuantizedOf(size_t index) const;
  void MoveMastersIntoCells();
  bool IsCurrent(const OpContext& ctx, size_t index, const Weight& weight);
  std::string FirstNonFinite(const OpContext& ctx, Gradients& gradients) const;
  void ZeroClippedGradients(const OpContext& ctx, Gradients& gradients) const;

  OptimizerConfig config_;
  QuantScheme scheme_;
  std::vector<WeightSpec> specs_;
  std::vector<at::Tensor> masters_, exp_avg_, exp_avg_sq_;
  ModelWeights* trained_;
  ModelWeights* rollout_;
  int64_t step_ = 0;
};

// The global L2 norm over all gradients, each counted once (FP64 sum of per-tensor sums).
double GlobalNorm(const OpContext& ctx, Gradients& gradients);

}  // namespace quatrain
