// FactorHessian of calibrate/gptq.h: order, dampening ladder, factorisation.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "calibrate/cholesky.h"
#include "calibrate/gptq.h"

namespace quatrain {
namespace {

constexpr int64_t kRowsPerChunk = 32;

void ForRows(ThreadPool& pool, int64_t n, FunctionRef<void(int64_t row)> body) {
  pool.ParallelFor((n + kRowsPerChunk - 1) / kRowsPerChunk, [&](int64_t chunk, int) {
    const int64_t end = std::min(n, (chunk + 1) * kRowsPerChunk);
    for (int64_t row = chunk * kRowsPerChunk; row < end; ++row) body(row);
  });
}

void CheckFinite(ThreadPool& pool, const Hessian& hessian, std::string_view module) {
  const int64_t n = hessian.in_features;
  ForRows(pool, n, [&](int64_t row) {
    const auto bad = FindBadInput(hessian.upper_II.data() + row * n + row, 1, n - row);
    if (!bad) return;
    throw Error(ErrorCode::kData,
                {.where = std::string(module),
                 .what = fmt::format("the Hessian of its inputs is not finite at features {}, {}",
                                     row, row + bad->feature),
                 .expected = "finite activations",
                 .found = fmt::format("{}", bad->value),
                 .todo = "Find the calibration sample or the layer before it that overflows."});
  });
}

std::vector<double> LadderOf(const GptqOptions& options) {
  std::vector<double> rungs = {options.dampening_frac};
  if (options.fallback == Fallback::kRoundToNearest) return rungs;
  for (const double rung : {0.01, 0.1, 1.0}) {
    if (rung > rungs.back()) rungs.push_back(rung);
  }
  return rungs;
}

// Diagonal of H with that of dead columns replaced, and its mean. llm-compressor puts 1 there and
// lets it count in the mean; kKeep puts the live columns' mean, so that the scale of H changes
// nothing.
struct Diagonal {
  std::vector<double> value_I;
  double mean = 0.0;
};

Diagonal LiveDiagonal(const Hessian& hessian, DeadColumns dead_columns) {
  const int64_t n = hessian.in_features;
  Diagonal diagonal;
  double sum = 0.0;
  int64_t live = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double value = static_cast<double>(hessian.At(i, i));
    diagonal.value_I.push_back(value);
    sum += value;
    live += value != 0.0;
  }
  const bool is_zeroed = dead_columns == DeadColumns::kZero;
  const double replacement =
      is_zeroed ? 1.0 : sum / static_cast<double>(std::max<int64_t>(live, 1));
  for (double& value : diagonal.value_I) {
    if (value == 0.0) value = replacement;
  }
  diagonal.mean = std::accumulate(diagonal.value_I.begin(), diagonal.value_I.end(), 0.0) /
                  static_cast<double>(n);
  return diagonal;
}

std::vector<int32_t> OrderOf(const Hessian& hessian, ActOrder actorder) {
  std::vector<int32_t> order(static_cast<size_t>(hessian.in_features));
  std::iota(order.begin(), order.end(), 0);
  if (actorder == ActOrder::kStatic) {
    std::vector<float> diagonal_I;
    for (int64_t i = 0; i < hessian.in_features; ++i) diagonal_I.push_back(hessian.At(i, i));
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return diagonal_I[static_cast<size_t>(a)] > diagonal_I[static_cast<size_t>(b)];
    });
  }
  return order;
}

// The dampened H with its columns in reverse order of quantisation: its Cholesky factor, reversed,
// is R. Rows of H are read from first to last, each once. What does not belong to the row that a
// thread fills lies above it in the row's column, next to what the rows before it wrote there.
void GatherReversed(ThreadPool& pool, const Hessian& hessian, const std::vector<float>& diagonal_I,
                    HessianFactor& factor) {
  const int64_t n = hessian.in_features;
  factor.feedback_II.resize(static_cast<size_t>(n * n));
  std::vector<int64_t> place_I(static_cast<size_t>(n));
  for (int64_t row = 0; row < n; ++row) {
    place_I[static_cast<size_t>(factor.order_I[static_cast<size_t>(n - 1 - row)])] = row;
  }
  float* const to = factor.feedback_II.data();
  ForRows(pool, n, [&, n](int64_t row) {
    const int64_t from_row = factor.order_I[static_cast<size_t>(n - 1 - row)];
    const float* from = hessian.upper_II.data() + from_row * n;
    const int64_t* place = place_I.data();
    std::fill_n(to + row * n, row, 0.0f);
    to[row * n + row] = diagonal_I[static_cast<size_t>(from_row)];
    for (int64_t column = from_row + 1; column < n; ++column) {
      to[std::min(row, place[column]) * n + std::max(row, place[column])] = from[column];
    }
  });
}

// From the reversed upper factor to pivots and feedback: rows are divided by their diagonal, and
// all entries reversed, which puts those right of the diagonal to the left of it, where nothing is
// read.
void FinishFeedback(ThreadPool& pool, HessianFactor& factor) {
  const int64_t n = factor.in_features;
  factor.pivot_I.resize(static_cast<size_t>(n));
  ForRows(pool, n, [&](int64_t row) {
    const float* values = factor.feedback_II.data() + row * n;
    const float root = values[row];
    const int64_t j = n - 1 - row;
    factor.pivot_I[static_cast<size_t>(j)] = root * root;
    DivideReversed(values + row + 1, j, root, factor.feedback_II.data() + j * n);
  });
}

bool TryRung(ThreadPool& pool, const Hessian& hessian, const Diagonal& diagonal, double rung,
             HessianFactor& factor) {
  const int64_t n = hessian.in_features;
  const double dampening = rung * diagonal.mean;
  std::vector<float> dampened(static_cast<size_t>(n));
  factor.importance_I.resize(static_cast<size_t>(n));
  factor.added_I.resize(static_cast<size_t>(n));
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    dampened[i] = static_cast<float>(diagonal.value_I[i] + dampening);
    factor.importance_I[i] = factor.is_dead_I[i] != 0 ? static_cast<float>(dampening) : dampened[i];
  }
  for (size_t j = 0; j < static_cast<size_t>(n); ++j) {
    const size_t i = static_cast<size_t>(factor.order_I[j]);
    const int64_t at = static_cast<int64_t>(i);
    factor.added_I[j] = dampened[i] - hessian.At(at, at);
  }
  GatherReversed(pool, hessian, dampened, factor);
  if (!TryCholesky(pool, factor.feedback_II.data(), n)) return false;
  FinishFeedback(pool, factor);
  return true;
}

}  // namespace

HessianFactor FactorHessian(ThreadPool& pool, const Hessian& hessian, const GptqOptions& options,
                            std::string_view module) {
  CheckFinite(pool, hessian, module);
  HessianFactor factor;
  const int64_t n = factor.in_features = hessian.in_features;
  int64_t num_dead = 0;
  for (int64_t i = 0; i < n; ++i) {
    factor.is_dead_I.push_back(hessian.At(i, i) == 0.0f);
    num_dead += factor.is_dead_I.back();
  }
  if (num_dead == n && options.dead_columns == DeadColumns::kKeep) {
    factor.failure = "no calibration token reached it";
    return factor;
  }
  factor.order_I = OrderOf(hessian, options.actorder);
  const Diagonal diagonal = LiveDiagonal(hessian, options.dead_columns);
  for (const double rung : LadderOf(options)) {
    factor.dampening_frac = rung;
    if (TryRung(pool, hessian, diagonal, rung, factor)) return factor;
    ++factor.rung;
  }
  factor.failure = fmt::format("its Hessian is not positive definite, dampening {} included",
                               factor.dampening_frac);
  factor.feedback_II.clear();
  return factor;
}

}  // namespace quatrain
