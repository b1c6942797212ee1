#include "calibrate/hessian.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "calibrate/panel_product.h"
#include "calibrate/strip_packing.h"
#include "calibrate/strip_product.h"

namespace quatrain {
namespace {

constexpr int64_t kRowsPerChunk = 64;

constexpr int64_t kCheckBlock = 256;  // of known length, for the compiler's vectors

bool IsFiniteBlock(const BFloat16* values) {
  constexpr int16_t kMagnitude = 0x7FFF, kInfinity = 0x7F80;
  int16_t largest = 0;
  for (int64_t i = 0; i < kCheckBlock; ++i) {
    const auto magnitude = static_cast<int16_t>(values[i].bits & kMagnitude);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < kInfinity;
}

bool IsFiniteBlock(const float* values) {
  // 0 * value is 0, but NaN for NaN and Inf; so is the sum with one of them.
  float sums[8] = {};
  for (int64_t i = 0; i < kCheckBlock; i += 8) {
    for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += 0.0f * values[i + lane];
  }
  float sum = 0.0f;
  for (const float of_lane : sums) sum += of_lane;
  return sum == 0.0f;
}

// Calls update(entry, offset) for every entry of the upper triangle.
template <class Update>
void ForUpper(ThreadPool& pool, int64_t n, const Update& update) {
  pool.ParallelFor((n + kRowsPerChunk - 1) / kRowsPerChunk, [&](int64_t chunk, int) {
    const int64_t end = std::min(n, (chunk + 1) * kRowsPerChunk);
    for (int64_t row = chunk * kRowsPerChunk; row < end; ++row) {
      for (int64_t column = row; column < n; ++column) {
        update(static_cast<size_t>(row * n + column));
      }
    }
  });
}

// Rows of H on the block's diagonal, both triangles filled, [size, size].
void MirrorDiagonalBlock(const Hessian& hessian, int64_t first, int64_t size, float* block) {
  for (int64_t row = 0; row < size; ++row) {
    for (int64_t column = row; column < size; ++column) {
      block[row * size + column] = block[column * size + row] =
          hessian.At(first + row, first + column);
    }
  }
}

// e H e^T of up to kPanelColumns rows, whose errors are the columns of error_panel [I,
// kPanelColumns]: by blocks of columns, the diagonal block plus twice what lies to its right.
void OutputErrorOfPanel(const Hessian& hessian, const std::vector<float>& error_panel,
                        int64_t columns, double* out) {
  constexpr int64_t kBlock = 128;
  const int64_t n = hessian.in_features;
  std::vector<float> diagonal(kBlock * kBlock), product(kBlock * kPanelColumns);
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t size = std::min(kBlock, n - first);
    const float* errors = error_panel.data() + first * kPanelColumns;
    MirrorDiagonalBlock(hessian, first, size, diagonal.data());
    std::fill(product.begin(), product.end(), 0.0f);
    AddPanelProduct({.rows = size,
                     .depth = size,
                     .a = diagonal.data(),
                     .a_row_stride = size,
                     .b = errors,
                     .c = product.data(),
                     .c_row_stride = kPanelColumns});
    AddPanelProduct({.rows = size,
                     .depth = n - first - size,
                     .a = hessian.upper_II.data() + first * n + first + size,
                     .a_row_stride = n,
                     .b = errors + size * kPanelColumns,
                     .c = product.data(),
                     .c_row_stride = kPanelColumns,
                     .scale = 2.0f});
    for (int64_t row = 0; row < size; ++row) {
      for (int64_t o = 0; o < columns; ++o) {
        const size_t at = static_cast<size_t>(row * kPanelColumns + o);
        out[o] += static_cast<double>(errors[at]) * static_cast<double>(product[at]);
      }
    }
  }
}

}  // namespace

Hessian::Hessian(int64_t num_features)
    : in_features(num_features), upper_II(static_cast<size_t>(num_features * num_features)) {}

template <class T>
void AccumulateHessian(ThreadPool& pool, const T* inputs_TI, int64_t num_tokens, Hessian& hessian) {
  const int64_t n = hessian.in_features;
  const int64_t groups = NumPackedGroups(n);
  LeftStrips left;
  RightStrips right;
  const int64_t at_once = TokensPackedAtOnce(n);
  for (int64_t first = 0; first < num_tokens; first += at_once) {
    const int64_t tokens = std::min(at_once, num_tokens - first);
    const MatrixRows<T> rows{inputs_TI + first * n, n};
    left.Resize(tokens, n);
    right.Resize(tokens, n);
    pool.ParallelFor(2 * groups, [&](int64_t chunk, int) {
      if (chunk < groups) {
        PackStrips(rows, chunk, left);
      } else {
        PackStrips(rows, chunk - groups, right);
      }
    });
    AddGram(pool, left, right, 2.0f, hessian.upper_II.data(), n);
  }
  hessian.num_tokens += num_tokens;
}

template void AccumulateHessian(ThreadPool&, const BFloat16*, int64_t, Hessian&);
template void AccumulateHessian(ThreadPool&, const float*, int64_t, Hessian&);

template <class T>
std::optional<BadInput> FindBadInput(const T* inputs_TI, int64_t num_tokens, int64_t in_features) {
  const int64_t count = num_tokens * in_features;
  for (int64_t first = 0; first < count; first += kCheckBlock) {
    if (first + kCheckBlock <= count && IsFiniteBlock(inputs_TI + first)) continue;
    for (int64_t at = first; at < std::min(count, first + kCheckBlock); ++at) {
      const float value = ToFloat(inputs_TI[at]);
      if (!std::isfinite(value)) return BadInput{at / in_features, at % in_features, value};
    }
  }
  return std::nullopt;
}

template std::optional<BadInput> FindBadInput(const BFloat16*, int64_t, int64_t);
template std::optional<BadInput> FindBadInput(const float*, int64_t, int64_t);

void MergeHessian(ThreadPool& pool, const Hessian& other, Hessian& hessian) {
  QT_CHECK(other.in_features == hessian.in_features, "{} and {} features", other.in_features,
           hessian.in_features);
  ForUpper(pool, hessian.in_features,
           [&](size_t at) { hessian.upper_II[at] += other.upper_II[at]; });
  hessian.num_tokens += other.num_tokens;
}

Hessian BlendHessian(ThreadPool& pool, const Hessian& expert, const Hessian& layer,
                     double prior_tokens) {
  QT_CHECK(expert.in_features == layer.in_features, "{} and {} features", expert.in_features,
           layer.in_features);
  Hessian blend(expert.in_features);
  const double layer_tokens = static_cast<double>(std::max<int64_t>(layer.num_tokens, 1));
  const float share = static_cast<float>(prior_tokens / layer_tokens);
  ForUpper(pool, expert.in_features, [&](size_t at) {
    blend.upper_II[at] = expert.upper_II[at] + share * layer.upper_II[at];
  });
  blend.num_tokens = expert.num_tokens;
  return blend;
}

std::vector<double> OutputError(ThreadPool& pool, const Hessian& hessian, int64_t out_features,
                                FunctionRef<void(int64_t row, float* error_I)> load_row) {
  const int64_t n = hessian.in_features;
  std::vector<double> errors(static_cast<size_t>(out_features));
  pool.ParallelFor(NumPanels(out_features), [&](int64_t chunk, int) {
    const int64_t first = chunk * kPanelColumns;
    const int64_t columns = std::min(kPanelColumns, out_features - first);
    std::vector<float> panel(static_cast<size_t>(n * kPanelColumns));
    std::vector<float> error_I(static_cast<size_t>(n));
    for (int64_t o = 0; o < columns; ++o) {
      load_row(first + o, error_I.data());
      for (size_t i = 0; i < error_I.size(); ++i) {
        panel[i * kPanelColumns + static_cast<size_t>(o)] = error_I[i];
      }
    }
    OutputErrorOfPanel(hessian, panel, columns, errors.data() + first);
  });
  return errors;
}

}  // namespace quatrain
