// Calibration samples: seeded rows of a text column, tokenised and cut, never padded.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace quatrain {

struct CalibrationRequest {
  std::filesystem::path source;  // file or folder, as io/rows.h reads them
  std::string text_column = "text";
  int64_t num_samples = 256;
  int64_t max_sequence_length = 2048;  // tokens of a sample that are used
  uint64_t seed = 0;
};

struct CalibrationData {
  std::vector<std::vector<int32_t>> samples;
  std::vector<int64_t> rows;   // of each sample, from 0
  int64_t num_rows = 0;        // of the source
  int64_t num_empty_rows = 0;  // null or blank; they are passed over
  int64_t num_tokens = 0;
  uint64_t fingerprint = 0;  // of all token ids

  // {"rows", "empty_rows", "samples", "tokens", "fingerprint"}.
  Json Report() const;
};

// Takes rows in a seeded random order until there are num_samples with a token; a shorter source
// gives all it has. Errors of ReadTextColumn; kData if no row has any text, or a token id is not
// below vocab_size.
CalibrationData LoadCalibrationData(const CalibrationRequest& request, const Tokenizer& tokenizer,
                                    int64_t vocab_size);

}  // namespace quatrain
