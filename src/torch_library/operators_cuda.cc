#include "torch_library/operators.h"

#if defined(QT_WITH_CUDA)
#include "kernels/cuda/int4_quantize.h"
#include "torch_library/cuda_tensors.h"

namespace quatrain::torch_library {

at::Tensor LayoutOf(const at::Tensor& packed, const at::Tensor& scale, const MatrixShape& shape) {
  if (packed.scalar_type() == at::kByte) return Dense(packed);
  const int64_t matrices = MatricesOf(scale);
  at::Tensor layout = Empty(packed, {LayoutBytes(shape, matrices)}, at::kByte);
  if (shape.rows == 0) return layout;
  const cuda::PackedShape each = PackedShapeOf(shape, matrices);
  const int64_t bytes = cuda::PackedBytes(each);
  const at::Tensor codes = Dense(packed), scales = Dense(scale);
  for (int64_t m = 0; m < matrices; ++m) {
    const int64_t row = m * each.out_features;
    cuda::CodeTensors tensors = TensorsOf(codes, scales);
    tensors.codes += row * (shape.columns / 8);
    tensors.scale += row * (shape.columns / shape.group_size);
    cuda::PackWeights(each, tensors, DeviceData<uint8_t>(layout, packed) + m * bytes, nullptr,
                      StreamOf(packed));
  }
  return layout;
}

at::Tensor FakeQuantCuda(const at::Tensor& weight_OI, int64_t group_size) {
  const MatrixShape shape = ShapeOfWeight(weight_OI, group_size);
  const c10::DeviceGuard guard(weight_OI.device());
  const at::Tensor weight = Dense(weight_OI);
  const bool is_master = weight.scalar_type() == at::kFloat;
  at::Tensor fake = Empty(weight, weight.sizes(), at::kBFloat16);
  if (fake.numel() == 0) return fake.to(weight.scalar_type());
  cuda::Quantize({.weight = is_master ? nullptr : DeviceData<BFloat16>(weight, weight),
                  .master = is_master ? DeviceData<float>(weight, weight) : nullptr,
                  .out_features = shape.rows,
                  .in_features = shape.columns,
                  .spec = {.group_size = group_size},
                  .fake = DeviceData<BFloat16>(fake, weight)},
                 StreamOf(weight));
  return fake.to(weight.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> PackCuda(const at::Tensor& weight_OI, int64_t group_size) {
  const MatrixShape shape = ShapeOfWeight(weight_OI, group_size);
  const c10::DeviceGuard guard(weight_OI.device());
  const at::Tensor weight = Dense(weight_OI);
  const bool is_master = weight.scalar_type() == at::kFloat;
  at::Tensor packed = Empty(weight, WithLast(weight, shape.columns / 8), at::kInt);
  at::Tensor scale = Empty(weight, WithLast(weight, shape.columns / group_size), at::kBFloat16);
  if (packed.numel() == 0) return {packed, scale};
  cuda::Quantize({.weight = is_master ? nullptr : DeviceData<BFloat16>(weight, weight),
                  .master = is_master ? DeviceData<float>(weight, weight) : nullptr,
                  .out_features = shape.rows,
                  .in_features = shape.columns,
                  .spec = {.group_size = group_size},
                  .packed = DeviceData<int32_t>(packed, weight),
                  .scale = DeviceData<BFloat16>(scale, weight)},
                 StreamOf(weight));
  return {packed, scale};
}

at::Tensor UnpackCuda(const at::Tensor& packed, const at::Tensor& scale) {
  const MatrixShape shape = ShapeOfCodes(packed, scale);
  const c10::DeviceGuard guard(packed.device());
  const at::Tensor codes = Dense(packed), scales = Dense(scale);
  at::Tensor weight = Empty(packed, WithLast(scale, shape.columns), at::kBFloat16);
  if (weight.numel() == 0) return weight;
  cuda::DequantizeWeights(PackedShapeOf(shape, 1), TensorsOf(codes, scales),
                          DeviceData<BFloat16>(weight, packed), StreamOf(packed));
  return weight;
}

at::Tensor KernelLayoutCuda(const at::Tensor& packed, const at::Tensor& scale) {
  const MatrixShape shape = ShapeOfCodes(packed, scale);
  const c10::DeviceGuard guard(packed.device());
  return LayoutOf(packed, scale, shape);
}

at::Tensor UnpackLayoutCuda(const at::Tensor& layout, const at::Tensor& scale,
                            int64_t in_features) {
  const MatrixShape shape = CheckLayout(layout, scale, in_features);
  const c10::DeviceGuard guard(layout.device());
  const at::Tensor bytes = Dense(layout);
  const int64_t matrices = MatricesOf(scale);
  at::Tensor weight = Empty(layout, WithLast(scale, shape.columns), at::kBFloat16);
  if (shape.rows == 0) return weight;
  const cuda::PackedShape each = PackedShapeOf(shape, matrices);
  for (int64_t m = 0; m < matrices; ++m) {
    cuda::DequantizePacked(
        each, DeviceData<uint8_t>(bytes, layout) + m * cuda::PackedBytes(each),
        DeviceData<BFloat16>(weight, layout) + m * each.out_features * each.in_features,
        StreamOf(layout));
  }
  return weight;
}

}  // namespace quatrain::torch_library
#endif
