// Paged KV cache: blocks of tokens, a free list, and the attention that reads through block tables.
//
// A sequence of n cached tokens owns ceil(n / block_size) blocks, in order, in its block_table;
// token j lives in cache row block_table[j / block_size] * block_size + j % block_size of every
// layer. Invariant: each block is on the free list or in exactly one block_table. Not thread-safe:
// the engine's thread owns it. Source: vLLM, arXiv:2309.06180.
#pragma once

#include <vector>

#include "models/forward_batch.h"
#include "models/model_config.h"

namespace quatrain {

class KvCache {
 public:
  // num_blocks blocks of block_size tokens for every layer, in `type` (the activation type).
  KvCache(const ModelConfig& config, at::ScalarType type, int64_t num_blocks, int64_t block_size);

  int64_t block_size() const { return block_size_; }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t size_bytes() const;

  // Grows block_table to hold num_tokens. False, and nothing taken, if too few blocks are free.
  bool TryReserve(int64_t num_tokens, std::vector<int32_t>* block_table);
  void Release(std::vector<int32_t>* block_table);
  int64_t RowOf(const std::vector<int32_t>& block_table, int64_t position) const {
    return block_table[static_cast<size_t>(position / block_size_)] * block_size_ +
           position % block_size_;
  }

  const at::Tensor& keys(int64_t layer) const { return keys_[static_cast<size_t>(layer)]; }
  const at::Tensor& values(int64_t layer) const { return values_[static_cast<size_t>(layer)]; }

  // Bytes one cached token takes in all layers.
  static int64_t BytesPerToken(const ModelConfig& config, at::ScalarType type);

 private:
  int64_t num_blocks_, block_size_;
  std::vector<int32_t> free_;              // used from the back
  std::vector<at::Tensor> keys_, values_;  // per layer [num_blocks * block_size, M, H]
};

// Writes the batch's keys and values to their cache rows, then attends over the cache.
class PagedAttention : public AttentionCore {
 public:
  // `sequences` point into block tables that outlive the forward pass; cache_rows has one row a
  // batch token.
  PagedAttention(const KvCache& cache, std::vector<AttentionSequence> sequences,
                 std::vector<int64_t> cache_rows);
  at::Tensor Attend(const OpContext& ctx, int64_t layer, const at::Tensor& q_TNH,
                    const at::Tensor& k_TMH, const at::Tensor& v_TMH) override;

 private:
  const KvCache& cache_;
  std::vector<AttentionSequence> sequences_;
  std::vector<int64_t> cache_rows_;
};

}  // namespace quatrain
