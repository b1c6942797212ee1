// Torch tensors for the CUDA kernels: streams, checked pointers, shapes. Included by the CUDA parts
// of the operators only.
#pragma once

#include <ATen/ATen.h>
#include <ATen/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "kernels/cuda/pack.h"
#include "torch_library/shapes.h"

namespace quatrain::torch_library {

// The stream that torch works in on the tensor's device. Asked of torch's own guard, so that
// nothing here links torch's CUDA part.
inline cudaStream_t StreamOf(const at::Tensor& tensor) {
  const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  return static_cast<cudaStream_t>(guard.getStream(tensor.device()).native_handle());
}

// What the kernels' wide loads want of a pointer.
inline constexpr uintptr_t kDataAlignment = 16;

inline bool IsAligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kDataAlignment == 0;
}

// The same values, row-major, where the kernels can load them: a copy only of a view that is not.
inline at::Tensor Dense(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  return IsAligned(dense) ? dense : dense.clone();
}

// Throws Error(kShape) where the tensors are on two devices. Inputs go through Dense before.
template <class T>
T* DeviceData(const at::Tensor& tensor, const at::Tensor& beside) {
  QT_CHECK(tensor.is_contiguous() && IsAligned(tensor), "tensor layout");
  if (tensor.device() != beside.device()) {
    ThrowShape("tensor", "on " + beside.device().str(), tensor.device().str());
  }
  return static_cast<T*>(tensor.data_ptr());
}

inline at::Tensor Empty(const at::Tensor& beside, at::IntArrayRef sizes, at::ScalarType type) {
  return at::empty(sizes, beside.options().dtype(type));
}

// Of one of `experts` weights, none of them empty, that lie one after the other.
inline cuda::PackedShape PackedShapeOf(const MatrixShape& shape, int64_t experts) {
  const cuda::PackedShape packed{.out_features = shape.rows / experts,
                                 .in_features = shape.columns,
                                 .group_size = shape.group_size,
                                 .num_bits = 4};
  cuda::CheckPackedShape(packed);
  return packed;
}

inline cuda::CodeTensors TensorsOf(const at::Tensor& packed, const at::Tensor& scale) {
  return {DeviceData<int32_t>(packed, packed), DeviceData<BFloat16>(scale, packed)};
}

// The kernel layout of `packed` (checked: CheckPacked), which may be it already. Codes are packed
// by the call, which reads and writes all of them.
at::Tensor LayoutOf(const at::Tensor& packed, const at::Tensor& scale, const MatrixShape& shape);

}  // namespace quatrain::torch_library
