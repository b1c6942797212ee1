// Tensor maps: how the copy engine finds boxes of a matrix in device memory.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"

namespace quatrain::cuda {

struct DeviceMatrix {
  const BFloat16* data = nullptr;  // 16-byte aligned
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;  // elements from a row to the next, a multiple of 8
};

// Of a box.
inline constexpr int kBoxColumns = 64;
inline constexpr int kBoxRowBytes = 128;

// Boxes of `box_rows` (at most 256) by 64 columns, 128 bytes a row, in which the 16-byte parts of
// row r stand at part ^ r % 8; zero outside the matrix. The driver is found at run time; throws
// Error(kResource) if it cannot make the map.
CUtensorMap BoxesOf(const DeviceMatrix& matrix, int box_rows);

// The same with `num_boxes` neighbouring boxes in one copy, one after the other in shared memory.
// The place of a copy is (0, row, first column / 64) where num_boxes > 1, which takes columns that
// are a multiple of 64, else (column, row, 0).
CUtensorMap BoxesInRow(const DeviceMatrix& matrix, int box_rows, int num_boxes);

// Boxes of `box_rows` by `box_columns`, a multiple of 8, to be stored. Rows of 32, 64 and 128 bytes
// are swizzled by as many: the 16-byte parts of row r stand at part ^ r / 4 % 2, part ^ r / 2 % 4
// and part ^ r % 8; others are plain. Nothing is stored outside the matrix. Throws as BoxesOf does.
CUtensorMap StoredBoxesOf(const DeviceMatrix& matrix, int box_rows, int box_columns);

// Weights in kernel layout (packed_layout.h).
struct DeviceUnits {
  const void* data = nullptr;  // 16-byte aligned
  int64_t num_units = 0;
  int64_t unit_bytes = 0;
  int64_t chunk_bytes = 0;  // of a unit's chunk; CodeBoxesOf and ScaleBoxesOf only
};

// Boxes of `box_units` units by `chunk_bytes`, one unit's after the other's; column x of a box
// begins at byte 8 x of its units. Zero past the last unit. Throws as BoxesOf does.
CUtensorMap BoxesOfUnits(const DeviceUnits& units, int box_units, int chunk_bytes);

// Boxes of codes (INT4) without their scales, and of scales: `chunks` chunks of `units` units, a
// unit's chunks beside one another. Zero past the last chunk and the last unit. Throw as BoxesOf
// does.
struct UnitBox {
  int units = 0;
  int chunks = 0;
};
// Place of a copy: (0, 0, chunk, unit). A chunk's 8 rows are 64 bytes each, in which 16-byte part t
// of row r stands at t ^ r / 2.
CUtensorMap CodeBoxesOf(const DeviceUnits& units, const UnitBox& box);
// Place: (0, chunk, unit).
CUtensorMap ScaleBoxesOf(const DeviceUnits& units, const UnitBox& box);

}  // namespace quatrain::cuda
