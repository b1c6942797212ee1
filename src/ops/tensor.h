// What every op needs: where it runs, the activation type of a tensor, and checked pointers.
#pragma once

#include <ATen/ATen.h>

#include <span>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "kernels/bfloat16.h"

namespace quatrain {

// Where ops run. Today the CPU pool; a CUDA stream joins it here. Passed down, never global.
struct OpContext {
  ThreadPool& pool;
};

// Activations are BF16, or FP32 under --dtype float32. Calls body with a value of the kernel type.
template <class Body>
void DispatchActivation(at::ScalarType type, Body&& body) {
  QT_CHECK(type == at::kBFloat16 || type == at::kFloat, "activation type {}", c10::toString(type));
  if (type == at::kBFloat16) {
    body(BFloat16{});
  } else {
    body(float{});
  }
}

template <class T>
constexpr at::ScalarType ScalarTypeOf() {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return at::kBFloat16;
  } else if constexpr (std::is_same_v<T, float>) {
    return at::kFloat;
  } else {
    static_assert(std::is_same_v<T, int32_t>);
    return at::kInt;
  }
}

// Data of a contiguous CPU tensor of element type T (BFloat16, float, int32_t); null for an
// undefined tensor.
template <class T>
T* DataOf(const at::Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  QT_CHECK(tensor.is_contiguous() && tensor.device().is_cpu(), "tensor layout");
  QT_CHECK(tensor.scalar_type() == ScalarTypeOf<T>(), "tensor type {}",
           c10::toString(tensor.scalar_type()));
  return static_cast<T*>(tensor.data_ptr());
}

inline at::Tensor EmptyTensor(at::IntArrayRef shape, at::ScalarType type) {
  return at::empty(shape, at::TensorOptions().dtype(type));
}
inline at::Tensor ZeroTensor(at::IntArrayRef shape, at::ScalarType type) {
  return at::zeros(shape, at::TensorOptions().dtype(type));
}

}  // namespace quatrain
