// The device kernels behind C names, for the modules of bench.py (ctypes). Pointers are
// device memory.
//
//   nvcc -std=c++20 -O3 -fmad=false -DFMT_CONSTEVAL= -Isrc -gencode arch=compute_90a,code=sm_90a
//   -shared
//     -Xcompiler -fPIC -o libquatrain_kernels_gpu.so bench/cuda/kernels_for_python.cu
//     src/kernels/cuda/*.cu src/base/error.cc -lfmt
#include "kernels/cuda/adamw.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_latent.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/input_grad.h"
#include "kernels/cuda/int4_quantize.h"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_library.h"
#include "kernels/cuda/logprob.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/weight_grad.h"

namespace {

using quatrain::BFloat16;
using quatrain::cuda::LaunchOrder;
constexpr LaunchOrder kAfter = LaunchOrder::kAfterPrevious;

BFloat16* Weights(void* pointer) { return static_cast<BFloat16*>(pointer); }
float* Floats(void* pointer) { return static_cast<float*>(pointer); }

// Four 16-byte words a thread, all loads first: the copy that the others are compared with.
__global__ void CopyKernel(const uint4* source, uint4* target, int64_t count) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x * 4 + threadIdx.x;
  uint4 words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (first + i * blockDim.x < count) words[i] = __ldcs(source + first + i * blockDim.x);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (first + i * blockDim.x < count) __stcs(target + first + i * blockDim.x, words[i]);
  }
}

// Reads everything; the sum keeps the loads alive.
__global__ void ReadKernel(const uint4* source, int64_t count, uint32_t* sink) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x * 8 + threadIdx.x;
  uint4 words[8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (first + i * blockDim.x < count) words[i] = __ldcs(source + first + i * blockDim.x);
  }
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
  if (sum == 0x12345678u) *sink = sum;
}

}  // namespace

extern "C" {

void QtCopy(const void* source, void* target, int64_t bytes, cudaStream_t stream) {
  const int64_t count = bytes / 16;
  CopyKernel<<<static_cast<unsigned>((count + 1023) / 1024), 256, 0, stream>>>(
      static_cast<const uint4*>(source), static_cast<uint4*>(target), count);
}

void QtRead(const void* source, int64_t bytes, void* sink, cudaStream_t stream) {
  const int64_t count = bytes / 16;
  ReadKernel<<<static_cast<unsigned>((count + 2047) / 2048), 256, 0, stream>>>(
      static_cast<const uint4*>(source), count, static_cast<uint32_t*>(sink));
}

// The outputs that are null are left out.
struct QtQuantize {
  void *weight, *fake, *packed, *scale;
  int64_t rows, columns, group;
};
void QtQuantizeMatrix(const QtQuantize* a, cudaStream_t stream) {
  quatrain::cuda::Quantize({.weight = Weights(a->weight),
                            .out_features = a->rows,
                            .in_features = a->columns,
                            .spec = {.group_size = a->group},
                            .fake = Weights(a->fake),
                            .packed = static_cast<int32_t*>(a->packed),
                            .scale = Weights(a->scale)},
                           stream);
}

struct QtAdamW {
  void *master, *exp_avg, *exp_avg_sq, *grad, *weight, *packed, *scale, *counters;
  int64_t rows, columns, group;
};
void QtAdamWUpdate(const QtAdamW* a, cudaStream_t stream) {
  quatrain::AdamWTask task = {.master = Floats(a->master),
                              .exp_avg = Floats(a->exp_avg),
                              .exp_avg_sq = Floats(a->exp_avg_sq),
                              .grad = Floats(a->grad),
                              .out_features = a->rows,
                              .in_features = a->columns,
                              .weight_bf16 = Weights(a->weight),
                              .packed = static_cast<int32_t*>(a->packed),
                              .scale = Weights(a->scale),
                              .spec = {.group_size = a->group}};
  quatrain::cuda::AdamWUpdate({}, task, static_cast<quatrain::cuda::AdamWCounters*>(a->counters),
                              stream);
}

void QtRmsNorm(void* x, void* branch, void* weight, int64_t rows, int64_t dim, void* y,
               cudaStream_t stream) {
  quatrain::cuda::RmsNorm(
      {Weights(x), Weights(branch), Weights(weight), rows, dim, 1e-6f, Weights(y)}, stream, kAfter);
}

void QtSwiGlu(void* gate_up, int64_t rows, int64_t dim, void* out, cudaStream_t stream) {
  quatrain::cuda::SwiGlu(
      {Weights(gate_up), Weights(gate_up) + dim, rows, dim, 2 * dim, Weights(out)}, stream, kAfter);
}

struct QtHeadNormRope {
  void *qk, *q_weight, *k_weight, *cos, *sin, *positions;
  int64_t tokens, row_stride;
  int q_heads, k_heads, head_dim;
};
void QtHeadNormRopeForward(const QtHeadNormRope* a, cudaStream_t stream) {
  quatrain::cuda::HeadNormRope(
      {Weights(a->qk), a->tokens, a->row_stride, a->q_heads, a->k_heads, a->head_dim,
       Weights(a->q_weight), Weights(a->k_weight), 1e-6f, Floats(a->cos), Floats(a->sin),
       static_cast<const int32_t*>(a->positions)},
      stream, kAfter);
}

struct QtLogprob {
  void *targets, *inverse, *block_max, *block_sum, *block_moment, *target_x, *row_max, *row_sum;
  int64_t rows, vocab;
};
static quatrain::cuda::LogprobArgs LogprobArgsOf(const QtLogprob& a) {
  return {static_cast<const int32_t*>(a.targets),
          Floats(a.inverse),
          0,
          {Floats(a.block_max), Floats(a.block_sum), Floats(a.block_moment), Floats(a.target_x),
           Floats(a.row_max), Floats(a.row_sum)}};
}
void QtLogprobBlocks(const QtLogprob* a, void* logits, int64_t stride, int64_t begin,
                     int64_t columns, cudaStream_t stream) {
  quatrain::cuda::LogprobBlocks({Floats(logits), a->rows, stride, begin, columns, a->vocab},
                                LogprobArgsOf(*a), stream, kAfter);
}
void QtLogprobMerge(const QtLogprob* a, void* logprobs, void* entropy, cudaStream_t stream) {
  quatrain::cuda::LogprobMerge(LogprobArgsOf(*a), a->rows, a->vocab, Floats(logprobs),
                               Floats(entropy), stream);
}
void QtLogprobBackward(const QtLogprob* a, void* logits, int64_t begin, int64_t columns,
                       void* dlogprobs, void* dlogits, cudaStream_t stream) {
  quatrain::cuda::LogprobBackward({Floats(logits), a->rows, columns, begin, columns, a->vocab},
                                  LogprobArgsOf(*a),
                                  {Floats(dlogprobs), nullptr, nullptr, Weights(dlogits)}, stream);
}

struct QtSample {
  void *logits, *sampling, *tokens;
  int64_t rows, stride, vocab;
};
void QtSample(const QtSample* a, cudaStream_t stream) {
  quatrain::cuda::Sample({Floats(a->logits), a->rows, a->stride, a->vocab,
                          static_cast<const quatrain::cuda::DeviceSamplingRow*>(a->sampling),
                          static_cast<int32_t*>(a->tokens)},
                         stream, kAfter);
}

struct QtAttention {
  void *q, *k, *v, *out, *lse, *sequences, *scratch;
  int heads, kv_heads, head_dim, block_size, num_sequences, max_queries, max_keys;
};
static quatrain::cuda::DeviceAttentionArgs ArgsOf(const QtAttention& a) {
  return {.q = Weights(a.q),
          .k = Weights(a.k),
          .v = Weights(a.v),
          .out = Weights(a.out),
          .lse = Floats(a.lse),
          .q_stride = a.heads * a.head_dim,
          .kv_stride = a.kv_heads * a.head_dim,
          .num_heads = a.heads,
          .num_kv_heads = a.kv_heads,
          .head_dim = a.head_dim,
          .block_size = a.block_size,
          .scale = 1.0f / sqrtf(static_cast<float>(a.head_dim)),
          .sequences = static_cast<const quatrain::AttentionSequence*>(a.sequences),
          .num_sequences = a.num_sequences,
          .max_queries = a.max_queries,
          .max_keys = a.max_keys};
}
int64_t QtDecodeScratch(const QtAttention* a) {
  return quatrain::cuda::AttentionDecodeScratchBytes(ArgsOf(*a));
}
void QtAttentionDecode(const QtAttention* a, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::AttentionDecode(ArgsOf(*a), a->scratch, stream,
                                  overlap ? LaunchOrder::kOverlap : kAfter);
}
void QtAttentionPrefill(const QtAttention* a, cudaStream_t stream) {
  quatrain::cuda::AttentionPrefill(ArgsOf(*a), stream, kAfter);
}

struct QtLatent {
  void *q, *kv, *out, *lse, *sequences, *scratch;
  int heads, block_size, num_sequences, max_queries, max_keys;
};
static quatrain::cuda::DeviceLatentAttentionArgs LatentArgsOf(const QtLatent& a) {
  return {.q = Weights(a.q),
          .kv = Weights(a.kv),
          .out = Weights(a.out),
          .lse = Floats(a.lse),
          .q_stride = int64_t{a.heads} * quatrain::cuda::kLatentKeyDim,
          .kv_stride = quatrain::cuda::kLatentKeyDim,
          .num_heads = a.heads,
          .block_size = a.block_size,
          .scale = 1.0f / sqrtf(192.0f),
          .sequences = static_cast<const quatrain::AttentionSequence*>(a.sequences),
          .num_sequences = a.num_sequences,
          .max_queries = a.max_queries,
          .max_keys = a.max_keys};
}
int64_t QtLatentScratch(const QtLatent* a) {
  return quatrain::cuda::AttentionLatentScratchBytes(LatentArgsOf(*a));
}
void QtAttentionLatent(const QtLatent* a, cudaStream_t stream) {
  quatrain::cuda::AttentionLatent(LatentArgsOf(*a), a->scratch, stream, kAfter);
}

// Codes and scales of a matrix to kernel layout, and to BF16.
struct QtWeight {
  void *codes, *scale, *packed, *plain;
  int64_t rows, columns, group;
};
int64_t QtPackedBytes(int64_t rows, int64_t columns, int64_t group) {
  return quatrain::cuda::PackedBytes({rows, columns, group, 4});
}
void QtPackWeights(const QtWeight* a, cudaStream_t stream) {
  quatrain::cuda::PackWeights({a->rows, a->columns, a->group, 4},
                              {static_cast<int32_t*>(a->codes), Weights(a->scale)},
                              static_cast<uint8_t*>(a->packed), nullptr, stream);
}
void QtDequantizeWeights(const QtWeight* a, cudaStream_t stream) {
  quatrain::cuda::DequantizeWeights({a->rows, a->columns, a->group, 4},
                                    {static_cast<int32_t*>(a->codes), Weights(a->scale)},
                                    Weights(a->plain), stream);
}

// The linear over kernel layout.
struct QtLinearOverCodes {
  void *packed, *x, *y;
  int64_t rows, columns, group, tokens;
};
void QtLinear(const QtLinearOverCodes* a, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::LinearDecode({.type = quatrain::WeightType::kInt4,
                                .shape = {a->rows, a->columns, a->group, 4},
                                .weight = a->packed,
                                .x = Weights(a->x),
                                .num_tokens = a->tokens,
                                .y = Weights(a->y)},
                               stream,
                               overlap ? LaunchOrder::kOverlap : LaunchOrder::kAfterPrevious);
}

struct QtMoe {
  void *x, *router, *given, *logits, *counters;
  void *ids, *weights, *expert_begin, *row_token, *slot_row, *tiles, *num_tiles;
  void *gate_up, *down, *h, *y, *out;
  int64_t tokens, experts, slots, hidden, inter, group, groups, per_multiprocessor;
};
static quatrain::cuda::MoeRouting RoutingOf(const QtMoe& a) {
  return {static_cast<int32_t*>(a.ids),          Floats(a.weights),
          static_cast<int32_t*>(a.expert_begin), static_cast<int32_t*>(a.row_token),
          static_cast<int32_t*>(a.slot_row),     static_cast<quatrain::cuda::MoeTile*>(a.tiles),
          static_cast<int32_t*>(a.num_tiles)};
}
using quatrain::cuda::MoeExpertsArgs;
static MoeExpertsArgs ExpertsOf(const QtMoe& a, const quatrain::cuda::PackedShape& shape,
                                const void* weight, void* x, void* y) {
  return {.shape = shape,
          .weight = weight,
          .num_experts = a.experts,
          .num_tokens = a.tokens,
          .num_slots = a.slots,
          .routing = RoutingOf(a),
          .x = Weights(x),
          .y = Weights(y),
          .plan = {static_cast<int>(a.groups), static_cast<int>(a.per_multiprocessor)}};
}
static MoeExpertsArgs GateUpOf(const QtMoe& a, void* h) {
  return ExpertsOf(a, {2 * a.inter, a.hidden, a.group, 4}, a.gate_up, a.x, h);
}
static MoeExpertsArgs DownOf(const QtMoe& a, void* y) {
  return ExpertsOf(a, {a.hidden, a.inter, a.group, 4}, a.down, a.h, y);
}
static LaunchOrder OrderOf(int64_t overlap) {
  return overlap ? LaunchOrder::kOverlap : LaunchOrder::kAfterPrevious;
}
int64_t QtMaxMoeTiles(int64_t rows, int64_t experts) {
  return quatrain::cuda::MaxMoeTiles(rows, experts);
}
int64_t QtRouterCounters(int64_t tokens) { return quatrain::cuda::RouterCounters(tokens); }
void QtMoeRouter(const QtMoe* a, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::MoeRouter({.config = {a->experts, a->slots, true},
                             .x = Weights(a->x),
                             .weight_ED = Weights(a->router),
                             .num_tokens = a->tokens,
                             .hidden = a->hidden,
                             .replayed_ids = static_cast<int32_t*>(a->given),
                             .logits_TE = Floats(a->logits),
                             .routing = RoutingOf(*a),
                             .counters = static_cast<int32_t*>(a->counters)},
                            stream, OrderOf(overlap));
}
void QtMoeGateUp(const QtMoe* a, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::MoeGateUp(GateUpOf(*a, a->h), stream, OrderOf(overlap));
}
void QtMoeDown(const QtMoe* a, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::MoeDown(DownOf(*a, a->y), stream, OrderOf(overlap));
}
static quatrain::cuda::MoeCombineArgs CombineOf(const QtMoe& a) {
  return {.y = Weights(a.y),
          .routing = RoutingOf(a),
          .num_tokens = a.tokens,
          .num_slots = a.slots,
          .hidden = a.hidden,
          .out = Weights(a.out)};
}
void QtMoeDownAndCombine(const QtMoe* a, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::MoeDownAndCombine(DownOf(*a, a->y), CombineOf(*a), stream, OrderOf(overlap));
}
// Rows of x (gate_up) or h (down) in sorted order.
void QtMoeGateUpOfRows(const QtMoe* a, void* out, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::MoeGateUpOfRows(GateUpOf(*a, out), stream, OrderOf(overlap));
}
void QtMoeDownOfRows(const QtMoe* a, void* out, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::MoeDownOfRows(DownOf(*a, out), stream, OrderOf(overlap));
}
void QtMoeCombine(const QtMoe* a, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::MoeCombine(CombineOf(*a), stream, OrderOf(overlap));
}

struct QtGrad {
  const void *dy, *x, *expert_begin;
  void* dweight;
  int64_t rows, out_features, in_features, experts, replaces;
};
void QtWeightGrad(const QtGrad* a, int64_t overlap, cudaStream_t stream) {
  using quatrain::cuda::OldGradient;
  quatrain::cuda::WeightGrad({.dy = static_cast<const BFloat16*>(a->dy),
                              .x = static_cast<const BFloat16*>(a->x),
                              .num_rows = a->rows,
                              .out_features = a->out_features,
                              .in_features = a->in_features,
                              .num_experts = a->experts,
                              .expert_begin = static_cast<const int32_t*>(a->expert_begin),
                              .old = a->replaces ? OldGradient::kReplaced : OldGradient::kAdded,
                              .dweight = Floats(a->dweight)},
                             stream, OrderOf(overlap));
}

struct QtCodesGrad {
  const void *dy, *packed, *expert_begin;
  void* dx;
  int64_t rows, out_features, in_features, group, experts;
};
void QtInputGrad(const QtCodesGrad* a, int64_t overlap, cudaStream_t stream) {
  quatrain::cuda::InputGrad({.dy = static_cast<const BFloat16*>(a->dy),
                             .weight = a->packed,
                             .shape = {a->out_features, a->in_features, a->group, 4},
                             .num_rows = a->rows,
                             .num_experts = a->experts,
                             .expert_begin = static_cast<const int32_t*>(a->expert_begin),
                             .dx = Weights(a->dx)},
                            stream, OrderOf(overlap));
}

// From the kernel layout.
void QtDequantizePacked(const QtWeight* a, cudaStream_t stream) {
  quatrain::cuda::DequantizePacked({a->rows, a->columns, a->group, 4},
                                   static_cast<const uint8_t*>(a->packed), Weights(a->plain),
                                   stream);
}
// x times a BF16 weight, by the pinned library; sums may be null unless K is cut. One stream at a
// time.
void QtLinearLibrary(const QtLinearOverCodes* a, const void* weight, void* sums,
                     cudaStream_t stream) {
  static quatrain::cuda::LinearLibrary* const library =
      quatrain::cuda::LinearLibrary::Open().release();
  library->Multiply({.weight_NK = static_cast<const BFloat16*>(weight),
                     .x = static_cast<const BFloat16*>(a->x),
                     .out_features = a->rows,
                     .in_features = a->columns,
                     .num_tokens = a->tokens,
                     .y = Weights(a->y),
                     .sums = Floats(sums)},
                    stream);
}

}  // extern "C"
