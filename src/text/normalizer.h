// Unicode normalisation of text before it is cut and merged: the "normalizer" of a tokenizer.json.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"

namespace quatrain {

// Thread-safe: immutable after construction.
class Normalizer {
 public:
  // Leaves every text as it is.
  Normalizer() = default;

  // `config` is the "normalizer" object: null, NFC, NFD, NFKC, NFKD or a Sequence of them. Error
  // kData naming `where` and the type for any other.
  static Normalizer FromJson(const Json& config, const std::string& where);

  // `text` must be valid UTF-8.
  std::string Apply(std::string text) const;

 private:
  enum class Form { kNfc, kNfd, kNfkc, kNfkd };
  static std::string ApplyForm(std::string text, Form form);

  std::vector<Form> forms_;
};

}  // namespace quatrain
