#include "kernels/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/sample_cutoff.h"
#include "kernels/cpu/simd_targets.h"
#include "kernels/cpu/softmax_row.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/softmax_row-inl.h"
// clang-format on

// Plan: a row per task. Exponentials of the whole row (their sum gives the log-probability), then
// zeros for what top-k and top-p drop, sums of blocks in double, and a walk through one block.

#ifndef QUATRAIN_KERNELS_CPU_SAMPLE_ARGS_
#define QUATRAIN_KERNELS_CPU_SAMPLE_ARGS_
namespace quatrain {

// Tokens of one partial sum of the inverse CDF.
inline constexpr int64_t kCdfBlock = 64;

// The part of SampleCutoff that a range of tokens needs: kept are logits >= lowest.
struct KeptRange {
  int64_t begin, end;
  float lowest;
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_SAMPLE_ARGS_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

int32_t GreedyToken(const float* logits_V, int64_t vocab_size) {
  return ArgmaxOfLogits(logits_V, vocab_size);
}

SoftmaxRow SumOfGreedyRow(const float* logits_V, int64_t vocab_size) {
  return SumOfRow<false>(logits_V, vocab_size, 1.0f, nullptr);
}

SoftmaxRow ExpsOfRow(const float* logits_V, int64_t vocab_size, float inv_temperature,
                     float* exps_V) {
  return SumOfRow<true>(logits_V, vocab_size, inv_temperature, exps_V);
}

void BucketsOfRow(const float* logits_V, int64_t vocab_size, float inv_temperature, float largest,
                  int32_t* buckets_V) {
  constexpr float kLast = static_cast<float>(kNumBuckets - 1);
  for (int64_t v = 0; v < vocab_size; ++v) {
    const float distance = (largest - logits_V[v] * inv_temperature) * kBucketsPerNat;
    buckets_V[v] = static_cast<int32_t>(distance < kLast ? distance : kLast);
  }
}

void DropBelow(const float* logits_V, const KeptRange& range, float* exps_V) {
  const F16 lowest = Set16(range.lowest);
  for (int64_t v = range.begin; v < range.end; v += kF16Lanes) {
    const F16 logits = LoadAt16(logits_V, v, range.end);
    StoreAt16(KeepFrom16(logits, lowest, LoadAt16(exps_V, v, range.end)), exps_V, v, range.end);
  }
}

// sums[b] of the b-th kCdfBlock exponentials, in 16 partial sums and the tree.
void SumsOfBlocks(const float* exps_V, int64_t vocab_size, double* sums) {
  for (int64_t begin = 0; begin < vocab_size; begin += kCdfBlock) {
    const int64_t end = begin + kCdfBlock < vocab_size ? begin + kCdfBlock : vocab_size;
    double lanes[16] = {};
    int64_t v = begin;
    for (; v + 16 <= end; v += 16) {
      for (int64_t lane = 0; lane < 16; ++lane) lanes[lane] += exps_V[v + lane];
    }
    for (int64_t lane = 0; v + lane < end; ++lane) lanes[lane] += exps_V[v + lane];
    for (int64_t width = 8; width >= 1; width /= 2) {
      for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    }
    *sums++ = lanes[0];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(GreedyToken);
HWY_EXPORT(SumOfGreedyRow);
HWY_EXPORT(ExpsOfRow);
HWY_EXPORT(BucketsOfRow);
HWY_EXPORT(DropBelow);
HWY_EXPORT(SumsOfBlocks);

// Buffers of one thread.
struct Scratch {
  std::vector<float> exps;
  std::vector<double> block_sums;
  std::vector<int32_t> buckets;
  CutoffScratch cutoff;
};

struct Sampled {
  int32_t token;
  float logprob;
};

// A row without a NaN, without +inf and with at least one finite logit has both.
void CheckRow(const SoftmaxRow& sums, const float* logits_V, int64_t vocab_size, int64_t row) {
  if (std::isfinite(sums.sum) && std::isfinite(sums.largest)) return;
  int64_t bad = 0;
  while (bad < vocab_size && logits_V[bad] <= std::numeric_limits<float>::max()) ++bad;
  throw Error(ErrorCode::kData,
              {.where = fmt::format("sampling, row {}", row),
               .what = bad < vocab_size ? fmt::format("the logit of token {} is not usable", bad)
                                        : "no logit is finite",
               .expected = "no NaN or +inf, and one finite logit at least",
               .found = bad < vocab_size ? fmt::format("{}", logits_V[bad]) : "only -inf",
               .todo = "Check the weights of the model for NaN and infinities."});
}

Sampled Greedy(const float* logits_V, int64_t vocab_size, int64_t row) {
  const SoftmaxRow sums = HWY_DYNAMIC_DISPATCH(SumOfGreedyRow)(logits_V, vocab_size);
  CheckRow(sums, logits_V, vocab_size, row);
  const int32_t token = HWY_DYNAMIC_DISPATCH(GreedyToken)(logits_V, vocab_size);
  return {token, LogprobOf(logits_V[token], 1.0f, sums)};
}

// Zeroes the exponentials of tokens that top-k and top-p drop.
void ApplyLimits(const SamplingRow& row, const float* logits_V, int64_t vocab_size, float largest,
                 Scratch& scratch) {
  const int64_t top_k = row.top_k < vocab_size ? std::max<int64_t>(0, row.top_k) : 0;
  if (top_k == 0 && row.top_p >= 1.0f) return;
  scratch.buckets.resize(static_cast<size_t>(vocab_size));
  HWY_DYNAMIC_DISPATCH(BucketsOfRow)
  (logits_V, vocab_size, 1.0f / row.temperature, largest, scratch.buckets.data());
  const CutoffRow cutoff_row{.logits = logits_V,
                             .exps = scratch.exps.data(),
                             .buckets = scratch.buckets.data(),
                             .vocab_size = vocab_size};
  const SampleCutoff cutoff = FindCutoff(cutoff_row, top_k, row.top_p, scratch.cutoff);
  // Past the cutoff's index, its own logit is out as well.
  const float above = std::nextafter(cutoff.logit, std::numeric_limits<float>::infinity());
  const auto drop = &HWY_DYNAMIC_DISPATCH(DropBelow);
  drop(logits_V, {0, cutoff.index + 1, cutoff.logit}, scratch.exps.data());
  drop(logits_V, {cutoff.index + 1, vocab_size, above}, scratch.exps.data());
}

// The first token whose running sum, in index order, exceeds u of the whole.
int32_t InverseCdf(const std::vector<float>& exps, const std::vector<double>& block_sums,
                   double u) {
  double total = 0.0;
  for (const double sum : block_sums) total += sum;
  const double threshold = u * total;
  double reached = 0.0;
  size_t chosen = 0;  // stays on the last block with a mass if rounding keeps the sum below
  for (size_t block = 0; block < block_sums.size(); ++block) {
    if (block_sums[block] == 0.0) continue;
    chosen = block;
    if (reached + block_sums[block] > threshold) break;
    reached += block_sums[block];
  }
  const size_t begin = chosen * kCdfBlock;
  const size_t end = std::min(exps.size(), begin + kCdfBlock);
  size_t token = begin;
  for (size_t v = begin; v < end; ++v) {
    if (exps[v] == 0.0f) continue;
    token = v;
    reached += exps[v];
    if (reached > threshold) break;
  }
  return static_cast<int32_t>(token);
}

Sampled Draw(const SamplingRow& row, const float* logits_V, int64_t vocab_size, int64_t row_index,
             Scratch& scratch) {
  const float inv_temperature = 1.0f / row.temperature;
  scratch.exps.resize(static_cast<size_t>(vocab_size));
  const SoftmaxRow sums =
      HWY_DYNAMIC_DISPATCH(ExpsOfRow)(logits_V, vocab_size, inv_temperature, scratch.exps.data());
  CheckRow(sums, logits_V, vocab_size, row_index);
  ApplyLimits(row, logits_V, vocab_size, sums.largest, scratch);
  scratch.block_sums.resize(static_cast<size_t>(CeilDiv(vocab_size, kCdfBlock)));
  HWY_DYNAMIC_DISPATCH(SumsOfBlocks)
  (scratch.exps.data(), vocab_size, scratch.block_sums.data());
  const double u = UniformDouble(row.seed, static_cast<uint64_t>(row.position), 0);
  const int32_t token = InverseCdf(scratch.exps, scratch.block_sums, u);
  return {token, LogprobOf(logits_V[token], inv_temperature, sums)};
}

}  // namespace

void SampleRows(ThreadPool& pool, const float* logits_RV, std::span<const SamplingRow> rows,
                int64_t vocab_size, int32_t* tokens_R, float* logprobs_R) {
  QT_CHECK(vocab_size > 0 && vocab_size <= std::numeric_limits<int32_t>::max(), "vocabulary {}",
           vocab_size);
  const int64_t chunk_rows = ChunkRows(vocab_size);
  std::vector<Scratch> scratch(static_cast<size_t>(pool.num_threads()));
  pool.ParallelFor(CeilDiv(std::ssize(rows), chunk_rows), [&](int64_t chunk, int worker) {
    const int64_t end = std::min<int64_t>(std::ssize(rows), (chunk + 1) * chunk_rows);
    for (int64_t r = chunk * chunk_rows; r < end; ++r) {
      const SamplingRow& row = rows[static_cast<size_t>(r)];
      QT_CHECK(row.temperature >= 0.0f, "row {}: temperature {}", r, row.temperature);
      const float* logits_V = logits_RV + r * vocab_size;
      const Sampled sampled = row.temperature == 0.0f ? Greedy(logits_V, vocab_size, r)
                                                      : Draw(row, logits_V, vocab_size, r,
                                                             scratch[static_cast<size_t>(worker)]);
      tokens_R[r] = sampled.token;
      logprobs_R[r] = sampled.logprob;
    }
  });
}

}  // namespace quatrain
#endif  // HWY_ONCE
