// The policy loss: clipped ratio, truncated importance weight, KL to the reference, entropy; value,
// metrics, gradient.
//
//   PolicyLossSums step;
//   for (const TrainBatch& batch : micro_batches) {
//     PolicyLossResult result = PolicyLoss(batch, new_logprobs_T, entropy_T, config);
//     ...backward of result.dlogprobs_T and result.dentropy_T...
//     step.Add(result.sums);
//   }
//   step.Finish().AppendTo(row);  // "train/pg_loss": ...
//
// Per trained token, with ratio = exp(clamp(new - old, -20, 20)) and advantage A:
//   pg   = max(-ratio A, -clamp(ratio, 1 - clip_eps_low, 1 + clip_eps_high) A)
//          dual clip: min(-clip_eps_c A, pg) where A < 0
//   w    = clamp(exp(old - rollout), tis.clip_low, tis.clip), a constant; 1 without TIS
//          IcePop: exp(old - rollout) inside the bounds, 0 outside
//   loss = w pg - entropy_coef H + kl_loss.coef KL(new, ref)
//          unbiased KL: times exp(new - old), which is differentiated too
// and the step's loss is the sum over tokens of loss_weights_S[s] * loss.
// GSPO: the exponent of every token's ratio is the mean of new - old over its sequence's trained
// tokens. OPSM (off-policy sequence masking): pg is 0 where A < 0 and the sequence's mean of
// old - new exceeds opsm_delta. Sources: PPO arXiv:1707.06347 eq. 7; dual clip arXiv:1912.09729;
// asymmetric clip arXiv:2503.14476 eq. 10; GRPO arXiv:2402.03300 eq. 3 and 4; GSPO arXiv:2507.18071
// eq. 5; IcePop arXiv:2510.18855; OPSM arXiv:2512.02556 section 3.1; truncated importance sampling:
// Ionides, J. Comput. Graph. Stat. 17 (2008). Letters: T tokens, S sequences (train_batch.h).
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "train/train_batch.h"

namespace quatrain {

// Estimates of KL(new || ref) from one token, d = new - ref:
//   k1 = d; k2 = d^2 / 2; k3 = exp(-d) - 1 + d;
//   low_var_kl = k3 with d clamped to +-20 and the result to +-10.
enum class KlLossType { kK1, kK2, kK3, kLowVarKl };

// "k1", "k2", "k3" or "low_var_kl"; Error kUsage naming --kl-loss-type otherwise.
KlLossType ParseKlLossType(const std::string& name);

// A value and its derivative by the new log-probability.
struct KlEstimate {
  double value = 0;
  double derivative = 0;
};
KlEstimate EstimateKl(KlLossType type, double new_logprob, double ref_logprob);

// What happens to an importance weight outside its bounds.
enum class TisMode {
  kTruncate,  // it is clamped
  kIcePop,    // the token is left out
};

struct TisOptions {
  double clip = 2.0;
  double clip_low = 0.0;
  TisMode mode = TisMode::kTruncate;
};

struct KlLossOptions {
  KlLossType type = KlLossType::kK1;
  double coef = 0.0;
  bool is_unbiased = false;  // --use-unbiased-kl
};

enum class RatioLevel {
  kToken,
  kSequence,  // GSPO
};

// Whose log-probabilities the ratio starts from.
enum class OldLogprobs {
  kTrainer,
  kRollout,  // --use-rollout-logprobs
};

struct PolicyLossConfig {
  double clip_eps_low = 0.2;                        // --eps-clip
  double clip_eps_high = 0.2;                       // --eps-clip-high, which defaults to --eps-clip
  std::optional<double> clip_eps_c = std::nullopt;  // --eps-clip-c, above 1: dual clip
  std::optional<TisOptions> tis = std::nullopt;     // --use-tis
  std::optional<KlLossOptions> kl_loss = std::nullopt;  // --use-kl-loss; needs ref_logprobs_T
  double entropy_coef = 0.0;
  RatioLevel ratio_level = RatioLevel::kToken;
  OldLogprobs old_logprobs = OldLogprobs::kTrainer;
  std::optional<double> opsm_delta = std::nullopt;  // --use-opsm, --opsm-delta
};

// Error kUsage naming the flag whose value is outside its range.
void CheckPolicyLossConfig(const PolicyLossConfig& config);

// Means over the optimizer step, weighted as the loss is (so a sample mean of token means by
// default). What was not asked for is absent. Names are the field's.
struct PolicyLossMetrics {
  double loss = 0;
  double pg_loss = 0;      // importance weight included
  double pg_clipfrac = 0;  // share of tokens where the clipped term is the larger
  double ppo_kl = 0;       // mean of old - new
  double ois = 0;          // mean of exp(new - old)
  double ess_ratio = 0;    // (sum r)^2 / (n sum r^2), r = exp(new - old); 1: on policy
  double train_rollout_logprob_abs_diff = 0;  // mean of |old - rollout|
  double train_rollout_kl = 0;                // low_var_kl of rollout against old
  std::optional<double> entropy_loss;         // mean entropy, nats
  std::optional<double> kl_loss;
  std::optional<double> tis;            // importance weight before the clamp
  std::optional<double> tis_clipfrac;   // share of tokens whose weight the clamp changed
  std::optional<double> tis_abs;        // mean of |weight before the clamp - 1|
  std::optional<double> opsm_clipfrac;  // share of tokens in sequences that OPSM masked

  // Adds "train/<name>" for every metric that is present.
  void AppendTo(Json& row) const;
};

// Weighted sums of a step or a part of it: how the step is cut changes nothing but FP64 rounding.
struct PolicyLossSums {
  double loss = 0, pg_loss = 0, pg_clipfrac = 0, ppo_kl = 0, ois = 0;
  double train_rollout_logprob_abs_diff = 0, train_rollout_kl = 0;
  double entropy_loss = 0, kl_loss = 0, tis = 0, tis_clipfrac = 0, tis_abs = 0;
  double opsm_clipfrac = 0;
  double ratio = 0, ratio_squared = 0;  // unweighted, for ess_ratio
  int64_t num_tokens = 0;               // trained tokens
  bool has_entropy = false, has_kl_loss = false, has_tis = false, has_opsm = false;

  void Add(const PolicyLossSums& other);
  PolicyLossMetrics Finish() const;
};

struct PolicyLossResult {
  std::vector<float> dlogprobs_T;  // d step loss / d new_logprobs_T; 0 where not trained
  std::vector<float> dentropy_T;   // d step loss / d entropy_T; empty when entropy_coef is 0
  PolicyLossSums sums;
};

// The loss of one micro-batch.
//   new_logprobs_T  under the weights that train, aligned as in train_batch.h
//   entropy_T       of the distribution that each token was drawn from, nats; empty: not logged
// Without old_logprobs_T the new ones stand for them as constants: ratio 1, ppo_kl 0, the gradient
// as usual. Error kData on a NaN or infinity at a trained token (names array, sample and token):
// nothing is replaced by 0.
PolicyLossResult PolicyLoss(const TrainBatch& batch, std::span<const float> new_logprobs_T,
                            std::span<const float> entropy_T, const PolicyLossConfig& config);

}  // namespace quatrain
