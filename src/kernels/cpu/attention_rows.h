// How attention is cut into items, and where an item's rows stand. Letters as in attention.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/chunks.h"

namespace quatrain {

// Keys (or values) that are held as FP32 in L1 while all rows of an item pass over them.
inline constexpr int64_t kTileKeys = 32;
// Rows (query, head) of an item: what shares a tile.
inline constexpr int64_t kItemRows = 32;

// Queries [query_begin, query_end) of one sequence for the G = N / M heads of one kv head. Row r is
// query query_begin + r / G, head kv_head * G + r % G.
struct AttentionItem {
  int64_t sequence = 0;
  int64_t kv_head = 0;
  int64_t query_begin = 0;
  int64_t query_end = 0;
};

// An item within its batch.
template <class T>
struct AttentionRows {
  const AttentionArgs<T>& args;
  const AttentionSequence& sequence;
  AttentionItem item;
  int64_t group;  // G

  AttentionRows(const AttentionArgs<T>& args, const AttentionItem& item)
      : args(args),
        sequence(args.sequences[static_cast<size_t>(item.sequence)]),
        item(item),
        group(args.num_heads / args.num_kv_heads) {}

  int64_t num_rows() const { return (item.query_end - item.query_begin) * group; }
  // Keys that row r sees.
  int64_t num_keys(int64_t r) const {
    return sequence.num_keys - sequence.num_queries + item.query_begin + r / group + 1;
  }
  int64_t max_keys() const { return num_keys(num_rows() - 1); }
  // Offset of row r in q, out, dout and dq.
  int64_t query_offset(int64_t r) const {
    const int64_t token = sequence.q_begin + item.query_begin + r / group;
    return (token * args.num_heads + item.kv_head * group + r % group) * args.head_dim;
  }
  // Offset of key j in k, v, dk and dv.
  int64_t key_offset(int64_t j) const {
    const int64_t row = sequence.block_table == nullptr
                            ? sequence.kv_begin + j
                            : int64_t{sequence.block_table[j / args.block_size]} * args.block_size +
                                  j % args.block_size;
    return (row * args.num_kv_heads + item.kv_head) * args.head_dim;
  }
  // Keys from j on that lie key_stride apart, as far as `end`.
  int64_t run_end(int64_t j, int64_t end) const {
    if (sequence.block_table == nullptr) return end;
    return std::min(end, (j / args.block_size + 1) * args.block_size);
  }
  int64_t key_stride() const { return args.num_kv_heads * args.head_dim; }
};

// Row length of the FP32 copies: padded with zeros to whole steps of 16.
inline int64_t PaddedHeadDim(int64_t head_dim) { return RoundUp(head_dim, 16); }

// Throws kInternal on arguments that do not fit each other.
template <class T>
void CheckAttentionArgs(const AttentionArgs<T>& args);

}  // namespace quatrain
