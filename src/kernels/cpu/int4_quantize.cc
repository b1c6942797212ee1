#include "kernels/int4_quantize.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/quantize_row.h"

namespace quatrain {
namespace {

void CheckMatrix(int64_t out_features, int64_t in_features, int num_bits, int64_t group_size) {
  QT_CHECK(out_features >= 0 && in_features > 0, "[{}, {}]", out_features, in_features);
  QT_CHECK(num_bits == 4 || num_bits == 8, "num_bits {}", num_bits);
  QT_CHECK(group_size > 0 && in_features % group_size == 0, "K {} group {}", in_features,
           group_size);
}

// Calls body(row, codes_I) for every row, codes_I being scratch of the calling thread.
template <class Body>
void ForEachRow(ThreadPool& pool, int64_t out_features, int64_t in_features, const Body& body) {
  const int64_t rows_per_chunk = RowsPerChunk(in_features);
  const int64_t num_chunks = (out_features + rows_per_chunk - 1) / rows_per_chunk;
  std::vector<std::vector<int8_t>> codes(static_cast<size_t>(pool.num_threads()));
  pool.ParallelFor(num_chunks, [&](int64_t chunk, int worker) {
    std::vector<int8_t>& codes_I = codes[static_cast<size_t>(worker)];
    codes_I.resize(static_cast<size_t>(in_features));
    const int64_t end = std::min(out_features, (chunk + 1) * rows_per_chunk);
    for (int64_t row = chunk * rows_per_chunk; row < end; ++row) body(row, codes_I.data());
  });
}

}  // namespace

std::optional<BadWeight> FindBadWeight(const BFloat16* weight_OI, int64_t out_features,
                                       int64_t in_features) {
  for (int64_t row = 0; row < out_features; ++row) {
    const BFloat16* weight_I = weight_OI + row * in_features;
    const int64_t column = FindBadColumn(weight_I, in_features);
    if (column >= 0) return BadWeight{row, column, ToFloat(weight_I[column])};
  }
  return std::nullopt;
}

void QuantizeMatrix(ThreadPool& pool, const BFloat16* weight_OI, int64_t out_features,
                    int64_t in_features, const QuantizeSpec& spec, int32_t* packed_OP,
                    BFloat16* scale_OG) {
  CheckMatrix(out_features, in_features, spec.grid.num_bits, spec.group_size);
  const int64_t words = PackedWords(in_features, spec.grid.num_bits);
  const int64_t groups = in_features / spec.group_size;
  ForEachRow(pool, out_features, in_features, [&](int64_t row, int8_t* codes_I) {
    QuantizeRow(weight_OI + row * in_features, in_features, spec, codes_I, scale_OG + row * groups);
    PackRow(codes_I, in_features, spec.grid.num_bits, packed_OP + row * words);
  });
}

void ZeroClippedGradient(ThreadPool& pool, const float* master_OI, int64_t out_features,
                         int64_t in_features, const QuantizeSpec& spec, const BFloat16* scale_OG,
                         float* grad_OI) {
  CheckMatrix(out_features, in_features, spec.grid.num_bits, spec.group_size);
  const int64_t groups = in_features / spec.group_size;
  const auto lo = static_cast<float>(spec.grid.lo);
  const auto hi = static_cast<float>(spec.grid.hi);
  pool.ParallelFor(out_features, [&](int64_t row, int) {
    const float* master_I = master_OI + row * in_features;
    float* grad_I = grad_OI + row * in_features;
    for (int64_t i = 0; i < in_features; ++i) {
      const float scale = ToFloat(scale_OG[row * groups + i / spec.group_size]);
      const float q = rintf(DivideRn(ToFloat(ToBFloat16(master_I[i])), scale));
      if (q < lo || q > hi) grad_I[i] = 0.0f;
    }
  });
}

void DequantizeMatrix(ThreadPool& pool, const PackedMatrix& matrix, BFloat16* weight_OI) {
  const int64_t in_features = matrix.in_features;
  CheckMatrix(matrix.out_features, in_features, matrix.num_bits, matrix.group_size);
  const int64_t words = PackedWords(in_features, matrix.num_bits);
  const int64_t groups = in_features / matrix.group_size;
  ForEachRow(pool, matrix.out_features, in_features, [&](int64_t row, int8_t* codes_I) {
    UnpackRow(matrix.packed_OP + row * words, in_features, matrix.num_bits, codes_I);
    DequantizeRow(codes_I, matrix.scale_OG + row * groups, in_features, matrix.group_size,
                  weight_OI + row * in_features);
  });
}

void PackCodes(const int8_t* codes_OI, int64_t out_features, int64_t in_features, int num_bits,
               int32_t* packed_OP) {
  CheckMatrix(out_features, in_features, num_bits, in_features);
  const int64_t words = PackedWords(in_features, num_bits);
  for (int64_t row = 0; row < out_features; ++row) {
    PackRow(codes_OI + row * in_features, in_features, num_bits, packed_OP + row * words);
  }
}

void UnpackCodes(const int32_t* packed_OP, int64_t out_features, int64_t in_features, int num_bits,
                 int8_t* codes_OI) {
  CheckMatrix(out_features, in_features, num_bits, in_features);
  const int64_t words = PackedWords(in_features, num_bits);
  for (int64_t row = 0; row < out_features; ++row) {
    UnpackRow(packed_OP + row * words, in_features, num_bits, codes_OI + row * in_features);
  }
}

}  // namespace quatrain
