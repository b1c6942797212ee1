#include "kernels/cuda/attention_latent_reference.h"
#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/chain.cuh"

namespace quatrain::cuda {
namespace {

constexpr int kRows = 16;
constexpr int kColumns = 64;

// Two neighbours of a row, or zeros without one.
__device__ uint32_t LoadPair(const BFloat16* row, int k) {
  return row != nullptr ? *reinterpret_cast<const uint32_t*>(row + k) : 0u;
}

__device__ const BFloat16* KeyRow(const DeviceLatentAttentionArgs& a, const AttentionSequence& seq,
                                  int key) {
  if (key >= seq.num_keys) return nullptr;
  int64_t row = seq.kv_begin + key;
  if (seq.block_table != nullptr) {
    row = int64_t{seq.block_table[key / a.block_size]} * a.block_size + key % a.block_size;
  }
  return a.kv + row * a.kv_stride;
}

// What one lane keeps of one row.
struct Row {
  float max = -INFINITY;
  float partial[8] = {};
  float total_max = -INFINITY;
  float total_sum = 0.0f;
};

// Scores of a row and block to probabilities; alpha.
__device__ float Softmax(float* scores, int num_visible, float c, Row& row) {
  float largest = row.max;
  for (int j = 0; j < num_visible; ++j) largest = fmaxf(largest, scores[j]);
  const SoftmaxShift shift = ShiftOf(row.max, largest, c);
  row.max = largest;
  for (float& t : row.partial) t = MulRn(t, shift.alpha);
  for (int j = 0; j < kAttentionBlock; ++j) {
    scores[j] = j < num_visible ? ProbabilityOf(scores[j], c, shift.shift) : 0.0f;
    row.partial[j % 8] = AddRn(row.partial[j % 8], scores[j]);
  }
  return shift.alpha;
}

// The end of a segment; the factors of the outputs.
__device__ SegmentFactors EndSegment(float c, Row& row) {
  const float max = row.max;
  const float sum = SumOfEight(row.partial);
  row.max = -INFINITY;
  for (float& t : row.partial) t = 0.0f;
  if (max == -INFINITY) return {1.0f, 0.0f};
  if (row.total_max == -INFINITY) {
    row.total_max = max;
    row.total_sum = sum;
    return {0.0f, 1.0f};
  }
  return MergeSegment(max, sum, c, &row.total_max, &row.total_sum);
}

__global__ void ReferenceKernel(DeviceLatentAttentionArgs a) {
  __shared__ float scores[kRows][kAttentionBlock + 1];
  __shared__ float alpha[kRows];
  __shared__ SegmentFactors factors[kRows];
  __shared__ float sums[kRows];
  const AttentionSequence seq = a.sequences[blockIdx.y];
  const int lane = threadIdx.x;
  const int group = lane / 4;
  const int pair = lane % 4 * 2;
  const int first_column = blockIdx.z * kColumns;
  const int num_rows = static_cast<int>(seq.num_queries) * a.num_heads;
  const int first_row = blockIdx.x * kRows;
  if (first_row >= num_rows) return;
  const float c = MulRn(a.scale, kLog2E);
  const BFloat16* q[2] = {};
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + group + 8 * r;
    if (row < num_rows) {
      q[r] =
          a.q + (seq.q_begin + row / a.num_heads) * a.q_stride + row % a.num_heads * kLatentKeyDim;
    }
  }
  const int my_row = first_row + lane % kRows;  // of lanes 0 to 15 in the softmax
  const int visible = my_row < num_rows ? static_cast<int>(seq.num_keys - seq.num_queries) +
                                              my_row / a.num_heads + 1
                                        : 0;
  Row mine;
  float o[kColumns / 8][4] = {};
  float total[kColumns / 8][4] = {};
  const int num_keys = static_cast<int>(seq.num_keys);
  for (int first = 0; first < num_keys; first += kAttentionBlock) {
    for (int n = 0; n < kAttentionBlock / 8; ++n) {
      const BFloat16* key = KeyRow(a, seq, first + n * 8 + group);
      float s[4] = {};
      for (int step = 0; step < kLatentKeyDim; step += 16) {
        const uint32_t b[2] = {LoadPair(key, step + pair), LoadPair(key, step + pair + 8)};
        ChainStep(s, LoadPair(q[0], step + pair), LoadPair(q[1], step + pair),
                  LoadPair(q[0], step + pair + 8), LoadPair(q[1], step + pair + 8), b);
      }
      for (int i = 0; i < 4; ++i) scores[group + i / 2 * 8][n * 8 + pair + i % 2] = s[i];
    }
    __syncwarp();
    if (lane < kRows) {
      alpha[lane] = Softmax(scores[lane], min(kAttentionBlock, max(0, visible - first)), c, mine);
    }
    __syncwarp();
    for (int n = 0; n < kColumns / 8; ++n) {
      for (int i = 0; i < 4; ++i) o[n][i] = MulRn(o[n][i], alpha[group + i / 2 * 8]);
      for (int step = 0; step < kAttentionBlock; step += 16) {
        uint32_t b[2] = {};
        for (int i = 0; i < 4; ++i) {
          const BFloat16* value = KeyRow(a, seq, first + step + i / 2 * 8 + pair + i % 2);
          const uint32_t bits =
              value != nullptr ? value[first_column + n * 8 + group].bits : uint16_t{0};
          b[i / 2] |= bits << (i % 2 * 16);
        }
        const float* low = scores[group] + step + pair;
        const float* high = scores[group + 8] + step + pair;
        ChainStep(o[n], RoundPair(low[0], low[1]), RoundPair(high[0], high[1]),
                  RoundPair(low[8], low[9]), RoundPair(high[8], high[9]), b);
      }
    }
    if ((first + kAttentionBlock) % kAttentionSegment == 0 || first + kAttentionBlock >= num_keys) {
      if (lane < kRows) {
        factors[lane] = EndSegment(c, mine);
        sums[lane] = mine.total_sum;
      }
      __syncwarp();
      for (int n = 0; n < kColumns / 8; ++n) {
        for (int i = 0; i < 4; ++i) {
          total[n][i] = MergeOutput(total[n][i], o[n][i], factors[group + i / 2 * 8]);
          o[n][i] = 0.0f;
        }
      }
    }
    __syncwarp();
  }
  const int64_t out_row = seq.q_begin * a.num_heads + first_row;
  for (int n = 0; n < kColumns / 8; ++n) {
    for (int r = 0; r < 2; ++r) {
      const int row = group + 8 * r;
      if (first_row + row >= num_rows) continue;
      const float share = ReciprocalRn(sums[row]);
      *reinterpret_cast<uint32_t*>(a.out + (out_row + row) * kLatentDim + first_column + n * 8 +
                                   pair) =
          RoundPair(MulRn(total[n][2 * r], share), MulRn(total[n][2 * r + 1], share));
    }
  }
  if (a.lse != nullptr && blockIdx.z == 0 && lane < kRows && my_row < num_rows) {
    a.lse[out_row + lane] = LogSumExp(mine.total_max, mine.total_sum, a.scale);
  }
}

}  // namespace

void AttentionLatentReference(const DeviceLatentAttentionArgs& args, cudaStream_t stream) {
  if (args.num_sequences == 0 || args.max_queries == 0) return;
  const int64_t rows = int64_t{args.max_queries} * args.num_heads;
  LaunchKernel({.grid = dim3(static_cast<unsigned>((rows + kRows - 1) / kRows), args.num_sequences,
                             kLatentDim / kColumns),
                .block = dim3(32),
                .stream = stream},
               ReferenceKernel, args);
}

}  // namespace quatrain::cuda
