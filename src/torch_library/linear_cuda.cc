#include "torch_library/operators.h"

#if defined(QT_WITH_CUDA)
#include <limits>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_library.h"
#include "torch_library/cuda_tensors.h"

namespace quatrain::torch_library {
namespace {

// The library of one device and stream, which serves one product at a time.
struct StreamLibrary {
  std::mutex in_use;
  std::unique_ptr<cuda::LinearLibrary> library;  // null where the machine has none
};

// Made at the first use, which must not be inside the capture of a CUDA graph. Kept for the life of
// the process, as torch keeps its own: an operator has no owner, and at the end of the process the
// device may be gone first.
StreamLibrary& LibraryOf(int device, cudaStream_t stream) {
  static std::mutex* const guard = new std::mutex;
  static auto* const libraries =
      new std::map<std::pair<int, cudaStream_t>, std::unique_ptr<StreamLibrary>>;
  const std::scoped_lock lock(*guard);
  std::unique_ptr<StreamLibrary>& entry = (*libraries)[{device, stream}];
  if (entry == nullptr) {
    entry = std::make_unique<StreamLibrary>();
    entry->library = cuda::LinearLibrary::Open();
  }
  return *entry;
}

struct Product {
  at::Tensor rows;  // [M, K]
  at::Tensor packed, scale;
  at::Tensor bias;  // or undefined
  MatrixShape shape;
};

// From so many rows of x on, dequantising all weights first and the library's product are faster
// than codes dequantised on the way: where K is cut into segments, which the kernels for many rows
// do not serve, soon; with a bias, late; else never. Measured on an H100: docs/results.md, "From
// codes to BF16 products".
int64_t FewestLibraryRows(const Product& call) {
  if (cuda::NumSegments(call.shape.rows, call.shape.columns) > 1) return 128;
  return call.bias.defined() ? 2048 : std::numeric_limits<int64_t>::max();
}

// False where the library is missing or does not take the shape.
bool MultiplyByLibrary(const Product& call, const at::Tensor& y) {
  const MatrixShape& shape = call.shape;
  if (shape.rows % 8 != 0) return false;
  const cudaStream_t stream = StreamOf(call.rows);
  StreamLibrary& of_stream = LibraryOf(call.rows.device().index(), stream);
  const std::scoped_lock lock(of_stream.in_use);
  if (of_stream.library == nullptr) return false;
  const at::Tensor weight = call.packed.scalar_type() == at::kByte
                                ? UnpackLayoutCuda(call.packed, call.scale, shape.columns)
                                : UnpackCuda(call.packed, call.scale);
  const int64_t m = call.rows.size(0);
  const at::Tensor sums =
      Empty(y, {cuda::LinearLibrarySums(shape.rows, shape.columns, m)}, at::kFloat);
  of_stream.library->Multiply(
      {.weight_NK = DeviceData<BFloat16>(weight, y),
       .x = DeviceData<BFloat16>(call.rows, y),
       .out_features = shape.rows,
       .in_features = shape.columns,
       .num_tokens = m,
       .bias = call.bias.defined() ? DeviceData<BFloat16>(call.bias, y) : nullptr,
       .y = DeviceData<BFloat16>(y, y),
       .sums = DeviceData<float>(sums, y)},
      stream);
  return true;
}

void MultiplyCodes(const Product& call, const at::Tensor& y) {
  const MatrixShape& shape = call.shape;
  at::Tensor layout;
  if (call.packed.scalar_type() != at::kByte) {
    // As one matrix: units of 8 rows go across leading dimensions.
    layout = LayoutOf(call.packed.flatten(0, -2), call.scale.flatten(0, -2), shape);
  } else if (MatricesOf(call.scale) == 1) {
    layout = LayoutOf(call.packed, call.scale, shape);
  } else {
    ThrowShape("packed", "codes, or a kernel layout of [..., O, I] with O a multiple of 8",
               "a kernel layout of " + ShapeOf(call.scale));
  }
  cuda::LinearDecode({.type = WeightType::kInt4,
                      .shape = {shape.rows, shape.columns, shape.group_size, 4},
                      .weight = DeviceData<uint8_t>(layout, y),
                      .x = DeviceData<BFloat16>(call.rows, y),
                      .num_tokens = call.rows.size(0),
                      .bias = call.bias.defined() ? DeviceData<BFloat16>(call.bias, y) : nullptr,
                      .y = DeviceData<BFloat16>(y, y)},
                     StreamOf(y), cuda::LaunchOrder::kAfterPrevious);
}

}  // namespace

at::Tensor LinearCuda(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scale,
                      const std::optional<at::Tensor>& bias) {
  CheckBFloat16(x);
  Product call;
  call.packed = packed;
  call.scale = scale;
  call.shape = CheckLinear(x, packed, scale, bias);
  const c10::DeviceGuard guard(x.device());
  call.rows = Dense(AsRows(x));
  if (bias) call.bias = Dense(bias->to(at::kBFloat16));
  const int64_t m = call.rows.size(0);
  const at::Tensor y = Empty(x, {m, call.shape.rows}, at::kBFloat16);
  const bool is_long = m >= FewestLibraryRows(call);
  if (y.numel() > 0 && (!is_long || !MultiplyByLibrary(call, y))) MultiplyCodes(call, y);
  return y.view(WithLast(x, call.shape.rows));
}

}  // namespace quatrain::torch_library
#endif
