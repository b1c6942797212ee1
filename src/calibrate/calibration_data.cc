#include "calibrate/calibration_data.h"

#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/random.h"
#include "io/rows.h"
#include "text/chat_template.h"

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

std::vector<int64_t> OrderOfRows(int64_t num_rows, const CalibrationRequest& request) {
  if (request.order == CalibrationOrder::kShuffled) {
    return Permutation(num_rows, request.seed, kSamplingStream);
  }
  std::vector<int64_t> order(static_cast<size_t>(num_rows));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

bool IsConversation(const Json& value) {
  if (!value.is_array() || value.empty()) return false;
  for (const Json& message : value) {
    if (!message.is_object() || !message.contains("role") || !message.contains("content")) {
      return false;
    }
  }
  return true;
}

// Rows as token ids. The chat template is read when the first conversation asks for it.
class RowEncoder {
 public:
  RowEncoder(const CalibrationRequest& request, const Tokenizer& tokenizer, int64_t vocab_size)
      : request_(request), tokenizer_(tokenizer), vocab_size_(vocab_size) {}

  // Empty for a row without text.
  std::vector<int32_t> Encode(const Json& value, int64_t row) {
    if (value.is_null()) return {};
    std::vector<int32_t> ids = tokenizer_.Encode(TextOf(value, row));
    if (static_cast<int64_t>(ids.size()) > request_.max_sequence_length) {
      ids.resize(static_cast<size_t>(request_.max_sequence_length));
    }
    CheckIds(ids, vocab_size_, request_);
    return ids;
  }

 private:
  std::string TextOf(const Json& value, int64_t row) {
    if (value.is_string()) return value.get<std::string>();
    if (IsConversation(value)) {
      if (!template_.has_value()) template_ = ChatTemplate::Load(request_.chat_template);
      return template_->Render(value);
    }
    throw Error(ErrorCode::kData,
                {.where = fmt::format("{}: row {}, column '{}'", request_.source.string(), row + 1,
                                      request_.text_column),
                 .what = "the value is no calibration text",
                 .expected = "a string, null, or a list of {\"role\", \"content\"} messages",
                 .found = DumpJson(value).substr(0, 80)});
  }

  const CalibrationRequest& request_;
  const Tokenizer& tokenizer_;
  int64_t vocab_size_;
  std::optional<ChatTemplate> template_;
};

void HashIds(const std::vector<int32_t>& ids, uint64_t sample, CalibrationData& data) {
  for (const int32_t id : ids) {
    data.fingerprint = HashBits(data.fingerprint, sample, static_cast<uint64_t>(id));
  }
}

void AddSample(std::vector<int32_t> ids, int64_t row, CalibrationData& data) {
  HashIds(ids, data.rows.size(), data);
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
          {"heldout_samples", heldout.size()},
          {"fingerprint", fmt::format("{:016x}", fingerprint)}};
}

CalibrationData LoadCalibrationData(const CalibrationRequest& request, const Tokenizer& tokenizer,
                                    int64_t vocab_size) {
  const std::vector<Json> rows = ReadColumn(request.source, request.text_column);
  RowEncoder encoder(request, tokenizer, vocab_size);
  CalibrationData data;
  data.num_rows = static_cast<int64_t>(rows.size());
  for (const int64_t row : OrderOfRows(data.num_rows, request)) {
    const bool is_full = static_cast<int64_t>(data.samples.size()) == request.num_samples;
    if (is_full && static_cast<int64_t>(data.heldout.size()) == request.num_heldout_samples) break;
    std::vector<int32_t> ids = encoder.Encode(rows[static_cast<size_t>(row)], row);
    if (ids.empty()) {
      ++data.num_empty_rows;
    } else if (!is_full) {
      AddSample(std::move(ids), row, data);
    } else if (ids.size() >= 2) {
      HashIds(ids, data.samples.size() + data.heldout.size(), data);
      data.heldout.push_back(std::move(ids));
    }
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
