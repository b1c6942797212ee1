// Calibration samples: seeded rows of a column, tokenised and cut, never padded. A row is text, or
// a conversation (a list of messages), which the model's own chat template makes text of.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace quatrain {

enum class CalibrationOrder {
  kShuffled,  // a seeded random choice of rows
  kAsStored,  // the first rows, as llm-compressor's examples take them
};

struct CalibrationRequest {
  std::filesystem::path source;  // file or folder, as io/rows.h reads them
  std::string text_column = "text";
  int64_t num_samples = 256;
  int64_t max_sequence_length = 2048;  // tokens of a sample that are used
  uint64_t seed = 0;
  int64_t num_heldout_samples = 0;      // further rows, to judge the result by
  std::filesystem::path chat_template;  // model directory whose template conversations go through
  CalibrationOrder order = CalibrationOrder::kShuffled;
};

struct CalibrationData {
  std::vector<std::vector<int32_t>> samples;
  std::vector<int64_t> rows;                  // of each sample, from 0
  std::vector<std::vector<int32_t>> heldout;  // of two tokens or more; the rows after `samples`
  int64_t num_rows = 0;                       // of the source
  int64_t num_empty_rows = 0;                 // null or blank; they are passed over
  int64_t num_tokens = 0;
  uint64_t fingerprint = 0;  // of all token ids, held-out ones too

  // {"rows", "empty_rows", "samples", "tokens", "heldout_samples", "fingerprint"}.
  Json Report() const;
};

// Takes rows in the order asked for until there are num_samples with a token, then the held-out
// ones; a shorter source gives all it has. Errors of ReadColumn and ChatTemplate; kData if no row
// has any text, a value is neither text nor messages, or a token id is not below vocab_size.
CalibrationData LoadCalibrationData(const CalibrationRequest& request, const Tokenizer& tokenizer,
                                    int64_t vocab_size);

}  // namespace quatrain
