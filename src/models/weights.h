// Weight: the one thing a linear reads, in training and in rollout; and the model's table of them.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/linear.h"
#include "models/families.h"
#include "ops/tensor.h"
#include "quant/quantized_weight.h"

namespace quatrain {

// Either a dense tensor (BF16; FP32 only under --dtype float32) or INT4/INT8 codes with scales.
struct Weight {
  WeightSpec spec;
  at::Tensor dense;       // shape of spec; undefined when quantised
  QuantizedWeight codes;  // num_bits == 0 when dense

  bool is_quantized() const { return codes.num_bits != 0; }
  // 2-D weights only. Valid while this Weight is neither moved nor changed.
  WeightView View() const;
  // w' as FP32 [out_features, in_features] (or the vector), for oracles, masters and reports.
  at::Tensor ToFloat32() const;
  // Bytes of the forward's buffers.
  int64_t size_bytes() const;
};

// All weights in the order of WeightTableOf. Not thread-safe to change; addresses are stable.
class ModelWeights {
 public:
  explicit ModelWeights(std::vector<Weight> weights);
  ModelWeights(ModelWeights&&) = default;

  size_t size() const { return weights_.size(); }
  const Weight& operator[](size_t index) const { return weights_[index]; }
  Weight& operator[](size_t index) { return weights_[index]; }
  // Index of a tensor name, or -1.
  int Find(const std::string& name) const;
  int64_t num_parameters() const;

 private:
  std::vector<Weight> weights_;
  std::unordered_map<std::string, int> index_;
};

// FP32 gradients by weight index, allocated as zeros on first use.
class Gradients {
 public:
  explicit Gradients(const ModelWeights& weights);
  // The gradient to accumulate into; shape of the weight.
  const at::Tensor& Of(int weight_index);
  bool IsTouched(int weight_index) const {
    return tensors_[static_cast<size_t>(weight_index)].defined();
  }
  size_t size() const { return tensors_.size(); }
  void Clear();  // keeps the memory, sets zeros

 private:
  std::vector<std::vector<int64_t>> shapes_;
  std::vector<at::Tensor> tensors_;
};

}  // namespace quatrain
