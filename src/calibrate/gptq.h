// GPTQ: codes for one weight matrix from the Hessian of its inputs. Pure: no model, no files, no
// torch.
//
//   HessianFactor factor = FactorHessian(pool, hessian, options, "model.layers.0.mlp.gate_proj");
//   GptqResult gate = QuantizeWeight(pool, gate_weight, hessian, factor, options, name);  //
//   up_proj shares the factor
//
// Columns are quantised one after another; each column's rounding error is compensated by those
// that follow. With H + dampening = R R^T (R upper triangular, columns in the order of
// quantisation), the value to round in column j is
//   t_j = w_j + sum over i < j of (w_i - w'_i) * R_ij / R_jj,
// which is GPTQ (arXiv:2210.17323) without the inverse of H: LDLQ of arXiv:2307.13304, section 3.
// Rows are independent. Letters: O out_features, I in_features, G groups of a row.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/threads.h"
#include "calibrate/float_buffer.h"
#include "calibrate/hessian.h"
#include "calibrate/scale_search.h"
#include "kernels/bfloat16.h"
#include "kernels/int4.h"

namespace quatrain {

enum class ActOrder {
  kNone,    // columns from left to right
  kStatic,  // by falling diagonal of H; scales stay those of the original groups, so nothing is
            // stored
};

// Columns whose input was zero on every token.
enum class DeadColumns {
  kKeep,  // nearest codes: the calibration data said nothing about them
  kZero,  // zero, as llm-compressor does
};

enum class Fallback {
  kDampeningLadder,  // dampening_frac, then 0.01, 0.1 and 1.0 where larger, then round-to-nearest
  kRoundToNearest,   // at the first failure, as llm-compressor does
};

struct GptqOptions {
  int num_bits = 4;         // 4 or 8
  int64_t group_size = 32;  // divides I; I itself for one scale per row
  ScaleRule scale_rule = ScaleRule::kSearched;
  std::optional<CodeGrid> grid = {};  // narrower bounds (NarrowGrid) than the rule's
  double dampening_frac = 0.01;       // of the mean diagonal of H
  int64_t block_size = 32;            // columns between lazy updates; changes rounding only
  ActOrder actorder = ActOrder::kStatic;
  DeadColumns dead_columns = DeadColumns::kKeep;
  Fallback fallback = Fallback::kDampeningLadder;
};

// The numbers of llm-compressor 0.14: absmax/7.5, dead columns zeroed, no ladder.
GptqOptions ReferenceGptqOptions(int num_bits, int64_t group_size);

// What all weights that read one input share: order of columns and feedback. Depends on H and the
// options only.
struct HessianFactor {
  int64_t in_features = 0;
  std::vector<int32_t> order_I;     // order_I[j] is the column quantised j-th
  std::vector<uint8_t> is_dead_I;   // by column
  std::vector<float> added_I;       // what was added to the diagonal, in the order of quantisation
  std::vector<float> pivot_I;       // R_jj^2
  FloatBuffer feedback_II;          // R_ij / R_jj at [j, i], i < j; rest unset
  std::vector<float> importance_I;  // dampened diagonal by column, for the search of scales
  double dampening_frac = 0.0;      // the rung that succeeded
  int rung = 0;                     // 0: the one asked for
  std::string failure;              // not empty: no rung succeeded, and why

  bool is_usable() const { return failure.empty(); }
};

// Errors: kData if H holds a NaN or Inf, naming `module` and the first input feature. A Hessian
// that cannot be factored is no error but a `failure`.
HessianFactor FactorHessian(ThreadPool& pool, const Hessian& hessian, const GptqOptions& options,
                            std::string_view module);

struct GptqResult {
  std::vector<int8_t> codes_OI;  // signed
  std::vector<BFloat16> scale_OG;
  std::vector<double>
      row_loss_O;            // e H e^T of each row's final error e = w - w', without dampening
  double loss = 0.0;         // their sum, tr(E H E^T)
  double solver_loss = 0.0;  // half the dampened loss: what llm-compressor reports
  bool is_round_to_nearest = false;  // fell back: codes and scales are those of the absmax rule
  std::string fallback_reason;
};

// Codes -8..7 (-128..127), those of kAbsmax7, or those of options.grid. Same bits for any thread
// count. A fallback rounds to nearest, with absmax/7 where scales would have been searched. Errors:
// kData if the weight holds a value without a code, naming `module`, row and column; kShape if
// group_size does not divide I.
GptqResult QuantizeWeight(ThreadPool& pool, const WeightMatrix& weight, const Hessian& hessian,
                          const HessianFactor& factor, const GptqOptions& options,
                          std::string_view module);

}  // namespace quatrain
