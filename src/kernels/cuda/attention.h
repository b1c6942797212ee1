// Causal grouped-query attention on the device, in the canonical order (docs/numerics.md, "GPU
// order", rules 5 and 6): the contract of kernels/attention.h for BF16. AttentionPrefill (wgmma,
// many queries) and AttentionDecode (mma.sync, few queries, memory bound) give the same bits for
// the same query and keys, varlen or paged, in any chunks: keys are cut at multiples of 64 and 512
// from the start of their sequence, never by the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/launch.h"

namespace quatrain::cuda {

// Device memory, 16-byte aligned; strides are multiples of 8 elements.
struct DeviceAttentionArgs {
  const BFloat16* q = nullptr;  // head h of token t at t * q_stride + h * H
  const BFloat16* k = nullptr;  // kv head m of row r at r * kv_stride + m * H; v alike
  const BFloat16* v = nullptr;
  BFloat16* out = nullptr;  // [T, N, H]
  float* lse = nullptr;     // [T, N] or null: natural log of the sum of exp(scale * score)
  int64_t q_stride = 0, kv_stride = 0;
  int num_heads = 0, num_kv_heads = 0, head_dim = 0;  // 64, 128 or 256
  int block_size = 0;                                 // paged: a power of two
  float scale = 0.0f;
  const AttentionSequence* sequences = nullptr;  // [S], in device memory
  int num_sequences = 0;
  int max_queries = 0, max_keys = 0;  // upper bounds over the sequences
};

// Error(kShape) for shapes outside the contract.
void AttentionPrefill(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order);

// Scratch of AttentionDecode in bytes; its first AttentionDecodeTickets(args) * 4 bytes must be
// zero before the first launch and are zero again after each. A scratch made for the most sequences
// and keys serves every smaller call of the same heads in any order, one after the other, up to
// 16384 tiles of 16 rows.
int64_t AttentionDecodeTickets(const DeviceAttentionArgs& args);
int64_t AttentionDecodeScratchBytes(const DeviceAttentionArgs& args);
// Every CTA takes one segment of 512 keys and 16 (query, head) rows of one kv head, or a cluster of
// two or four does where there are few; one CTA merges the segments of a row tile, or of its part
// of the columns, in order. Where there are fewer still, one cluster has all segments of a row
// tile. With kOverlap the kernel before must not write `sequences` or block tables (keys, values
// and queries it may), nor may one before that which may still run (launch.h).
void AttentionDecode(const DeviceAttentionArgs& args, void* scratch, cudaStream_t stream,
                     LaunchOrder order);

}  // namespace quatrain::cuda
