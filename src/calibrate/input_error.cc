#include "calibrate/input_error.h"

#include <algorithm>

#include "base/error.h"
#include "calibrate/panel_product.h"
#include "calibrate/strip_packing.h"
#include "calibrate/strip_product.h"

namespace quatrain {
namespace {

constexpr int64_t kSolveBlock = 32;

// H + l I = U D U^T in the order of quantisation; feedback_II holds U^T below its unit diagonal.
// Panels [I, kPanelColumns] of right-hand sides are solved in place, block by block of rows,
// several at once, which then read a block of the factor from the cache.
class PanelSolver {
 public:
  explicit PanelSolver(const HessianFactor& factor) : factor_(factor), n_(factor.in_features) {}

  // `panels` holds `count` of them, one behind the other.
  void Solve(int64_t count, float* panels) const {
    const int64_t blocks = (n_ + kSolveBlock - 1) / kSolveBlock;
    const int64_t stride = n_ * kPanelColumns;
    for (int64_t block = blocks - 1; block >= 0; --block) {
      for (int64_t p = 0; p < count; ++p) SolveUpper(block * kSolveBlock, panels + p * stride);
    }
    for (int64_t p = 0; p < count; ++p) DividePivots(panels + p * stride);
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t p = 0; p < count; ++p) SolveLower(block * kSolveBlock, panels + p * stride);
    }
  }

 private:
  const float* Feedback(int64_t row) const { return factor_.feedback_II.data() + row * n_; }

  void DividePivots(float* panel) const {
    for (int64_t j = 0; j < n_; ++j) {
      for (int64_t c = 0; c < kPanelColumns; ++c) {
        panel[j * kPanelColumns + c] /= factor_.pivot_I[static_cast<size_t>(j)];
      }
    }
  }

  // U z = c, rows below `first` + size done: c -= U z of those, then row by row of the block.
  void SolveUpper(int64_t first, float* panel) const {
    const int64_t size = std::min(kSolveBlock, n_ - first);
    const int64_t done = first + size;
    SubtractUpper(first, size, done, n_, panel);
    for (int64_t j = done - 2; j >= first; --j) SubtractUpper(j, 1, j + 1, done, panel);
  }

  // Rows [first, first + size) -= U times rows [from, end).
  void SubtractUpper(int64_t first, int64_t size, int64_t from, int64_t end, float* panel) const {
    AddPanelProduct({.rows = size,
                     .depth = end - from,
                     .a = factor_.feedback_II.data() + from * n_ + first,
                     .a_row_stride = 1,
                     .a_depth_stride = n_,
                     .b = panel + from * kPanelColumns,
                     .c = panel + first * kPanelColumns,
                     .c_row_stride = kPanelColumns,
                     .scale = -1.0f});
  }

  // U^T m = y.
  void SolveLower(int64_t first, float* panel) const {
    const int64_t size = std::min(kSolveBlock, n_ - first);
    SubtractLower(first, size, 0, first, panel);
    for (int64_t j = first + 1; j < first + size; ++j) SubtractLower(j, 1, first, j, panel);
  }

  // Rows [first, first + size) -= U^T times rows [from, end).
  void SubtractLower(int64_t first, int64_t size, int64_t from, int64_t end, float* panel) const {
    AddPanelProduct({.rows = size,
                     .depth = end - from,
                     .a = Feedback(first) + from,
                     .a_row_stride = n_,
                     .b = panel + from * kPanelColumns,
                     .c = panel + first * kPanelColumns,
                     .c_row_stride = kPanelColumns,
                     .scale = -1.0f});
  }

  const HessianFactor& factor_;
  int64_t n_;
};

// error += 2 * X^T Y, and hessian += 2 * X^T X unless it is null; pack_others(first token, group,
// strips) packs columns of Y.
template <class T, class Pack>
void AccumulateMoment(ThreadPool& pool, const T* inputs_TI, int64_t num_tokens, Hessian* hessian,
                      InputError& error, const Pack& pack_others) {
  const int64_t n = error.in_features;
  const int64_t m = error.columns();
  const int64_t groups = NumPackedGroups(n);
  error.moment_IM.resize(static_cast<size_t>(n * m));
  LeftStrips inputs;
  RightStrips others, inputs_again;
  const int64_t at_once = TokensPackedAtOnce(n);
  for (int64_t first = 0; first < num_tokens; first += at_once) {
    const int64_t tokens = std::min(at_once, num_tokens - first);
    const MatrixRows<T> rows{inputs_TI + first * n, n};
    inputs.Resize(tokens, n);
    others.Resize(tokens, m);
    if (hessian != nullptr) inputs_again.Resize(tokens, n);
    pool.ParallelFor(groups + NumPackedGroups(m), [&](int64_t chunk, int) {
      if (chunk >= groups) {
        pack_others(first, chunk - groups, others);
        return;
      }
      PackStrips(rows, chunk, inputs);
      if (hessian != nullptr) PackStrips(rows, chunk, inputs_again);
    });
    AddStripsProduct(pool, inputs, others, 2.0f, error.moment_IM.data(), m);
    if (hessian != nullptr) {
      AddGram(pool, inputs, inputs_again, 2.0f, hessian->upper_II.data(), n);
    }
  }
  if (hessian != nullptr) hessian->num_tokens += num_tokens;
}

template <class T>
void AccumulateBoth(ThreadPool& pool, const T* inputs_TI, MatrixRows<T> reference_TI,
                    int64_t num_tokens, Hessian* hessian, InputError& error) {
  QT_CHECK(error.num_outputs == 0);
  const int64_t n = error.in_features;
  AccumulateMoment(pool, inputs_TI, num_tokens, hessian, error,
                   [&](int64_t first, int64_t group, RightStrips& to) {
                     PackDifference(reference_TI.From(first),
                                    MatrixRows<T>{inputs_TI + first * n, n}, group, to);
                   });
}

}  // namespace

template <class T>
void AccumulateInputError(ThreadPool& pool, const T* inputs_TI, MatrixRows<T> reference_TI,
                          int64_t num_tokens, InputError& error) {
  AccumulateBoth(pool, inputs_TI, reference_TI, num_tokens, nullptr, error);
}

template void AccumulateInputError(ThreadPool&, const BFloat16*, MatrixRows<BFloat16>, int64_t,
                                   InputError&);
template void AccumulateInputError(ThreadPool&, const float*, MatrixRows<float>, int64_t,
                                   InputError&);

template <class T>
void AccumulateHessianAndError(ThreadPool& pool, const T* inputs_TI, MatrixRows<T> reference_TI,
                               int64_t num_tokens, Hessian& hessian, InputError& error) {
  AccumulateBoth(pool, inputs_TI, reference_TI, num_tokens, &hessian, error);
}

template void AccumulateHessianAndError(ThreadPool&, const BFloat16*, MatrixRows<BFloat16>, int64_t,
                                        Hessian&, InputError&);
template void AccumulateHessianAndError(ThreadPool&, const float*, MatrixRows<float>, int64_t,
                                        Hessian&, InputError&);

template <class T>
void AccumulateOutputError(ThreadPool& pool, const T* inputs_TI, const float* output_error_TO,
                           int64_t num_tokens, InputError& error) {
  QT_CHECK(error.num_outputs > 0);
  const int64_t m = error.num_outputs;
  AccumulateMoment(pool, inputs_TI, num_tokens, nullptr, error,
                   [&](int64_t first, int64_t group, RightStrips& to) {
                     PackStrips(MatrixRows<float>{output_error_TO + first * m, m}, group, to);
                   });
}

template void AccumulateOutputError(ThreadPool&, const BFloat16*, const float*, int64_t,
                                    InputError&);
template void AccumulateOutputError(ThreadPool&, const float*, const float*, int64_t, InputError&);

void MergeInputError(const InputError& other, double share, InputError& error) {
  if (other.empty()) return;
  QT_CHECK(other.in_features == error.in_features && other.num_outputs == error.num_outputs,
           "{} and {} features", other.in_features, error.in_features);
  error.moment_IM.resize(other.moment_IM.size());
  const auto factor = static_cast<float>(share);
  for (size_t i = 0; i < other.moment_IM.size(); ++i) {
    error.moment_IM[i] += factor * other.moment_IM[i];
  }
}

InputCorrection::InputCorrection(ThreadPool& pool, const HessianFactor& factor,
                                 const InputError& error)
    : solved_(error) {
  QT_CHECK(factor.is_usable() && error.in_features == factor.in_features && !error.empty());
  const int64_t n = error.in_features;
  const int64_t m = error.columns();
  const PanelSolver solver(factor);
  const int64_t at_once = NumPanels(m) < 64 ? 2 : 4;
  pool.ParallelFor((NumPanels(m) + at_once - 1) / at_once, [&](int64_t chunk, int) {
    const int64_t first_panel = chunk * at_once;
    const int64_t count = std::min(at_once, NumPanels(m) - first_panel);
    std::vector<float> panels(static_cast<size_t>(count * n * kPanelColumns));
    // Calls copy(row of the moment, row of a panel, columns) for all rows of all panels.
    const auto for_rows = [&](const auto& copy) {
      for (int64_t p = 0; p < count; ++p) {
        const int64_t first = (first_panel + p) * kPanelColumns;
        const int64_t columns = std::min(kPanelColumns, m - first);
        for (int64_t j = 0; j < n; ++j) {
          copy(solved_.moment_IM.data() + factor.order_I[static_cast<size_t>(j)] * m + first,
               panels.data() + (p * n + j) * kPanelColumns, columns);
        }
      }
    };
    for_rows([](float* moment, float* panel, int64_t size) { std::copy_n(moment, size, panel); });
    solver.Solve(count, panels.data());
    for_rows([](float* moment, float* panel, int64_t size) { std::copy_n(panel, size, moment); });
  });
}

std::vector<float> InputCorrection::Apply(ThreadPool& pool, const WeightMatrix& weight) const {
  const int64_t n = solved_.in_features;
  QT_CHECK(weight.in_features == n, "{} and {} features", weight.in_features, n);
  if (solved_.num_outputs == 0) return ApplyToRows(pool, weight);
  const int64_t num_outputs = solved_.num_outputs;
  QT_CHECK(weight.out_features == num_outputs, "{} and {} outputs", weight.out_features,
           num_outputs);
  std::vector<float> target_OI(static_cast<size_t>(num_outputs * n));
  pool.ParallelFor(num_outputs, [&](int64_t row, int) {
    for (int64_t i = 0; i < n; ++i) {
      const float change = solved_.moment_IM[static_cast<size_t>(i * num_outputs + row)];
      target_OI[static_cast<size_t>(row * n + i)] = ToFloat(weight.data[row * n + i]) + change;
    }
  });
  return target_OI;
}

// w + w C^T (H + l I)^-1, a panel of rows at a time.
std::vector<float> InputCorrection::ApplyToRows(ThreadPool& pool,
                                                const WeightMatrix& weight) const {
  const int64_t n = solved_.in_features;
  std::vector<float> target_OI(static_cast<size_t>(weight.out_features * n));
  pool.ParallelFor(NumPanels(weight.out_features), [&](int64_t index, int) {
    const int64_t first = index * kPanelColumns;
    const int64_t rows = std::min(kPanelColumns, weight.out_features - first);
    std::vector<float> weights(static_cast<size_t>(n * kPanelColumns));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < n; ++i) {
        weights[static_cast<size_t>(i * kPanelColumns + r)] =
            ToFloat(weight.data[(first + r) * n + i]);
      }
    }
    std::vector<float> targets = weights;
    AddPanelProduct({.rows = n,
                     .depth = n,
                     .a = solved_.moment_IM.data(),
                     .a_row_stride = n,
                     .b = weights.data(),
                     .c = targets.data(),
                     .c_row_stride = kPanelColumns});
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < n; ++i) {
        target_OI[static_cast<size_t>((first + r) * n + i)] =
            targets[static_cast<size_t>(i * kPanelColumns + r)];
      }
    }
  });
  return target_OI;
}

}  // namespace quatrain
