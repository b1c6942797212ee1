// What the CPU parts of the operators share: threads for a call, and codes as a linear's weight.
#pragma once

#include <ATen/Parallel.h>

#include "ops/linear_ops.h"
#include "torch_library/shapes.h"

namespace quatrain::torch_library {

// Threads live for one call: an operator has no owner that could keep them, and a process that
// forks (a data loader) must find none.
class CallThreads {
 public:
  CallThreads() : pool_(at::get_num_threads()), context_{pool_} {}
  const OpContext& context() const { return context_; }
  ThreadPool& pool() { return pool_; }

 private:
  ThreadPool pool_;
  OpContext context_;
};

// Rows [begin, begin + rows) of codes as a linear's weight.
inline WeightView ViewOf(const at::Tensor& packed, const at::Tensor& scale,
                         const MatrixShape& shape, int64_t begin, int64_t rows) {
  return {.type = WeightType::kInt4,
          .out_features = rows,
          .in_features = shape.columns,
          .group_size = shape.group_size,
          .data = DataOf<int32_t>(packed) + begin * (shape.columns / 8),
          .scale = DataOf<BFloat16>(scale) + begin * (shape.columns / shape.group_size)};
}

}  // namespace quatrain::torch_library
