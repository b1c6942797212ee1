#include "engine/kv_cache.h"

#include <cstring>

namespace quatrain {

KvCache::KvCache(const ModelConfig& config, at::ScalarType type, int64_t num_blocks,
                 int64_t block_size)
    : num_blocks_(num_blocks), block_size_(block_size) {
  QT_CHECK(num_blocks > 0 && block_size > 0, "empty KV cache");
  const std::vector<int64_t> shape = {num_blocks * block_size, config.num_key_value_heads,
                                      config.head_dim};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    keys_.push_back(EmptyTensor(shape, type));
    values_.push_back(EmptyTensor(shape, type));
  }
  for (int64_t block = num_blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<int32_t>(block));
  }
}

int64_t KvCache::size_bytes() const {
  return static_cast<int64_t>(keys_.size() * 2 * keys_[0].nbytes());
}

int64_t KvCache::BytesPerToken(const ModelConfig& config, at::ScalarType type) {
  return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim *
         static_cast<int64_t>(c10::elementSize(type));
}

bool KvCache::TryReserve(int64_t num_tokens, std::vector<int32_t>* block_table) {
  const int64_t wanted = (num_tokens + block_size_ - 1) / block_size_;
  const int64_t missing = wanted - static_cast<int64_t>(block_table->size());
  if (missing > num_free_blocks()) return false;
  for (int64_t i = 0; i < missing; ++i) {
    block_table->push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void KvCache::Release(std::vector<int32_t>* block_table) {
  while (!block_table->empty()) {
    free_.push_back(block_table->back());
    block_table->pop_back();
  }
}

PagedAttention::PagedAttention(const KvCache& cache, std::vector<AttentionSequence> sequences,
                               std::vector<int64_t> cache_rows)
    : cache_(cache), sequences_(std::move(sequences)), cache_rows_(std::move(cache_rows)) {}

at::Tensor PagedAttention::Attend(const OpContext& ctx, int64_t layer, const at::Tensor& q_TNH,
                                  const at::Tensor& k_TMH, const at::Tensor& v_TMH) {
  const at::Tensor& keys = cache_.keys(layer);
  const at::Tensor& values = cache_.values(layer);
  const size_t row_bytes = static_cast<size_t>(keys.stride(0)) * keys.element_size();
  const auto scatter = [&](const at::Tensor& from, const at::Tensor& to) {
    const auto* source = static_cast<const std::byte*>(from.const_data_ptr());
    auto* target = static_cast<std::byte*>(to.mutable_data_ptr());
    for (size_t t = 0; t < cache_rows_.size(); ++t) {
      std::memcpy(target + static_cast<size_t>(cache_rows_[t]) * row_bytes, source + t * row_bytes,
                  row_bytes);
    }
  };
  scatter(k_TMH.contiguous(), keys);
  scatter(v_TMH.contiguous(), values);
  return Attention(ctx, {q_TNH, keys, values, sequences_, cache_.block_size()});
}

}  // namespace quatrain
