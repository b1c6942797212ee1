#include "kernels/logprob.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/simd_targets.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/logprob.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/softmax_row-inl.h"
// clang-format on

// Plan: a chunk of rows per task; per row one pass for the maximum, one for the sum (and entropy),
// one more in the backward. A row of logits is read from L1 or L2 after the first pass.

#ifndef QUATRAIN_KERNELS_CPU_LOGPROB_ARGS_
#define QUATRAIN_KERNELS_CPU_LOGPROB_ARGS_
namespace quatrain {

struct LogprobRow {
  const float* logits;  // [V]
  int64_t vocab_size;
  float inv_temperature;
  int32_t target;
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_LOGPROB_ARGS_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

// x - M is cut off here where a product with exp(x - M) = 0 must be 0, even for x = -inf.
constexpr float kLowestShifted = -1e30f;

// sum e (x - M), with e = exp(x - M): 16 partial sums and the tree.
HWY_INLINE float WeightedSumOfRow(const LogprobRow& args, float largest) {
  const F16 scale = Set16(args.inv_temperature);
  const F16 shift = Set16(largest);
  const F16 lowest = Set16(kLowestShifted);
  F16 sums = Zero16();
  for (int64_t v = 0; v < args.vocab_size; v += kF16Lanes) {
    const F16 x = Max16(lowest, ScaledLogits(args.logits, v, args.vocab_size, scale) - shift);
    sums = Fma(Exp16(x), x, sums);
  }
  return SumLanes(sums);
}

// Entropy: log L - sum e (x - M) / L.
HWY_INLINE float EntropyOf(const LogprobRow& args, const SoftmaxRow& row) {
  return LogSum(row) - WeightedSumOfRow(args, row.largest) / row.sum;
}

void LogprobOfRow(const LogprobRow& args, float* logprob, float* entropy) {
  const SoftmaxRow row =
      SumOfRow<false>(args.logits, args.vocab_size, args.inv_temperature, nullptr);
  *logprob = LogprobOf(args.logits[args.target], args.inv_temperature, row);
  if (entropy != nullptr) *entropy = EntropyOf(args, row);
}

// In place, with p = softmax(x) and d the gradients:
// dz_v = (d logprob (1[v = t] - p_v) - d entropy p_v (log p_v + entropy)) inv_temperature.
void GradOfRow(const LogprobRow& args, float dlogprob, float dentropy, float* grad_V) {
  const SoftmaxRow row =
      SumOfRow<false>(args.logits, args.vocab_size, args.inv_temperature, nullptr);
  const float entropy = dentropy == 0.0f ? 0.0f : EntropyOf(args, row);
  const F16 scale = Set16(args.inv_temperature);
  const F16 shift = Set16(row.largest);
  const F16 lowest = Set16(kLowestShifted);
  const F16 inverse_sum = Set16(1.0f / row.sum);
  // -(d logprob + d entropy (log p + H)) = slope (x - M) + offset
  const F16 slope = Set16(-dentropy);
  const F16 offset = Set16(-(dlogprob + dentropy * (entropy - LogSum(row))));
  for (int64_t v = 0; v < args.vocab_size; v += kF16Lanes) {
    const F16 x = Max16(lowest, ScaledLogits(args.logits, v, args.vocab_size, scale) - shift);
    const F16 p = Exp16(x) * inverse_sum;
    StoreAt16(p * Fma(slope, x, offset) * scale, grad_V, v, args.vocab_size);
  }
  grad_V[args.target] += dlogprob * args.inv_temperature;
}

int32_t ArgmaxOfRow(const float* logits_V, int64_t vocab_size) {
  return ArgmaxOfLogits(logits_V, vocab_size);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(LogprobOfRow);
HWY_EXPORT(GradOfRow);
HWY_EXPORT(ArgmaxOfRow);

void CheckTarget(int32_t target, int64_t vocab_size) {
  QT_CHECK(target >= 0 && target < vocab_size, "target {} of {}", target, vocab_size);
}

}  // namespace

void LogprobForward(ThreadPool& pool, const float* logits_RV, std::span<const int32_t> targets,
                    std::span<const float> inv_temperature, int64_t vocab_size, float* logprobs_R,
                    float* entropy_R) {
  const int64_t num_rows = std::ssize(targets);
  QT_CHECK(std::ssize(inv_temperature) == num_rows || inv_temperature.size() == 1,
           "{} temperatures for {} rows", inv_temperature.size(), num_rows);
  ParallelChunks(pool, num_rows, ChunkRows(vocab_size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const auto index = static_cast<size_t>(r);
      CheckTarget(targets[index], vocab_size);
      const LogprobRow row{
          .logits = logits_RV + r * vocab_size,
          .vocab_size = vocab_size,
          .inv_temperature = inv_temperature[inv_temperature.size() == 1 ? 0 : index],
          .target = targets[index]};
      HWY_DYNAMIC_DISPATCH(LogprobOfRow)
      (row, logprobs_R + r, entropy_R == nullptr ? nullptr : entropy_R + r);
    }
  });
}

void LogprobBackward(ThreadPool& pool, float* logits_RV, std::span<const int32_t> targets,
                     float inv_temperature, int64_t vocab_size, const float* dlogprobs_R,
                     const float* dentropy_R) {
  const int64_t num_rows = std::ssize(targets);
  ParallelChunks(pool, num_rows, ChunkRows(vocab_size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t target = targets[static_cast<size_t>(r)];
      CheckTarget(target, vocab_size);
      float* row_V = logits_RV + r * vocab_size;
      const float dentropy = dentropy_R == nullptr ? 0.0f : dentropy_R[r];
      if (dlogprobs_R[r] == 0.0f && dentropy == 0.0f) {  // a token outside of the loss
        std::fill_n(row_V, vocab_size, 0.0f);
        continue;
      }
      const LogprobRow row{.logits = row_V,
                           .vocab_size = vocab_size,
                           .inv_temperature = inv_temperature,
                           .target = target};
      HWY_DYNAMIC_DISPATCH(GradOfRow)(row, dlogprobs_R[r], dentropy, row_V);
    }
  });
}

void ArgmaxRows(ThreadPool& pool, const float* logits_RV, int64_t rows, int64_t vocab_size,
                int32_t* tokens_R) {
  QT_CHECK(rows >= 0 && vocab_size > 0, "[{}, {}]", rows, vocab_size);
  ParallelChunks(pool, rows, ChunkRows(vocab_size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      tokens_R[r] = HWY_DYNAMIC_DISPATCH(ArgmaxOfRow)(logits_RV + r * vocab_size, vocab_size);
    }
  });
}

}  // namespace quatrain
#endif  // HWY_ONCE
