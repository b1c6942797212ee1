#include "calibrate/fidelity.h"

#include <algorithm>
#include <cmath>

#include "ops/linear_ops.h"

namespace quatrain {
namespace {

constexpr int64_t kRowsPerBlock = 64;  // positions whose logits exist at a time

// log of the sum of exp over a row of logits.
double LogSumExp(const float* logits, int64_t vocab_size) {
  const double largest = static_cast<double>(*std::max_element(logits, logits + vocab_size));
  double sum = 0.0;
  for (int64_t v = 0; v < vocab_size; ++v) {
    sum += std::exp(static_cast<double>(logits[v]) - largest);
  }
  return largest + std::log(sum);
}

Fidelity ComparePosition(const float* reference, const float* quantized, int64_t vocab_size,
                         int32_t target) {
  const double reference_norm = LogSumExp(reference, vocab_size);
  const double norm = LogSumExp(quantized, vocab_size);
  Fidelity position{.num_positions = 1,
                    .loss = norm - static_cast<double>(quantized[target]),
                    .reference_loss = reference_norm - static_cast<double>(reference[target])};
  position.abs_logprob_difference = std::abs(position.loss - position.reference_loss);
  for (int64_t v = 0; v < vocab_size; ++v) {
    const double logprob = static_cast<double>(reference[v]) - reference_norm;
    position.kl += std::exp(logprob) * (logprob - (static_cast<double>(quantized[v]) - norm));
  }
  return position;
}

}  // namespace

void Fidelity::Add(const Fidelity& other) {
  num_positions += other.num_positions;
  abs_logprob_difference += other.abs_logprob_difference;
  kl += other.kl;
  loss += other.loss;
  reference_loss += other.reference_loss;
}

double Fidelity::mean_abs_logprob_difference() const {
  return abs_logprob_difference / static_cast<double>(num_positions);
}

double Fidelity::mean_kl() const { return kl / static_cast<double>(num_positions); }

double Fidelity::perplexity() const { return std::exp(loss / static_cast<double>(num_positions)); }

double Fidelity::reference_perplexity() const {
  return std::exp(reference_loss / static_cast<double>(num_positions));
}

Fidelity CompareOutputs(const OpContext& ctx, const ModelOutput& reference,
                        const ModelOutput& quantized, const std::vector<int32_t>& ids) {
  QT_CHECK(ids.size() >= 2, "{} tokens predict nothing", ids.size());
  const int64_t vocab_size = reference.lm_head.out_features;
  const auto num_positions = static_cast<int64_t>(ids.size()) - 1;
  Fidelity total;
  for (int64_t first = 0; first < num_positions; first += kRowsPerBlock) {
    const int64_t rows = std::min(kRowsPerBlock, num_positions - first);
    const at::Tensor reference_RV =
        LinearLogits(ctx, reference.hidden_TD.narrow(0, first, rows), reference.lm_head);
    const at::Tensor quantized_RV =
        LinearLogits(ctx, quantized.hidden_TD.narrow(0, first, rows), quantized.lm_head);
    std::vector<Fidelity> positions(static_cast<size_t>(rows));
    ctx.pool.ParallelFor(rows, [&](int64_t row, int) {
      positions[static_cast<size_t>(row)] =
          ComparePosition(reference_RV.const_data_ptr<float>() + row * vocab_size,
                          quantized_RV.const_data_ptr<float>() + row * vocab_size, vocab_size,
                          ids[static_cast<size_t>(first + row + 1)]);
    });
    for (const Fidelity& position : positions) total.Add(position);
  }
  return total;
}

std::vector<Fidelity> CompareModels(const OpContext& ctx, const Decoder& reference,
                                    const Decoder& quantized,
                                    const std::vector<std::vector<int32_t>>& sequences) {
  QT_CHECK(reference.config().vocab_size == quantized.config().vocab_size, "vocabularies");
  std::vector<Fidelity> results;
  for (const std::vector<int32_t>& ids : sequences) {
    const ForwardBatch batch = MakeVarlenBatch({ids});
    results.push_back(CompareOutputs(ctx, {reference.Forward(ctx, batch), reference.LmHead()},
                                     {quantized.Forward(ctx, batch), quantized.LmHead()}, ids));
  }
  return results;
}

}  // namespace quatrain
