// Attention over a latent (MLA in its absorbed form) on the device, in the canonical order
// (docs/numerics.md, "GPU order", rules 5 and 6): all heads share one row a key, whose first 512
// elements are its value as well. One kernel for training, prefill and decode, varlen or paged: the
// same bits for the same query and keys in any chunks, because keys are cut at multiples of 64 and
// 512 from the start of their sequence, never by the launch. Why the absorbed form everywhere:
// docs/decisions/0006-mla-absorbed.md.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/launch.h"

namespace quatrain::cuda {

inline constexpr int kLatentDim = 512;     // of a value, and of the rotary-free part of a key
inline constexpr int kLatentKeyDim = 576;  // latent, then the rotated part

// Device memory, 16-byte aligned; strides are multiples of 8 elements.
struct DeviceLatentAttentionArgs {
  // Head h of token t at t * q_stride + h * 576: the query times the head's up-projection of keys,
  // then its rotated part.
  const BFloat16* q = nullptr;
  const BFloat16* kv = nullptr;  // row r at r * kv_stride: the normalised latent, the rotated key
  BFloat16* out = nullptr;       // [T, N, 512], to be multiplied by the up-projection of values
  float* lse = nullptr;          // [T, N] or null: natural log of the sum of exp(scale * score)
  int64_t q_stride = 0, kv_stride = 0;
  int num_heads = 0;
  int block_size = 0;  // paged: a power of two
  float scale = 0.0f;  // 1 / sqrt of the unabsorbed head's dimension, times what YaRN adds
  const AttentionSequence* sequences = nullptr;  // [S], in device memory
  int num_sequences = 0;
  int max_queries = 0, max_keys = 0;  // upper bounds over the sequences
};

// Scratch of AttentionLatent in bytes; its first AttentionLatentSlots() * 4 bytes must be zero
// before the first launch and are zero again after each. Launches that may run at the same time
// need a scratch each.
int64_t AttentionLatentSlots();
int64_t AttentionLatentScratchBytes(const DeviceLatentAttentionArgs& args);

// A CTA takes 64 (query, head) rows and walks their keys, or some segments of 512 keys of them
// where there are few rows; a second kernel then merges the segments in order. With kOverlap the
// kernel before must not write `sequences` or block tables (keys and queries it may). Error(kShape)
// for shapes outside the contract.
void AttentionLatent(const DeviceLatentAttentionArgs& args, void* scratch, cudaStream_t stream,
                     LaunchOrder order);

}  // namespace quatrain::cuda
