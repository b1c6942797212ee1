#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_map.h"

namespace quatrain::cuda {
namespace {

using EncodeFunction = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                    const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                    const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                    CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

EncodeFunction FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  CheckCuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                             cudaEnableDefault, &result),
            "cuTensorMapEncodeTiled");
  if (result != cudaDriverEntryPointSuccess) {
    throw Error(ErrorCode::kResource, ErrorParts{.where = "tensor map",
                                                 .what = "the driver has no cuTensorMapEncodeTiled",
                                                 .todo = "Use a driver of CUDA 12 or newer."});
  }
  return reinterpret_cast<EncodeFunction>(function);
}

}  // namespace

CUtensorMap BoxesOf(const DeviceMatrix& matrix, int box_rows) {
  static const EncodeFunction encode = FindEncode();
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(matrix.columns),
                               static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(2 * matrix.stride)};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<BFloat16*>(matrix.data), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorCode::kResource,
                ErrorParts{.where = "tensor map",
                           .what = fmt::format("the driver refused it with code {}",
                                               static_cast<int>(status))});
  }
  return map;
}

}  // namespace quatrain::cuda
