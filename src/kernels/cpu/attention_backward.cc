#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/attention.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/simd_targets.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/simd-inl.h"
// clang-format on

// Plan: a task is one (sequence, kv head), whose k, v, dk and dv it holds as FP32. Blocks of up to
// 32 rows (query, head) ascending: p again as in the forward, dp = dout v, ds = p (dp - sum p dp)
// scale, then dq = ds k for the block and its share of dk = ds^T q and dv = p^T dout. Every element
// is one fma chain, over keys for dq and over rows for dk and dv.

#ifndef QUATRAIN_KERNELS_CPU_ATTENTION_GRAD_SCRATCH_
#define QUATRAIN_KERNELS_CPU_ATTENTION_GRAD_SCRATCH_
namespace quatrain {

// FP32 buffers of one thread; keys rounded up to kTileKeys, rows of padding 0.
struct AttentionGradScratch {
  float *k, *v, *dk, *dv;  // [keys, dim]
  float *q, *dout, *dq;    // [rows, dim]
  float *p, *ds;           // [rows, keys]
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_ATTENTION_GRAD_SCRATCH_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

// Row r: p (normalised) and ds from dot products in p and dp in ds, zeros from num_keys to stride.
HWY_INLINE void GradOfScores(float* p, float* ds, int64_t num_keys, int64_t stride, float scale) {
  const F16 sum = Set16(SoftmaxInPlace(p, num_keys, scale));
  for (int64_t j = num_keys; j < stride; ++j) p[j] = ds[j] = 0.0f;
  F16 products = Zero16();
  for (int64_t j = 0; j < num_keys; j += kF16Lanes) {
    const F16 probability = Load16(p + j) / sum;
    Store16(probability, p + j);
    products = Fma(probability, Load16(ds + j), products);
  }
  const F16 mean = Set16(SumLanes(products));
  const F16 factor = Set16(scale);
  for (int64_t j = 0; j < num_keys; j += kF16Lanes) {
    Store16(Load16(p + j) * (Load16(ds + j) - mean) * factor, ds + j);
  }
}

// out_r += weights_r values for all rows of a block, tile by tile.
HWY_INLINE void AddOverKeys(const WeightedSum& whole, int64_t num_rows) {
  for (int64_t begin = 0; begin < whole.count; begin += kTileKeys) {
    WeightedSum tile = whole;
    tile.count = std::min(kTileKeys, whole.count - begin);
    tile.values += begin * whole.dim;
    tile.weights += begin * whole.key_stride;
    int64_t r = 0;
    for (; r + 4 <= num_rows; r += 4) {
      AddWeighted<4>(tile);
      tile.weights += 4 * tile.row_stride;
      tile.out += 4 * tile.dim;
    }
    for (; r < num_rows; ++r) {
      AddWeighted<1>(tile);
      tile.weights += tile.row_stride;
      tile.out += tile.dim;
    }
  }
}

// out_j += sum over rows of weights(row, j) values_row, four keys at once; stride of weights and
// keys of out are multiples of 4. Rows that see none of the four keys are skipped.
template <class T>
HWY_INLINE void AddOverRows(const AttentionRows<T>& rows, const float* weights, int64_t stride,
                            const float* values, int64_t dim, float* out) {
  const int64_t num_rows = rows.num_rows();
  for (int64_t j = 0; j < rows.max_keys(); j += 4) {
    const int64_t first = std::max<int64_t>(0, j + 1 - rows.num_keys(0)) * rows.group;
    AddWeighted<4>({.weights = weights + first * stride + j,
                    .row_stride = 1,
                    .key_stride = stride,
                    .values = values + first * dim,
                    .count = num_rows - first,
                    .dim = dim,
                    .out = out + j * dim});
  }
}

template <class T>
HWY_INLINE void BackwardBlock(const AttentionRows<T>& rows, const AttentionGrads& grads,
                              const AttentionGradScratch& scratch) {
  const int64_t head_dim = rows.args.head_dim;
  const int64_t dim = PaddedHeadDim(head_dim);
  const int64_t num_rows = rows.num_rows();
  const int64_t max_keys = rows.max_keys();
  const int64_t stride = RoundUp(max_keys, kTileKeys);
  for (int64_t r = 0; r < num_rows; ++r) {
    LoadRow(rows.args.q + rows.query_offset(r), head_dim, dim, scratch.q + r * dim);
    LoadRow(grads.dout + rows.query_offset(r), head_dim, dim, scratch.dout + r * dim);
    for (int64_t d = 0; d < dim; ++d) scratch.dq[r * dim + d] = 0.0f;
  }
  for (int64_t begin = 0; begin < max_keys; begin += kTileKeys) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t seen = std::min(begin + kTileKeys, rows.num_keys(r)) - begin;
      const int64_t at = r * stride + begin;
      ScoreRow(scratch.q + r * dim, scratch.k + begin * dim, seen, dim, scratch.p + at);
      ScoreRow(scratch.dout + r * dim, scratch.v + begin * dim, seen, dim, scratch.ds + at);
    }
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    GradOfScores(scratch.p + r * stride, scratch.ds + r * stride, rows.num_keys(r), stride,
                 rows.args.scale);
  }
  AddOverKeys({.weights = scratch.ds,
               .row_stride = stride,
               .key_stride = 1,
               .values = scratch.k,
               .count = max_keys,
               .dim = dim,
               .out = scratch.dq},
              num_rows);
  AddOverRows(rows, scratch.ds, stride, scratch.q, dim, scratch.dk);
  AddOverRows(rows, scratch.p, stride, scratch.dout, dim, scratch.dv);
  for (int64_t r = 0; r < num_rows; ++r) {
    std::memcpy(grads.dq + rows.query_offset(r), scratch.dq + r * dim,
                static_cast<size_t>(head_dim) * sizeof(float));
  }
}

// `whole` has all queries of the sequence.
template <class T>
HWY_INLINE void Backward(const AttentionRows<T>& whole, const AttentionGrads& grads,
                         const AttentionGradScratch& scratch) {
  const AttentionArgs<T>& args = whole.args;
  const int64_t dim = PaddedHeadDim(args.head_dim);
  const int64_t num_keys = whole.sequence.num_keys;
  const int64_t padded = RoundUp(num_keys, kTileKeys);
  for (int64_t j = 0; j < num_keys; ++j) {
    LoadRow(args.k + whole.key_offset(j), args.head_dim, dim, scratch.k + j * dim);
    LoadRow(args.v + whole.key_offset(j), args.head_dim, dim, scratch.v + j * dim);
  }
  std::memset(scratch.dk, 0, static_cast<size_t>(padded * dim) * sizeof(float));
  std::memset(scratch.dv, 0, static_cast<size_t>(padded * dim) * sizeof(float));
  const int64_t block_queries = std::max<int64_t>(1, kItemRows / whole.group);
  for (int64_t begin = 0; begin < num_keys; begin += block_queries) {
    AttentionItem block = whole.item;
    block.query_begin = begin;
    block.query_end = std::min(num_keys, begin + block_queries);
    BackwardBlock(AttentionRows<T>(args, block), grads, scratch);
  }
  for (int64_t j = 0; j < num_keys; ++j) {
    const size_t bytes = static_cast<size_t>(args.head_dim) * sizeof(float);
    std::memcpy(grads.dk + whole.key_offset(j), scratch.dk + j * dim, bytes);
    std::memcpy(grads.dv + whole.key_offset(j), scratch.dv + j * dim, bytes);
  }
}

void BackwardF32(const AttentionRows<float>& whole, const AttentionGrads& grads,
                 const AttentionGradScratch& scratch) {
  Backward(whole, grads, scratch);
}
void BackwardBf16(const AttentionRows<BFloat16>& whole, const AttentionGrads& grads,
                  const AttentionGradScratch& scratch) {
  Backward(whole, grads, scratch);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(BackwardF32);
HWY_EXPORT(BackwardBf16);

void Backward(const AttentionRows<float>& whole, const AttentionGrads& grads,
              const AttentionGradScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(BackwardF32)(whole, grads, scratch);
}
void Backward(const AttentionRows<BFloat16>& whole, const AttentionGrads& grads,
              const AttentionGradScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(BackwardBf16)(whole, grads, scratch);
}

// One allocation per thread, made by the thread that uses it.
class GradScratchBuffer {
 public:
  AttentionGradScratch Get(int64_t max_rows, int64_t max_keys, int64_t dim) {
    const int64_t keys = RoundUp(max_keys, kTileKeys);
    memory_.resize(static_cast<size_t>(4 * keys * dim + 3 * max_rows * dim + 2 * max_rows * keys));
    next_ = memory_.data();
    AttentionGradScratch scratch{};
    for (float** each : {&scratch.k, &scratch.v, &scratch.dk, &scratch.dv})
      *each = Take(keys * dim);
    for (float** each : {&scratch.q, &scratch.dout, &scratch.dq}) *each = Take(max_rows * dim);
    for (float** each : {&scratch.p, &scratch.ds}) *each = Take(max_rows * keys);
    return scratch;
  }

 private:
  float* Take(int64_t size) {
    float* begin = next_;
    next_ += size;
    return begin;
  }

  std::vector<float> memory_;
  float* next_ = nullptr;
};

template <class T>
int64_t CheckVarlen(const AttentionArgs<T>& args) {
  int64_t max_keys = 0;
  for (const AttentionSequence& sequence : args.sequences) {
    QT_CHECK(sequence.block_table == nullptr && sequence.num_keys == sequence.num_queries &&
                 sequence.q_begin == sequence.kv_begin,
             "the gradient needs whole sequences");
    max_keys = std::max(max_keys, sequence.num_keys);
  }
  return max_keys;
}

}  // namespace

template <class T>
void AttentionBackward(ThreadPool& pool, const AttentionArgs<T>& args,
                       const AttentionGrads& grads) {
  CheckAttentionArgs(args);
  const int64_t max_keys = CheckVarlen(args);
  const int64_t group = args.num_heads / args.num_kv_heads;
  const int64_t max_rows = std::max(group, std::min(kItemRows, group * max_keys));
  std::vector<GradScratchBuffer> buffers(static_cast<size_t>(pool.num_threads()));
  const int64_t num_tasks = std::ssize(args.sequences) * args.num_kv_heads;
  pool.ParallelFor(num_tasks, [&](int64_t task, int worker) {
    const int64_t index = task / args.num_kv_heads;
    const AttentionSequence& sequence = args.sequences[static_cast<size_t>(index)];
    const AttentionItem item{.sequence = index,
                             .kv_head = task % args.num_kv_heads,
                             .query_begin = 0,
                             .query_end = sequence.num_queries};
    const AttentionGradScratch scratch =
        buffers[static_cast<size_t>(worker)].Get(max_rows, max_keys, PaddedHeadDim(args.head_dim));
    Backward(AttentionRows<T>(args, item), grads, scratch);
  });
}

template void AttentionBackward<float>(ThreadPool&, const AttentionArgs<float>&,
                                       const AttentionGrads&);
template void AttentionBackward<BFloat16>(ThreadPool&, const AttentionArgs<BFloat16>&,
                                          const AttentionGrads&);

}  // namespace quatrain
#endif  // HWY_ONCE
