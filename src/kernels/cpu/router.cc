#include <cmath>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/simd_targets.h"
#include "kernels/moe.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/router.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"
// clang-format on

#ifndef QUATRAIN_KERNELS_CPU_ROUTER_ARGS_
#define QUATRAIN_KERNELS_CPU_ROUTER_ARGS_
namespace quatrain {

struct RouterGrad {
  const float* logits;    // [T, E]
  const int32_t* ids;     // [T, K]
  const float* dweights;  // [T, K]
  float* dlogits;         // [T, E]
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_ROUTER_ARGS_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace {

// x_e = exp(x_e - largest), in place.
HWY_INLINE void ExpInPlace(float* x, int64_t size, float largest) {
  const F16 shift = Set16(largest);
  for (int64_t i = 0; i < size; i += kF16Lanes) {
    StoreAt16(Exp16(LoadAt16(x, i, size) - shift), x, i, size);
  }
}

HWY_INLINE float Largest(const float* x, int64_t size) {
  float largest = x[0];
  for (int64_t i = 1; i < size; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// Softmax over all experts: 16 partial sums and the tree.
HWY_INLINE void SoftmaxOverAll(const float* logits_E, int64_t num_experts, float* p_E) {
  for (int64_t e = 0; e < num_experts; ++e) p_E[e] = logits_E[e];
  ExpInPlace(p_E, num_experts, Largest(logits_E, num_experts));
  F16 sums = Zero16();
  for (int64_t e = 0; e < num_experts; e += kF16Lanes) sums = sums + LoadAt16(p_E, e, num_experts);
  const float sum = SumLanes(sums);
  for (int64_t e = 0; e < num_experts; ++e) p_E[e] /= sum;
}

// Softmax over the chosen: the sum runs over slots ascending.
HWY_INLINE void SoftmaxOverChosen(const float* logits_E, const int32_t* ids_K, int64_t k,
                                  float* w_K) {
  for (int64_t slot = 0; slot < k; ++slot) w_K[slot] = logits_E[ids_K[slot]];
  ExpInPlace(w_K, k, Largest(w_K, k));
  float sum = 0.0f;
  for (int64_t slot = 0; slot < k; ++slot) sum += w_K[slot];
  for (int64_t slot = 0; slot < k; ++slot) w_K[slot] /= sum;
}

// Weights of tokens [begin, end); p_E is scratch of [E].
void RouterWeights(const RouterConfig& config, const float* logits_TE, const int32_t* ids_TK,
                   int64_t begin, int64_t end, float* weights_TK, float* p_E) {
  const int64_t k = config.num_experts_per_tok;
  for (int64_t token = begin; token < end; ++token) {
    const float* logits_E = logits_TE + token * config.num_experts;
    const int32_t* ids_K = ids_TK + token * k;
    float* weights_K = weights_TK + token * k;
    if (config.norm_topk_prob) {
      SoftmaxOverChosen(logits_E, ids_K, k, weights_K);
      continue;
    }
    SoftmaxOverAll(logits_E, config.num_experts, p_E);
    for (int64_t slot = 0; slot < k; ++slot) weights_K[slot] = p_E[ids_K[slot]];
  }
}

// Over the chosen: dz_k = w_k (dw_k - sum_j w_j dw_j). Over all: dz_e = [chosen] w_k dw_k -
// p_e sum_j w_j dw_j. scratch is [E].
void RouterGradient(const RouterConfig& config, const RouterGrad& grad, int64_t begin, int64_t end,
                    float* scratch) {
  const int64_t k = config.num_experts_per_tok;
  for (int64_t token = begin; token < end; ++token) {
    const float* logits_E = grad.logits + token * config.num_experts;
    const int32_t* ids_K = grad.ids + token * k;
    const float* dweights_K = grad.dweights + token * k;
    float* dlogits_E = grad.dlogits + token * config.num_experts;
    if (config.norm_topk_prob) {
      SoftmaxOverChosen(logits_E, ids_K, k, scratch);
      float mean = 0.0f;
      for (int64_t slot = 0; slot < k; ++slot) mean += scratch[slot] * dweights_K[slot];
      for (int64_t e = 0; e < config.num_experts; ++e) dlogits_E[e] = 0.0f;
      for (int64_t slot = 0; slot < k; ++slot) {
        dlogits_E[ids_K[slot]] += scratch[slot] * (dweights_K[slot] - mean);
      }
      continue;
    }
    SoftmaxOverAll(logits_E, config.num_experts, scratch);
    float mean = 0.0f;
    for (int64_t slot = 0; slot < k; ++slot) mean += scratch[ids_K[slot]] * dweights_K[slot];
    for (int64_t e = 0; e < config.num_experts; ++e) dlogits_E[e] = -scratch[e] * mean;
    for (int64_t slot = 0; slot < k; ++slot) {
      dlogits_E[ids_K[slot]] += scratch[ids_K[slot]] * dweights_K[slot];
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(RouterWeights);
HWY_EXPORT(RouterGradient);

void CheckConfig(const RouterConfig& config) {
  QT_CHECK(config.num_experts > 0 && config.num_experts_per_tok > 0 &&
               config.num_experts_per_tok <= config.num_experts,
           "{} of {} experts", config.num_experts_per_tok, config.num_experts);
}

void CheckFinite(const float* logits_E, int64_t num_experts, int64_t token) {
  bool is_finite = true;
  for (int64_t e = 0; e < num_experts; ++e) {
    is_finite &= (FloatBits(logits_E[e]) & 0x7F800000u) != 0x7F800000u;
  }
  if (is_finite) return;
  int64_t bad = 0;
  while (std::isfinite(logits_E[bad])) ++bad;
  throw Error(ErrorCode::kData,
              {.where = fmt::format("router, token {}, expert {}", token, bad),
               .what = "the logit is not finite",
               .expected = "a finite number",
               .found = fmt::format("{}", logits_E[bad]),
               .todo = "Check the weights of the layers up to here for NaN and infinities."});
}

void CheckReplayed(const int32_t* ids_K, const RouterConfig& config, int64_t token) {
  for (int64_t slot = 0; slot < config.num_experts_per_tok; ++slot) {
    if (ids_K[slot] >= 0 && ids_K[slot] < config.num_experts) continue;
    throw Error(ErrorCode::kData,
                {.where = fmt::format("routing replay, token {}, slot {}", token, slot),
                 .what = "the expert id is out of range",
                 .expected = fmt::format("0 to {}", config.num_experts - 1),
                 .found = fmt::format("{}", ids_K[slot]),
                 .todo = "Replay routes recorded with the same model."});
  }
}

// Insertion into a sorted list of k; a tie goes behind, so the lower index stays first.
void ChooseTopK(const float* logits_E, const RouterConfig& config, int32_t* ids_K) {
  const int64_t k = config.num_experts_per_tok;
  int64_t size = 0;
  for (int32_t e = 0; e < config.num_experts; ++e) {
    if (size == k && logits_E[e] <= logits_E[ids_K[k - 1]]) continue;
    int64_t slot = size < k ? size++ : k - 1;
    for (; slot > 0 && logits_E[e] > logits_E[ids_K[slot - 1]]; --slot) {
      ids_K[slot] = ids_K[slot - 1];
    }
    ids_K[slot] = e;
  }
}

}  // namespace

void RouterForward(ThreadPool& pool, const RouterConfig& config, const float* logits_TE,
                   int64_t num_tokens, bool is_replay, int32_t* ids_TK, float* weights_TK) {
  CheckConfig(config);
  const int64_t k = config.num_experts_per_tok;
  ParallelChunks(pool, num_tokens, ChunkRows(config.num_experts), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const float* logits_E = logits_TE + token * config.num_experts;
      CheckFinite(logits_E, config.num_experts, token);
      if (is_replay) {
        CheckReplayed(ids_TK + token * k, config, token);
      } else {
        ChooseTopK(logits_E, config, ids_TK + token * k);
      }
    }
    std::vector<float> p_E(static_cast<size_t>(config.num_experts));
    HWY_DYNAMIC_DISPATCH(RouterWeights)
    (config, logits_TE, ids_TK, begin, end, weights_TK, p_E.data());
  });
}

void RouterBackward(ThreadPool& pool, const RouterConfig& config, const float* logits_TE,
                    int64_t num_tokens, const int32_t* ids_TK, const float* dweights_TK,
                    float* dlogits_TE) {
  CheckConfig(config);
  const RouterGrad grad{
      .logits = logits_TE, .ids = ids_TK, .dweights = dweights_TK, .dlogits = dlogits_TE};
  ParallelChunks(pool, num_tokens, ChunkRows(config.num_experts), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(config.num_experts));
    HWY_DYNAMIC_DISPATCH(RouterGradient)(config, grad, begin, end, scratch.data());
  });
}

}  // namespace quatrain
#endif  // HWY_ONCE
