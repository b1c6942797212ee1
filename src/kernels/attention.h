// Causal grouped-query attention, one arithmetic for training (varlen) and the engine (paged).
//
// Every query row stands alone: s_j = dot(q, k_j) * scale for its keys j = 0..position, m = max_j
// s_j, p_j = exp(s_j - m), out = sum_j p_j v_j / sum_j p_j. Orders are fixed by (head_dim, number
// of keys) only: the dot in 16 partial sums (lane d % 16) and a fixed tree, the row sum in 16
// partial sums (lane j % 16) and the same tree, p v as one fma chain over j ascending for each
// output element. So prefill, chunked prefill, decode and the training forward give the same bits
// for any batch and thread count. Letters: T packed query tokens, N query heads, M kv heads, H
// head_dim.
#pragma once

#include <cstdint>
#include <span>

#include "base/threads.h"
#include "kernels/bfloat16.h"

namespace quatrain {

// One sequence of the batch. Its query i has position num_keys - num_queries + i.
struct AttentionSequence {
  int64_t q_begin = 0;      // first row of q and out
  int64_t num_queries = 0;  // >= 0
  int64_t num_keys = 0;     // keys visible to the last query
  // Paged: key j is row block_table[j / block_size] * block_size + j % block_size.
  const int32_t* block_table = nullptr;
  int64_t kv_begin = 0;  // varlen (block_table null): key j is row kv_begin + j
};

template <class T>
struct AttentionArgs {
  const T* q = nullptr;  // [T, N, H]
  const T* k = nullptr;  // rows [M, H]
  const T* v = nullptr;  // rows [M, H]
  T* out = nullptr;      // [T, N, H]
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t block_size = 0;  // tokens per block, paged only
  float scale = 0.0f;      // 1 / sqrt(head_dim)
  std::span<const AttentionSequence> sequences;
};
template <class T>
void AttentionForward(ThreadPool& pool, const AttentionArgs<T>& args);

// Gradients of the varlen form (num_keys == num_queries, q_begin == kv_begin). Probabilities are
// recomputed. dq [T, N, H], dk and dv [T, M, H] are overwritten.
struct AttentionGrads {
  const float* dout = nullptr;
  float* dq = nullptr;
  float* dk = nullptr;
  float* dv = nullptr;
};
template <class T>
void AttentionBackward(ThreadPool& pool, const AttentionArgs<T>& args, const AttentionGrads& grads);

}  // namespace quatrain
