#include "calibrate/input_error.h"

#include <algorithm>

#include "base/error.h"
#include "calibrate/panel_product.h"

namespace quatrain {
namespace {

constexpr int64_t kPackedTokens = 4 * kChainDepth;  // bounds the FP32 copy of the inputs
constexpr int64_t kSolveBlock = 32;

// H + l I = U D U^T in the order of quantisation; feedback_II holds U^T below its unit diagonal.
// Panels [I, kPanelColumns] of right-hand sides are solved in place, block by block of rows.
class PanelSolver {
 public:
  explicit PanelSolver(const HessianFactor& factor) : factor_(factor), n_(factor.in_features) {}

  void Solve(float* panel) const {
    const int64_t blocks = (n_ + kSolveBlock - 1) / kSolveBlock;
    for (int64_t block = blocks - 1; block >= 0; --block) SolveUpper(block * kSolveBlock, panel);
    for (int64_t j = 0; j < n_; ++j) {
      for (int64_t c = 0; c < kPanelColumns; ++c) {
        panel[j * kPanelColumns + c] /= factor_.pivot_I[static_cast<size_t>(j)];
      }
    }
    for (int64_t block = 0; block < blocks; ++block) SolveLower(block * kSolveBlock, panel);
  }

 private:
  const float* Feedback(int64_t row) const { return factor_.feedback_II.data() + row * n_; }

  // U z = c, rows below `first` + size done: c -= U z of those, then the block itself.
  void SolveUpper(int64_t first, float* panel) const {
    const int64_t size = std::min(kSolveBlock, n_ - first);
    const int64_t done = first + size;
    AddPanelProduct({.rows = size,
                     .depth = n_ - done,
                     .a = Feedback(done) + first,
                     .a_row_stride = 1,
                     .a_depth_stride = n_,
                     .b = panel + done * kPanelColumns,
                     .c = panel + first * kPanelColumns,
                     .c_row_stride = kPanelColumns,
                     .scale = -1.0f});
    for (int64_t j = done - 1; j > first; --j) {
      for (int64_t i = first; i < j; ++i) Subtract(Feedback(j)[i], panel, j, i);
    }
  }

  // U^T m = y.
  void SolveLower(int64_t first, float* panel) const {
    const int64_t size = std::min(kSolveBlock, n_ - first);
    AddPanelProduct({.rows = size,
                     .depth = first,
                     .a = Feedback(first),
                     .a_row_stride = n_,
                     .b = panel,
                     .c = panel + first * kPanelColumns,
                     .c_row_stride = kPanelColumns,
                     .scale = -1.0f});
    for (int64_t j = first + 1; j < first + size; ++j) {
      for (int64_t i = first; i < j; ++i) Subtract(Feedback(j)[i], panel, i, j);
    }
  }

  // Row `to` -= factor * row `from`.
  static void Subtract(float factor, float* panel, int64_t from, int64_t to) {
    const float* source = panel + from * kPanelColumns;
    float* target = panel + to * kPanelColumns;
    for (int64_t c = 0; c < kPanelColumns; ++c) target[c] -= factor * source[c];
  }

  const HessianFactor& factor_;
  int64_t n_;
};

// Fills a panel [tokens, kPanelColumns] with value(token, column), zeros past num_columns.
template <class Value>
void FillPanel(int64_t panel, int64_t tokens, int64_t num_columns, float* to, const Value& value) {
  const int64_t first = panel * kPanelColumns;
  const int64_t columns = std::min(kPanelColumns, num_columns - first);
  for (int64_t t = 0; t < tokens; ++t, to += kPanelColumns) {
    for (int64_t i = 0; i < columns; ++i) to[i] = value(t, first + i);
    std::fill(to + columns, to + kPanelColumns, 0.0f);
  }
}

// error += 2 * X^T Y, Y given by y(token, column).
template <class T, class Y>
void AccumulateMoment(ThreadPool& pool, const T* inputs_TI, int64_t num_tokens, InputError& error,
                      const Y& y) {
  const int64_t n = error.in_features;
  const int64_t m = error.columns();
  error.moment_IM.resize(static_cast<size_t>(n * m));
  ColumnPanels inputs, others;
  for (int64_t first = 0; first < num_tokens; first += kPackedTokens) {
    const int64_t tokens = std::min(kPackedTokens, num_tokens - first);
    inputs.Resize(tokens, n);
    others.Resize(tokens, m);
    pool.ParallelFor(NumPanels(n) + NumPanels(m), [&](int64_t chunk, int) {
      if (chunk < NumPanels(n)) {
        FillPanel(chunk, tokens, n, inputs.Panel(chunk),
                  [&](int64_t t, int64_t i) { return ToFloat(inputs_TI[(first + t) * n + i]); });
        return;
      }
      const int64_t panel = chunk - NumPanels(n);
      FillPanel(panel, tokens, m, others.Panel(panel),
                [&](int64_t t, int64_t i) { return y(first + t, i); });
    });
    AddPanelsProduct(pool, inputs, others, 2.0f, error.moment_IM.data(), m);
  }
}

}  // namespace

template <class T>
void AccumulateInputError(ThreadPool& pool, const T* inputs_TI, const T* reference_TI,
                          int64_t num_tokens, InputError& error) {
  QT_CHECK(error.num_outputs == 0);
  const int64_t n = error.in_features;
  AccumulateMoment(pool, inputs_TI, num_tokens, error, [&](int64_t t, int64_t i) {
    return ToFloat(reference_TI[t * n + i]) - ToFloat(inputs_TI[t * n + i]);
  });
}

template void AccumulateInputError(ThreadPool&, const BFloat16*, const BFloat16*, int64_t,
                                   InputError&);
template void AccumulateInputError(ThreadPool&, const float*, const float*, int64_t, InputError&);

template <class T>
void AccumulateOutputError(ThreadPool& pool, const T* inputs_TI, const float* output_error_TO,
                           int64_t num_tokens, InputError& error) {
  QT_CHECK(error.num_outputs > 0);
  AccumulateMoment(pool, inputs_TI, num_tokens, error, [&](int64_t t, int64_t o) {
    return output_error_TO[t * error.num_outputs + o];
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
  pool.ParallelFor(NumPanels(m), [&](int64_t index, int) {
    const int64_t first = index * kPanelColumns;
    const int64_t columns = std::min(kPanelColumns, m - first);
    std::vector<float> panel(static_cast<size_t>(n * kPanelColumns));
    const auto row_of = [&](int64_t j) {
      return solved_.moment_IM.data() + factor.order_I[static_cast<size_t>(j)] * m + first;
    };
    for (int64_t j = 0; j < n; ++j) {
      std::copy_n(row_of(j), columns, panel.data() + j * kPanelColumns);
    }
    solver.Solve(panel.data());
    for (int64_t j = 0; j < n; ++j) {
      std::copy_n(panel.data() + j * kPanelColumns, columns, row_of(j));
    }
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
