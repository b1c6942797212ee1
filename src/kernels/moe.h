// Router, token permutation and combine of a mixture-of-experts layer, with gradients.
// Letters: T tokens, E experts, K experts per token, D hidden, R = T * K routed rows (sorted by
// expert, then token, then slot).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/threads.h"
#include "kernels/bfloat16.h"

namespace quatrain {

struct RouterConfig {
  int64_t num_experts = 0;
  int64_t num_experts_per_tok = 0;
  bool norm_topk_prob = true;
};

// Top-k of FP32 logits_TE: order (logit descending, index ascending). p = softmax over the chosen
// (norm_topk_prob) or over all experts. ids_TK int32 and weights_TK float, largest first. With
// is_replay the ids are given (any slot order, kept) and only weights are computed. Error kData if
// a replayed id is out of range or a logit is not finite (names the token).
void RouterForward(ThreadPool& pool, const RouterConfig& config, const float* logits_TE,
                   int64_t num_tokens, bool is_replay, int32_t* ids_TK, float* weights_TK);
// dlogits_TE (overwritten) from dweights_TK at the same ids.
void RouterBackward(ThreadPool& pool, const RouterConfig& config, const float* logits_TE,
                    int64_t num_tokens, const int32_t* ids_TK, const float* dweights_TK,
                    float* dlogits_TE);

// Where each (token, slot) goes.
struct MoePermutation {
  std::vector<int64_t> expert_begin;  // [E + 1], row ranges of the experts
  std::vector<int32_t> row_token;     // [R]
  std::vector<int32_t> slot_row;      // [T * K], row of (token, slot)
  int64_t num_experts_per_tok = 0;    // K
};
MoePermutation PermuteByExpert(std::span<const int32_t> ids_TK, int64_t num_experts,
                               int64_t num_experts_per_tok);

// rows_RD = x_TD[row_token].
template <class T>
void GatherRows(ThreadPool& pool, const T* x_TD, const MoePermutation& permutation, int64_t hidden,
                T* rows_RD);
// dx_TD += sum over slots ascending of drows_RD[slot_row].
void GatherRowsBackward(ThreadPool& pool, const float* drows_RD, const MoePermutation& permutation,
                        int64_t hidden, float* dx_TD);

// out_TD = round(acc), acc = 0, acc = fma(w_k, y_k, acc) over slots ascending.
template <class T>
void CombineForward(ThreadPool& pool, const T* y_RD, const float* weights_TK,
                    const MoePermutation& permutation, int64_t hidden, T* out_TD);
// dy = w_k * dout[token]; dweights = dot(dout[token], y[row]).
template <class T>
struct CombineGradArgs {
  const T* y = nullptr;            // [R, D], the forward's input
  const float* weights = nullptr;  // [T, K]
  const float* dout = nullptr;     // [T, D]
  float* dy = nullptr;             // [R, D], overwritten
  float* dweights = nullptr;       // [T, K], overwritten
};
template <class T>
void CombineBackward(ThreadPool& pool, const CombineGradArgs<T>& args,
                     const MoePermutation& permutation, int64_t hidden);

}  // namespace quatrain
