#include "train/policy_loss.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace quatrain {
namespace {

constexpr double kMaxLogRatio = 20.0;  // exp stays finite in FP32; the field's bound
constexpr double kMaxLowVarKl = 10.0;

// A term of the loss at one token and its derivative by the new log-probability.
using Term = KlEstimate;

struct ClipTerm {
  Term pg;
  double ratio = 1;
  bool is_clipped = false;  // the clipped objective is the larger loss
};

ClipTerm ClippedObjective(const PolicyLossConfig& config, double log_ratio, double advantage) {
  ClipTerm term;
  const double clamped = std::clamp(log_ratio, -kMaxLogRatio, kMaxLogRatio);
  term.ratio = std::exp(clamped);
  const double dratio = clamped == log_ratio ? term.ratio : 0.0;
  const double ratio_in_range =
      std::clamp(term.ratio, 1.0 - config.clip_eps_low, 1.0 + config.clip_eps_high);
  const double unclipped = -term.ratio * advantage;
  const double clipped = -ratio_in_range * advantage;
  term.is_clipped = clipped > unclipped;
  // Where the clipped loss is the larger, the ratio is outside the range and the loss is constant.
  term.pg = term.is_clipped ? Term{clipped, 0.0} : Term{unclipped, -dratio * advantage};
  if (config.clip_eps_c && advantage < 0) {
    const double bound = -*config.clip_eps_c * advantage;
    if (bound < term.pg.value) term.pg = {bound, 0.0};
  }
  return term;
}

// What one trained token reads.
struct TokenInput {
  double new_logprob = 0, old_logprob = 0, rollout_logprob = 0, ref_logprob = 0;
  double advantage = 0, entropy = 0;

  double log_ratio() const { return new_logprob - old_logprob; }
};

// What the tokens of one sequence share.
struct SequenceInput {
  double weight = 0;          // of each of its tokens in the loss
  double mean_log_ratio = 0;  // of new - old over its trained tokens
};

// The importance weight of the trainer's policy against the rollout's.
double TisWeight(const TisOptions& options, double tis) {
  const double clamped = std::clamp(tis, options.clip_low, options.clip);
  return options.mode == TisMode::kIcePop && clamped != tis ? 0.0 : clamped;
}

void ApplyTis(const TisOptions& options, const TokenInput& token, double weight, Term& pg,
              PolicyLossSums& sums) {
  // The bound keeps the metric finite.
  const double tis = std::exp(std::min(token.old_logprob - token.rollout_logprob, kMaxLogRatio));
  const double tis_weight = TisWeight(options, tis);
  pg.value *= tis_weight;
  pg.derivative *= tis_weight;
  sums.tis += weight * tis;
  sums.tis_clipfrac += tis_weight != tis ? weight : 0.0;
  sums.tis_abs += weight * std::abs(tis - 1.0);
}

Term KlLoss(const KlLossOptions& options, const TokenInput& token) {
  Term kl = EstimateKl(options.type, token.new_logprob, token.ref_logprob);
  if (options.is_unbiased) {
    const double clamped = std::clamp(token.log_ratio(), -kMaxLogRatio, kMaxLogRatio);
    const double ratio = std::exp(clamped);
    const double dratio = clamped == token.log_ratio() ? ratio : 0.0;
    kl = {kl.value * ratio, kl.derivative * ratio + kl.value * dratio};
  }
  return kl;
}

// d loss / d new_logprob of a token, without the weight: by its own ratio, and by the ratio of the
// whole sequence (GSPO), which all of its tokens share.
struct Derivatives {
  double own = 0;
  double shared = 0;
};

// Adds weight times the token's terms to `sums`.
Derivatives AddToken(const PolicyLossConfig& config, const TokenInput& token,
                     const SequenceInput& sequence, PolicyLossSums& sums) {
  const double weight = sequence.weight;
  const bool by_sequence = config.ratio_level == RatioLevel::kSequence;
  const double log_ratio = by_sequence ? sequence.mean_log_ratio : token.log_ratio();
  ClipTerm clip = ClippedObjective(config, log_ratio, token.advantage);
  if (config.tis) ApplyTis(*config.tis, token, weight, clip.pg, sums);
  if (config.opsm_delta && token.advantage < 0 && -sequence.mean_log_ratio > *config.opsm_delta) {
    clip.pg = {};
    sums.opsm_clipfrac += weight;
  }
  double loss = clip.pg.value - config.entropy_coef * token.entropy;
  Derivatives derivatives =
      by_sequence ? Derivatives{0.0, clip.pg.derivative} : Derivatives{clip.pg.derivative, 0.0};
  if (config.kl_loss) {
    const Term kl = KlLoss(*config.kl_loss, token);
    loss += config.kl_loss->coef * kl.value;
    derivatives.own += config.kl_loss->coef * kl.derivative;
    sums.kl_loss += weight * kl.value;
  }
  sums.loss += weight * loss;
  sums.pg_loss += weight * clip.pg.value;
  sums.pg_clipfrac += clip.is_clipped ? weight : 0.0;
  sums.ppo_kl -= weight * log_ratio;
  sums.ois += weight * clip.ratio;
  sums.entropy_loss += weight * token.entropy;
  sums.ratio += clip.ratio;
  sums.ratio_squared += clip.ratio * clip.ratio;
  ++sums.num_tokens;
  return derivatives;
}

// Reads per-token arrays and refuses what is not a number.
class TokenReader {
 public:
  TokenReader(const TrainBatch& batch, std::span<const float> new_logprobs,
              std::span<const float> entropy)
      : batch_(batch), new_logprobs_(new_logprobs), entropy_(entropy) {}

  TokenInput Read(int64_t sequence, int64_t t) const {
    TokenInput token;
    auto get = [&](const char* name, std::span<const float> values_T) {
      return values_T.empty() ? 0.0 : Finite(name, values_T[static_cast<size_t>(t)], sequence, t);
    };
    token.new_logprob = get("new_logprobs", new_logprobs_);
    token.rollout_logprob = get("rollout_logprobs", batch_.rollout_logprobs_T);
    token.old_logprob = batch_.old_logprobs_T.empty() ? token.new_logprob
                                                      : get("old_logprobs", batch_.old_logprobs_T);
    token.ref_logprob = get("ref_logprobs", batch_.ref_logprobs_T);
    token.advantage = get("advantages", batch_.advantages_T);
    token.entropy = get("entropy", entropy_);
    return token;
  }

 private:
  double Finite(const char* name, float value, int64_t sequence, int64_t t) const {
    if (std::isfinite(value)) return value;
    const auto s = static_cast<size_t>(sequence);
    throw Error(ErrorCode::kData,
                {.where = fmt::format("sample {}, token {}", batch_.sample_ids_S[s],
                                      t - batch_.cu_seqlens[s]),
                 .what = fmt::format("{} is not a finite number", name),
                 .found = fmt::format("{}", value),
                 .todo = "The optimizer step was not taken; go on from the last "
                         "checkpoint, with a "
                         "lower --lr if the loss was growing"});
  }

  const TrainBatch& batch_;
  std::span<const float> new_logprobs_, entropy_;
};

// The mismatch of trainer and rollout, whatever the ratio starts from.
void AddMismatch(const TokenInput& token, double weight, PolicyLossSums& sums) {
  sums.train_rollout_logprob_abs_diff +=
      weight * std::abs(token.old_logprob - token.rollout_logprob);
  sums.train_rollout_kl +=
      weight * EstimateKl(KlLossType::kLowVarKl, token.rollout_logprob, token.old_logprob).value;
}

// Sums of one sequence; its gradients go to `result`.
PolicyLossSums AddSequence(const PolicyLossConfig& config, const TrainBatch& batch,
                           const TokenReader& reader, int64_t s, PolicyLossResult& result) {
  PolicyLossSums sums;
  SequenceInput sequence{.weight = batch.loss_weights_S[static_cast<size_t>(s)]};
  const int64_t begin = batch.cu_seqlens[static_cast<size_t>(s)];
  const int64_t end = batch.cu_seqlens[static_cast<size_t>(s) + 1];
  std::vector<std::pair<size_t, TokenInput>> tokens;
  for (int64_t t = begin; t < end; ++t) {
    if (batch.loss_mask_T[static_cast<size_t>(t)] == 0) continue;
    QT_CHECK(t > begin, "sample {}: nothing predicts the first token",
             batch.sample_ids_S[static_cast<size_t>(s)]);
    TokenInput token = reader.Read(s, t);
    AddMismatch(token, sequence.weight, sums);
    if (config.old_logprobs == OldLogprobs::kRollout) token.old_logprob = token.rollout_logprob;
    sequence.mean_log_ratio += token.log_ratio();
    tokens.emplace_back(static_cast<size_t>(t), token);
  }
  const auto count = static_cast<double>(std::max<size_t>(tokens.size(), 1));
  sequence.mean_log_ratio /= count;
  std::vector<double> own;
  double shared = 0;
  for (const auto& [t, token] : tokens) {
    const Derivatives derivatives = AddToken(config, token, sequence, sums);
    own.push_back(derivatives.own);
    shared += derivatives.shared / count;
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    const size_t t = tokens[i].first;
    result.dlogprobs_T[t] = static_cast<float>(sequence.weight * (own[i] + shared));
    if (config.entropy_coef != 0) {
      result.dentropy_T[t] = static_cast<float>(-sequence.weight * config.entropy_coef);
    }
  }
  return sums;
}

void CheckShapes(const TrainBatch& batch, std::span<const float> new_logprobs,
                 std::span<const float> entropy, const PolicyLossConfig& config) {
  const size_t T = batch.token_ids_T.size();
  const size_t S = batch.loss_weights_S.size();
  QT_CHECK(batch.cu_seqlens.size() == S + 1 && batch.sample_ids_S.size() == S &&
               batch.cu_seqlens.back() == static_cast<int64_t>(T),
           "{} sequences, {} tokens", S, T);
  QT_CHECK(batch.loss_mask_T.size() == T && batch.advantages_T.size() == T &&
           batch.rollout_logprobs_T.size() == T && new_logprobs.size() == T);
  QT_CHECK(batch.old_logprobs_T.empty() || batch.old_logprobs_T.size() == T);
  QT_CHECK(entropy.empty() ? config.entropy_coef == 0 : entropy.size() == T,
           "the entropy term needs entropy");
  QT_CHECK(batch.ref_logprobs_T.size() == T || (batch.ref_logprobs_T.empty() && !config.kl_loss),
           "the KL term needs reference log-probabilities");
}

}  // namespace

KlEstimate EstimateKl(KlLossType type, double new_logprob, double ref_logprob) {
  const double d = new_logprob - ref_logprob;
  switch (type) {
    case KlLossType::kK1:
      return {d, 1.0};
    case KlLossType::kK2:
      return {0.5 * d * d, d};
    case KlLossType::kK3:
      return {std::expm1(-d) + d, -std::expm1(-d)};
    case KlLossType::kLowVarKl:
      break;
  }
  const double clamped = std::clamp(d, -kMaxLogRatio, kMaxLogRatio);
  const double kl = std::expm1(-clamped) + clamped;
  const bool is_clamped = clamped != d || kl > kMaxLowVarKl;
  return {std::min(kl, kMaxLowVarKl), is_clamped ? 0.0 : -std::expm1(-d)};
}

KlLossType ParseKlLossType(const std::string& name) {
  if (name == "k1") return KlLossType::kK1;
  if (name == "k2") return KlLossType::kK2;
  if (name == "k3") return KlLossType::kK3;
  if (name == "low_var_kl") return KlLossType::kLowVarKl;
  throw Error(ErrorCode::kUsage, {.where = "--kl-loss-type",
                                  .what = "unknown estimate of the KL divergence",
                                  .expected = "k1, k2, k3 or low_var_kl",
                                  .found = "'" + name + "'"});
}

void CheckPolicyLossConfig(const PolicyLossConfig& config) {
  auto require = [](bool holds, const char* flag, const char* expected, double found) {
    if (holds) return;
    throw Error(ErrorCode::kUsage, {.where = flag,
                                    .what = "value out of range",
                                    .expected = expected,
                                    .found = fmt::format("{}", found)});
  };
  const double low = config.clip_eps_low;
  const double high = config.clip_eps_high;
  require(low >= 0 && low < 1, "--eps-clip", "a number in [0, 1)", low);
  require(high >= 0 && std::isfinite(high), "--eps-clip-high", "a number not below 0", high);
  if (config.clip_eps_c) {
    const double c = *config.clip_eps_c;
    require(c > 1 && std::isfinite(c), "--eps-clip-c", "a number above 1", c);
  }
  if (config.tis) {
    const TisOptions& tis = *config.tis;
    require(tis.clip_low >= 0, "--tis-clip-low", "a number not below 0", tis.clip_low);
    require(tis.clip >= tis.clip_low && std::isfinite(tis.clip), "--tis-clip",
            "a number not below --tis-clip-low", tis.clip);
  }
  if (config.kl_loss) {
    const double coef = config.kl_loss->coef;
    require(std::isfinite(coef), "--kl-loss-coef", "a finite number", coef);
  }
  if (config.opsm_delta) {
    const double delta = *config.opsm_delta;
    require(std::isfinite(delta), "--opsm-delta", "a finite number", delta);
  }
  if (config.tis && config.old_logprobs == OldLogprobs::kRollout) {
    throw Error(ErrorCode::kUsage,
                {.where = "--use-rollout-logprobs, --use-tis",
                 .what = "with the rollout's log-probabilities as the old ones every importance "
                         "weight is 1",
                 .expected = "one of the two"});
  }
  require(std::isfinite(config.entropy_coef), "--entropy-coef", "a finite number",
          config.entropy_coef);
}

void PolicyLossSums::Add(const PolicyLossSums& other) {
  for (double PolicyLossSums::*sum :
       {&PolicyLossSums::loss, &PolicyLossSums::pg_loss, &PolicyLossSums::pg_clipfrac,
        &PolicyLossSums::ppo_kl, &PolicyLossSums::ois,
        &PolicyLossSums::train_rollout_logprob_abs_diff, &PolicyLossSums::train_rollout_kl,
        &PolicyLossSums::entropy_loss, &PolicyLossSums::kl_loss, &PolicyLossSums::tis,
        &PolicyLossSums::tis_clipfrac, &PolicyLossSums::tis_abs, &PolicyLossSums::opsm_clipfrac,
        &PolicyLossSums::ratio, &PolicyLossSums::ratio_squared}) {
    this->*sum += other.*sum;
  }
  num_tokens += other.num_tokens;
  has_entropy |= other.has_entropy;
  has_kl_loss |= other.has_kl_loss;
  has_tis |= other.has_tis;
  has_opsm |= other.has_opsm;
}

PolicyLossMetrics PolicyLossSums::Finish() const {
  PolicyLossMetrics metrics;
  metrics.loss = loss;
  metrics.pg_loss = pg_loss;
  metrics.pg_clipfrac = pg_clipfrac;
  metrics.ppo_kl = ppo_kl;
  metrics.ois = ois;
  if (num_tokens > 0) {
    metrics.ess_ratio = ratio * ratio / (static_cast<double>(num_tokens) * ratio_squared);
  }
  metrics.train_rollout_logprob_abs_diff = train_rollout_logprob_abs_diff;
  metrics.train_rollout_kl = train_rollout_kl;
  if (has_entropy) metrics.entropy_loss = entropy_loss;
  if (has_kl_loss) metrics.kl_loss = kl_loss;
  if (has_tis) {
    metrics.tis = tis;
    metrics.tis_clipfrac = tis_clipfrac;
    metrics.tis_abs = tis_abs;
  }
  if (has_opsm) metrics.opsm_clipfrac = opsm_clipfrac;
  return metrics;
}

void PolicyLossMetrics::AppendTo(Json& row) const {
  row["train/loss"] = loss;
  row["train/pg_loss"] = pg_loss;
  if (entropy_loss) row["train/entropy_loss"] = *entropy_loss;
  row["train/pg_clipfrac"] = pg_clipfrac;
  row["train/ppo_kl"] = ppo_kl;
  row["train/ess_ratio"] = ess_ratio;
  row["train/train_rollout_logprob_abs_diff"] = train_rollout_logprob_abs_diff;
  row["train/train_rollout_kl"] = train_rollout_kl;
  if (kl_loss) row["train/kl_loss"] = *kl_loss;
  row["train/ois"] = ois;
  if (tis) row["train/tis"] = *tis;
  if (tis_clipfrac) row["train/tis_clipfrac"] = *tis_clipfrac;
  if (tis_abs) row["train/tis_abs"] = *tis_abs;
  if (opsm_clipfrac) row["train/opsm_clipfrac"] = *opsm_clipfrac;
}

PolicyLossResult PolicyLoss(const TrainBatch& batch, std::span<const float> new_logprobs_T,
                            std::span<const float> entropy_T, const PolicyLossConfig& config) {
  CheckShapes(batch, new_logprobs_T, entropy_T, config);
  PolicyLossResult result;
  result.dlogprobs_T.assign(batch.token_ids_T.size(), 0.0f);
  if (config.entropy_coef != 0) result.dentropy_T.assign(batch.token_ids_T.size(), 0.0f);
  result.sums.has_entropy = !entropy_T.empty();
  result.sums.has_kl_loss = config.kl_loss.has_value();
  result.sums.has_tis = config.tis.has_value();
  result.sums.has_opsm = config.opsm_delta.has_value();
  const TokenReader reader(batch, new_logprobs_T, entropy_T);
  for (int64_t s = 0; s < batch.num_sequences(); ++s) {
    // Summed apart first: less rounding, and the cut into micro-batches matters less.
    result.sums.Add(AddSequence(config, batch, reader, s, result));
  }
  return result;
}

}  // namespace quatrain
