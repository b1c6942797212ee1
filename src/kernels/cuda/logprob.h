// Log-probabilities and entropy of FP32 logits on the device, in the canonical order
// (docs/numerics.md, "GPU order", rule 8), and the gradient. The vocabulary may come in slices: a
// caller multiplies a slice of the LM head, hands the logits to LogprobBlocks and reuses the
// memory, so that [T, V] never exists. Bits do not depend on the slices. Letters: R rows, V
// vocabulary, B = ceil(V / 128) blocks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/cuda/launch.h"

namespace quatrain::cuda {

inline int64_t NumVocabBlocks(int64_t vocab_size) { return (vocab_size + 127) / 128; }

// A slice of logits: tokens [begin, begin + columns) of the vocabulary, begin a multiple of 128.
struct LogitSlice {
  const float* logits = nullptr;  // [R, columns], rows `stride` elements apart
  int64_t rows = 0, stride = 0;
  int64_t begin = 0, columns = 0;
  int64_t vocab_size = 0;
};

// What is kept of a row; block arrays are [R, B].
struct LogprobState {
  float* block_max = nullptr;
  float* block_sum = nullptr;
  float* block_moment = nullptr;  // sum of exp(x - m_b) (x - m_b); null: no entropy
  float* target_x = nullptr;      // [R]
  float* row_max = nullptr;       // [R], M
  float* row_sum = nullptr;       // [R], L
};

struct LogprobArgs {
  const int32_t* targets = nullptr;        // [R]
  const float* inv_temperature = nullptr;  // [R], or one with a stride of 0
  int64_t inv_temperature_stride = 0;
  LogprobState state;
};

// Blocks of one slice, and x of the targets that lie in it. Slices but the last are multiples of
// 128 wide.
void LogprobBlocks(const LogitSlice& slice, const LogprobArgs& args, cudaStream_t stream,
                   LaunchOrder order);

// After all slices: logprobs [R], entropy [R] (nats) if not null; fills row_max and row_sum. B <=
// 4096.
void LogprobMerge(const LogprobArgs& args, int64_t rows, int64_t vocab_size, float* logprobs,
                  float* entropy, cudaStream_t stream);

// dlogits [R, columns] (BF16, rows `columns` apart) of a slice computed again, by M and L of the
// forward; columns and stride are multiples of 4. The gradient of kernels/logprob.h.
struct LogprobGradArgs {
  const float* dlogprobs = nullptr;  // [R]
  const float* dentropy = nullptr;   // [R] or null
  const float* entropy = nullptr;    // [R], with dentropy
  BFloat16* dlogits = nullptr;
};
void LogprobBackward(const LogitSlice& slice, const LogprobArgs& args, const LogprobGradArgs& grad,
                     cudaStream_t stream);

}  // namespace quatrain::cuda
