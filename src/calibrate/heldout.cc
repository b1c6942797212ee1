#include "calibrate/heldout.h"

namespace quatrain {

std::vector<int64_t> HeldOut::EntryTokens(const std::vector<std::vector<int32_t>>& sequences) {
  std::vector<int64_t> tokens;
  for (int model = 0; model < 2; ++model) {
    for (const std::vector<int32_t>& ids : sequences) {
      tokens.push_back(static_cast<int64_t>(ids.size()));
    }
  }
  return tokens;
}

HeldOut::HeldOut(const OpContext& ctx, const Decoder& decoder,
                 const std::vector<std::vector<int32_t>>& sequences, HiddenStates& states,
                 size_t first_entry)
    : ctx_(ctx),
      decoder_(decoder),
      sequences_(sequences),
      states_(states),
      reference_(first_entry),
      quantized_(first_entry + sequences.size()) {}

void HeldOut::Embed() {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const at::Tensor x_TD = decoder_.Embed(ctx_, MakeVarlenBatch({sequences_[i]}));
    states_.Write(reference_ + i, x_TD);
    states_.Write(quantized_ + i, x_TD);
  }
}

void HeldOut::Run(int64_t layer, size_t first_entry) {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const size_t entry = first_entry + i;
    states_.Write(entry, decoder_.ForwardLayer(ctx_, layer, states_.Read(entry),
                                               MakeVarlenBatch({sequences_[i]})));
  }
}

void HeldOut::RunReference(int64_t layer) { Run(layer, reference_); }

void HeldOut::RunQuantized(int64_t layer) { Run(layer, quantized_); }

Fidelity HeldOut::Compare() const {
  Fidelity total;
  const auto output = [&](size_t entry) {
    return ModelOutput{decoder_.FinalNorm(ctx_, states_.Read(entry)), decoder_.LmHead()};
  };
  for (size_t i = 0; i < sequences_.size(); ++i) {
    total.Add(CompareOutputs(ctx_, output(reference_ + i), output(quantized_ + i), sequences_[i]));
  }
  return total;
}

}  // namespace quatrain
