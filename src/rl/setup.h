// What a run works with: which weights train, which roll out, which anchor the KL, and why.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "models/decoder.h"
#include "models/loader.h"
#include "rl/rl_config.h"

namespace quatrain {

// The outcome of the table of int4.md section 6.
struct QatDecision {
  QatMode mode = QatMode::kBf16;
  int64_t group_size = 0;  // of the codes that train or roll out; 0: the checkpoint's own
};

// Decides from the flags and the scheme of --hf-checkpoint (nullopt: BF16). Error kUsage naming
// flags and variables: QAT with a BF16 checkpoint, a group size that disagrees (with both numbers
// and their sources), settings that have no effect together. Mismatched modes log a warning.
QatDecision DecideQat(const QatArgs& args, const std::optional<QuantScheme>& checkpoint_scheme);

// Bounds of the codes that training derives (rule absmax/7): symmetric, as far as those of the
// checkpoint reach; --code-max says it for a BF16 checkpoint. Error kUsage if the flag disagrees
// with the checkpoint.
CodeGrid DecideGrid(const QatArgs& args, const std::optional<QuantScheme>& checkpoint_scheme,
                    const CodeGrid& checkpoint_grid);

// Owns the models of a run. Addresses are stable.
class TrainingModels {
 public:
  // Loads --hf-checkpoint (format), --ref-load (values). Errors of Checkpoint; kUsage where the two
  // are different models, or --ref-load is needed and missing; kData if QAT is on and nothing is
  // quantised; kResource, before anything is loaded, if memory or disk do not suffice.
  explicit TrainingModels(const RlConfig& config);

  const QatDecision& qat() const { return qat_; }
  const Checkpoint& hf() const { return *hf_; }
  const Checkpoint& start() const { return ref_ ? *ref_ : *hf_; }
  // Values that training starts from, BF16; dropped by ReleaseStart unless they anchor the KL.
  const ModelWeights& start_weights() const { return *start_weights_; }
  void ReleaseStart();

  ModelWeights& trained() { return *trained_; }
  ModelWeights* separate_rollout() { return rollout_ ? &*rollout_ : nullptr; }
  const Decoder& trained_decoder() const { return *trained_decoder_; }
  const Decoder& rollout_decoder() const {
    return rollout_decoder_ ? *rollout_decoder_ : *trained_decoder_;
  }
  const Decoder* reference_decoder() const { return reference_decoder_.get(); }
  // BF16 weights of the reference; null without one.
  ModelWeights* reference() { return reference_decoder_ ? &*start_weights_ : nullptr; }

  // Scheme of the quantised table (trained or rollout); nullopt for plain BF16.
  const std::optional<QuantScheme>& scheme() const { return scheme_; }
  // The quantised table, for the int4/ export; null for plain BF16.
  const ModelWeights* quantized_table() const;
  int64_t num_quantized() const;

 private:
  // The quantised table (values not set) and its scheme.
  ModelWeights MakeQuantized(const QatArgs& args);

  QatDecision qat_;
  std::unique_ptr<Checkpoint> hf_, ref_;
  std::optional<QuantScheme> scheme_;
  std::optional<ModelWeights> start_weights_, trained_, rollout_;
  std::unique_ptr<Decoder> trained_decoder_, rollout_decoder_, reference_decoder_;
};

}  // namespace quatrain
