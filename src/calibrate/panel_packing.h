// Rows of activations become the FP32 panels of calibrate/panel_product.h.
#pragma once

#include <cstdint>

#include "calibrate/panel_product.h"
#include "kernels/bfloat16.h"

namespace quatrain {

// Columns [panel * kPanelColumns, ...) of a row-major matrix [num_rows, num_columns] of BFloat16 or
// float, into to[num_rows, kPanelColumns], zeros past num_columns. Single-threaded.
template <class T>
void PackPanel(const T* from, int64_t num_rows, int64_t num_columns, int64_t panel, float* to);

// The same of a - b, in FP32.
template <class T>
void PackDifference(const T* a, const T* b, int64_t num_rows, int64_t num_columns, int64_t panel,
                    float* to);

}  // namespace quatrain
