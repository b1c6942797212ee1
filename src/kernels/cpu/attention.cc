#include "kernels/attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/simd_targets.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/simd-inl.h"
// clang-format on

// Plan: an item is up to 32 rows (query, head) that share a kv head. Tiles of 32 keys become FP32
// in L1 once per item, all rows take their dot products, then the softmax, then tiles of values.
// Decode is the same with one query per item. Short items share a chunk. (Backward:
// attention_backward.cc.)

#ifndef QUATRAIN_KERNELS_CPU_ATTENTION_SCRATCH_
#define QUATRAIN_KERNELS_CPU_ATTENTION_SCRATCH_
namespace quatrain {

// FP32 buffers of one thread.
struct AttentionScratch {
  float* q;       // [rows, dim]
  float* out;     // [rows, dim]
  float* sums;    // [rows]
  float* tile;    // [kTileKeys, dim]
  float* scores;  // [rows, keys rounded up to kTileKeys]
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_ATTENTION_SCRATCH_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

// Rows [begin, end) of k or v as FP32.
template <class T>
HWY_INLINE void LoadTile(const AttentionRows<T>& rows, const T* from, int64_t begin, int64_t end,
                         int64_t dim, float* tile) {
  for (int64_t j = begin; j < end;) {
    const T* row = from + rows.key_offset(j);
    const int64_t run_end = rows.run_end(j, end);
    for (; j < run_end; ++j, row += rows.key_stride(), tile += dim) {
      LoadRow(row, rows.args.head_dim, dim, tile);
    }
  }
}

// out_r += p_r V over one tile for kRows rows from r on: together as far as all of them see, then
// each on its own: a key that a row does not see never touches it, not even with weight 0.
template <int kRows, class T>
HWY_INLINE void AddTileRows(const AttentionRows<T>& rows, int64_t r, int64_t tile_begin,
                            int64_t tile_end, const WeightedSum& tile) {
  WeightedSum sum = tile;
  sum.weights += r * tile.row_stride;
  sum.out += r * tile.dim;
  const int64_t shared = std::max<int64_t>(0, std::min(tile_end, rows.num_keys(r)) - tile_begin);
  sum.count = shared;  // limits rise with r
  AddWeighted<kRows>(sum);
  for (int64_t each = 1; each < kRows; ++each) {
    const int64_t seen = std::min(tile_end, rows.num_keys(r + each)) - tile_begin;
    if (seen <= shared) continue;
    WeightedSum rest = sum;
    rest.weights += each * tile.row_stride + shared;
    rest.out += each * tile.dim;
    rest.values += shared * tile.dim;
    rest.count = seen - shared;
    AddWeighted<1>(rest);
  }
}

template <class T>
HWY_INLINE void AddTile(const AttentionRows<T>& rows, const AttentionScratch& scratch,
                        int64_t tile_begin, int64_t tile_end, int64_t stride, int64_t dim) {
  const WeightedSum tile{.weights = scratch.scores + tile_begin,
                         .row_stride = stride,
                         .key_stride = 1,
                         .values = scratch.tile,
                         .count = 0,
                         .dim = dim,
                         .out = scratch.out};
  const int64_t num_rows = rows.num_rows();
  int64_t r = 0;
  for (; r + 4 <= num_rows; r += 4) AddTileRows<4>(rows, r, tile_begin, tile_end, tile);
  for (; r + 2 <= num_rows; r += 2) AddTileRows<2>(rows, r, tile_begin, tile_end, tile);
  if (r < num_rows) AddTileRows<1>(rows, r, tile_begin, tile_end, tile);
}

template <class T>
HWY_INLINE void Forward(const AttentionRows<T>& rows, const AttentionScratch& scratch) {
  const AttentionArgs<T>& args = rows.args;
  const int64_t dim = PaddedHeadDim(args.head_dim);
  const int64_t num_rows = rows.num_rows();
  const int64_t max_keys = rows.max_keys();
  const int64_t stride = RoundUp(max_keys, kTileKeys);
  for (int64_t r = 0; r < num_rows; ++r) {
    LoadRow(args.q + rows.query_offset(r), args.head_dim, dim, scratch.q + r * dim);
    for (int64_t d = 0; d < dim; ++d) scratch.out[r * dim + d] = 0.0f;
  }
  for (int64_t begin = 0; begin < max_keys; begin += kTileKeys) {
    const int64_t end = std::min(max_keys, begin + kTileKeys);
    LoadTile(rows, args.k, begin, end, dim, scratch.tile);
    for (int64_t r = 0; r < num_rows; ++r) {
      ScoreRow(scratch.q + r * dim, scratch.tile, std::min(end, rows.num_keys(r)) - begin, dim,
               scratch.scores + r * stride + begin);
    }
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    scratch.sums[r] = SoftmaxInPlace(scratch.scores + r * stride, rows.num_keys(r), args.scale);
  }
  for (int64_t begin = 0; begin < max_keys; begin += kTileKeys) {
    const int64_t end = std::min(max_keys, begin + kTileKeys);
    LoadTile(rows, args.v, begin, end, dim, scratch.tile);
    AddTile(rows, scratch, begin, end, stride, dim);
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    const F16 sum = Set16(scratch.sums[r]);
    T* out = args.out + rows.query_offset(r);
    for (int64_t d = 0; d < dim; d += kF16Lanes) {
      StoreAt16(Load16(scratch.out + r * dim + d) / sum, out, d, args.head_dim);
    }
  }
}

void ForwardF32(const AttentionRows<float>& rows, const AttentionScratch& scratch) {
  Forward(rows, scratch);
}
void ForwardBf16(const AttentionRows<BFloat16>& rows, const AttentionScratch& scratch) {
  Forward(rows, scratch);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(ForwardF32);
HWY_EXPORT(ForwardBf16);

void Forward(const AttentionRows<float>& rows, const AttentionScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(ForwardF32)(rows, scratch);
}
void Forward(const AttentionRows<BFloat16>& rows, const AttentionScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(ForwardBf16)(rows, scratch);
}

// Multiply-adds that are worth a chunk of their own.
constexpr int64_t kChunkMacs = int64_t{1} << 17;

struct AttentionPlan {
  std::vector<AttentionItem> items;
  std::vector<int64_t> chunk_begin;  // first item of each chunk, and the number of items
  int64_t max_rows = 0;
  int64_t max_keys = 0;
};

template <class T>
AttentionPlan PlanItems(const AttentionArgs<T>& args) {
  AttentionPlan plan;
  const int64_t group = args.num_heads / args.num_kv_heads;
  const int64_t item_queries = std::max<int64_t>(1, kItemRows / group);
  int64_t macs = kChunkMacs;
  for (int64_t s = 0; s < std::ssize(args.sequences); ++s) {
    const int64_t num_queries = args.sequences[static_cast<size_t>(s)].num_queries;
    for (int64_t begin = 0; begin < num_queries; begin += item_queries) {
      for (int64_t kv_head = 0; kv_head < args.num_kv_heads; ++kv_head) {
        const AttentionItem item{.sequence = s,
                                 .kv_head = kv_head,
                                 .query_begin = begin,
                                 .query_end = std::min(num_queries, begin + item_queries)};
        const AttentionRows<T> rows(args, item);
        if (macs >= kChunkMacs) {
          plan.chunk_begin.push_back(std::ssize(plan.items));
          macs = 0;
        }
        macs += rows.num_rows() * rows.max_keys() * args.head_dim;
        plan.items.push_back(item);
        plan.max_rows = std::max(plan.max_rows, rows.num_rows());
        plan.max_keys = std::max(plan.max_keys, rows.max_keys());
      }
    }
  }
  plan.chunk_begin.push_back(std::ssize(plan.items));
  return plan;
}

// One allocation per thread, made by the thread that uses it.
class ScratchBuffer {
 public:
  AttentionScratch Get(const AttentionPlan& plan, int64_t dim) {
    const int64_t q = plan.max_rows * dim;
    const int64_t tile = kTileKeys * dim;
    const int64_t scores = plan.max_rows * RoundUp(plan.max_keys, kTileKeys);
    memory_.resize(static_cast<size_t>(2 * q + plan.max_rows + tile + scores));
    float* next = memory_.data();
    return {.q = next,
            .out = next + q,
            .sums = next + 2 * q,
            .tile = next + 2 * q + plan.max_rows,
            .scores = next + 2 * q + plan.max_rows + tile};
  }

 private:
  std::vector<float> memory_;
};

}  // namespace

template <class T>
void CheckAttentionArgs(const AttentionArgs<T>& args) {
  QT_CHECK(args.num_kv_heads > 0 && args.num_heads % args.num_kv_heads == 0,
           "{} heads, {} kv heads", args.num_heads, args.num_kv_heads);
  QT_CHECK(args.head_dim > 0 && args.head_dim % 8 == 0, "head_dim {}", args.head_dim);
  QT_CHECK(args.scale > 0.0f, "scale {}", args.scale);
  for (const AttentionSequence& sequence : args.sequences) {
    QT_CHECK(sequence.num_queries >= 0 && sequence.num_keys >= sequence.num_queries,
             "{} queries, {} keys", sequence.num_queries, sequence.num_keys);
    QT_CHECK(sequence.block_table == nullptr || args.block_size > 0, "block size {}",
             args.block_size);
  }
}

template <class T>
void AttentionForward(ThreadPool& pool, const AttentionArgs<T>& args) {
  CheckAttentionArgs(args);
  const AttentionPlan plan = PlanItems(args);
  std::vector<ScratchBuffer> buffers(static_cast<size_t>(pool.num_threads()));
  pool.ParallelFor(std::ssize(plan.chunk_begin) - 1, [&](int64_t chunk, int worker) {
    const AttentionScratch scratch =
        buffers[static_cast<size_t>(worker)].Get(plan, PaddedHeadDim(args.head_dim));
    const auto index = static_cast<size_t>(chunk);
    for (int64_t i = plan.chunk_begin[index]; i < plan.chunk_begin[index + 1]; ++i) {
      Forward(AttentionRows<T>(args, plan.items[static_cast<size_t>(i)]), scratch);
    }
  });
}

template void CheckAttentionArgs<float>(const AttentionArgs<float>&);
template void CheckAttentionArgs<BFloat16>(const AttentionArgs<BFloat16>&);
template void AttentionForward<float>(ThreadPool&, const AttentionArgs<float>&);
template void AttentionForward<BFloat16>(ThreadPool&, const AttentionArgs<BFloat16>&);

}  // namespace quatrain
#endif  // HWY_ONCE
