#include "calibrate/calibration_data.h"

#include <optional>

#include "base/error.h"
#include "base/random.h"
#include "io/rows.h"

namespace quatrain {
namespace {

constexpr uint64_t kSamplingStream = 1;

void CheckIds(const std::vector<int32_t>& ids, int64_t vocab_size,
              const CalibrationRequest& request) {
  for (const int32_t id : ids) {
    if (id < vocab_size) continue;
    throw Error(ErrorCode::kData, {.where = request.source.string(),
                                   .what = "the tokenizer gives an id that the model does not have",
                                   .expected = fmt::format("ids below {}", vocab_size),
                                   .found = fmt::format("{}", id),
                                   .todo = "Use the tokenizer.json that belongs to the model."});
  }
}

void AddSample(std::vector<int32_t> ids, int64_t row, CalibrationData& data) {
  for (const int32_t id : ids) {
    data.fingerprint = HashBits(data.fingerprint, data.rows.size(), static_cast<uint64_t>(id));
  }
  data.num_tokens += static_cast<int64_t>(ids.size());
  data.samples.push_back(std::move(ids));
  data.rows.push_back(row);
}

}  // namespace

Json CalibrationData::Report() const {
  return {{"rows", num_rows},
          {"empty_rows", num_empty_rows},
          {"samples", samples.size()},
          {"tokens", num_tokens},
          {"fingerprint", fmt::format("{:016x}", fingerprint)}};
}

CalibrationData LoadCalibrationData(const CalibrationRequest& request, const Tokenizer& tokenizer,
                                    int64_t vocab_size) {
  const std::vector<std::optional<std::string>> rows =
      ReadTextColumn(request.source, request.text_column);
  CalibrationData data;
  data.num_rows = static_cast<int64_t>(rows.size());
  for (const int64_t row : Permutation(data.num_rows, request.seed, kSamplingStream)) {
    if (static_cast<int64_t>(data.samples.size()) == request.num_samples) break;
    const std::optional<std::string>& text = rows[static_cast<size_t>(row)];
    std::vector<int32_t> ids;
    if (text.has_value()) ids = tokenizer.Encode(*text);
    if (ids.empty()) {
      ++data.num_empty_rows;
      continue;
    }
    if (static_cast<int64_t>(ids.size()) > request.max_sequence_length) {
      ids.resize(static_cast<size_t>(request.max_sequence_length));
    }
    CheckIds(ids, vocab_size, request);
    AddSample(std::move(ids), row, data);
  }
  if (data.samples.empty()) {
    throw Error(ErrorCode::kData,
                {.where = request.source.string(),
                 .what = fmt::format("no row has any text in column '{}'", request.text_column),
                 .expected = "calibration text",
                 .found = fmt::format("{} rows, all null or empty", data.num_rows)});
  }
  return data;
}

}  // namespace quatrain
