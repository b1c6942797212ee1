#include "kernels/cuda/launch.h"
#include "kernels/cuda/packed_layout.h"
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

// Two to four dimensions, the innermost first, up to the first size of 0; row_bytes are those of
// the outer ones.
struct MapShape {
  CUtensorMapDataType type;
  cuuint64_t sizes[4];
  cuuint64_t row_bytes[3];
  cuuint32_t box[4];
  CUtensorMapSwizzle swizzle;
};

CUtensorMap Encode(const void* data, const MapShape& shape) {
  static const EncodeFunction encode = FindEncode();
  CUtensorMap map;
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const cuuint32_t rank = shape.sizes[2] == 0 ? 2 : shape.sizes[3] == 0 ? 3 : 4;
  const CUresult status =
      encode(&map, shape.type, rank, const_cast<void*>(data), shape.sizes, shape.row_bytes,
             shape.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, shape.swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorCode::kResource,
                ErrorParts{.where = "tensor map",
                           .what = fmt::format("the driver refused it with code {}",
                                               static_cast<int>(status))});
  }
  return map;
}

}  // namespace

CUtensorMap BoxesOf(const DeviceMatrix& matrix, int box_rows) {
  return StoredBoxesOf(matrix, box_rows, kBoxColumns);
}

CUtensorMap BoxesInRow(const DeviceMatrix& matrix, int box_rows, int num_boxes) {
  constexpr int64_t kColumns = kBoxColumns;
  const bool is_split = num_boxes > 1;
  QT_CHECK(!is_split || matrix.columns % kColumns == 0, "{} columns", matrix.columns);
  return Encode(
      matrix.data,
      {.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
       .sizes = {static_cast<cuuint64_t>(is_split ? kColumns : matrix.columns),
                 static_cast<cuuint64_t>(matrix.rows),
                 static_cast<cuuint64_t>(is_split ? matrix.columns / kColumns : 1)},
       .row_bytes = {static_cast<cuuint64_t>(2 * matrix.stride), 2 * kColumns},
       .box = {kColumns, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(num_boxes)},
       .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

CUtensorMap StoredBoxesOf(const DeviceMatrix& matrix, int box_rows, int box_columns) {
  const CUtensorMapSwizzle swizzle = box_columns == 16   ? CU_TENSOR_MAP_SWIZZLE_32B
                                     : box_columns == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : box_columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B
                                                         : CU_TENSOR_MAP_SWIZZLE_NONE;
  return Encode(
      matrix.data,
      {.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
       .sizes = {static_cast<cuuint64_t>(matrix.columns), static_cast<cuuint64_t>(matrix.rows)},
       .row_bytes = {static_cast<cuuint64_t>(2 * matrix.stride)},
       .box = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)},
       .swizzle = swizzle});
}

CUtensorMap BoxesOfUnits(const DeviceUnits& units, int box_units, int chunk_bytes) {
  return Encode(units.data, {.type = CU_TENSOR_MAP_DATA_TYPE_INT64,
                             .sizes = {static_cast<cuuint64_t>(units.unit_bytes / 8),
                                       static_cast<cuuint64_t>(units.num_units)},
                             .row_bytes = {static_cast<cuuint64_t>(units.unit_bytes)},
                             .box = {static_cast<cuuint32_t>(chunk_bytes / 8),
                                     static_cast<cuuint32_t>(box_units)},
                             .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
}

CUtensorMap CodeBoxesOf(const DeviceUnits& units, const UnitBox& box) {
  constexpr cuuint64_t kRowBytes = 64;
  const auto chunk_bytes = static_cast<cuuint64_t>(units.chunk_bytes);
  const auto unit_bytes = static_cast<cuuint64_t>(units.unit_bytes);
  return Encode(units.data, {.type = CU_TENSOR_MAP_DATA_TYPE_INT64,
                             .sizes = {kRowBytes / 8, kUnitRows, unit_bytes / chunk_bytes,
                                       static_cast<cuuint64_t>(units.num_units)},
                             .row_bytes = {kRowBytes, chunk_bytes, unit_bytes},
                             .box = {kRowBytes / 8, kUnitRows, static_cast<cuuint32_t>(box.chunks),
                                     static_cast<cuuint32_t>(box.units)},
                             .swizzle = CU_TENSOR_MAP_SWIZZLE_64B});
}

CUtensorMap ScaleBoxesOf(const DeviceUnits& units, const UnitBox& box) {
  constexpr int64_t kCodeBytes = 512;
  const auto chunk_bytes = static_cast<cuuint64_t>(units.chunk_bytes);
  const auto unit_bytes = static_cast<cuuint64_t>(units.unit_bytes);
  const cuuint64_t scale_words = (chunk_bytes - kCodeBytes) / 8;
  return Encode(
      static_cast<const uint8_t*>(units.data) + kCodeBytes,
      {.type = CU_TENSOR_MAP_DATA_TYPE_INT64,
       .sizes = {scale_words, unit_bytes / chunk_bytes, static_cast<cuuint64_t>(units.num_units)},
       .row_bytes = {chunk_bytes, unit_bytes},
       .box = {static_cast<cuuint32_t>(scale_words), static_cast<cuuint32_t>(box.chunks),
               static_cast<cuuint32_t>(box.units)},
       .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE});
}

}  // namespace quatrain::cuda
