#include "rl/prompt_dataset.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/log.h"
#include "base/random.h"
#include "io/rows.h"

namespace quatrain {
namespace {

std::string KeysOf(const Json& row) {
  std::string keys;
  for (const auto& item : row.items()) keys += (keys.empty() ? "'" : ", '") + item.key() + "'";
  return keys.empty() ? "none" : keys;
}

// What stands under `key`; `flag` is the option that named the key.
const Json& ValueOf(const Json& row, const std::string& key, const std::string& where,
                    const char* flag) {
  const auto found = row.find(key);
  if (found != row.end()) return *found;
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = fmt::format("no key '{}'", key),
                                 .expected = fmt::format("the key that {} names", flag),
                                 .found = "keys " + KeysOf(row),
                                 .todo = fmt::format("Pass {} with one of these", flag)});
}

bool IsMessage(const Json& message) {
  return message.is_object() && message.contains("role") && message["role"].is_string() &&
         message.contains("content");
}

bool IsPrompt(const Json& prompt) {
  if (prompt.is_string()) return !prompt.get_ref<const std::string&>().empty();
  if (!prompt.is_array() || prompt.empty()) return false;
  for (const Json& message : prompt) {
    if (!IsMessage(message)) return false;
  }
  return true;
}

std::string LabelOf(const Json& label, const std::string& where, const std::string& key) {
  std::string text;
  if (label.is_string()) text = label.get<std::string>();
  if (label.is_number()) text = DumpJson(label);
  if (!text.empty()) return text;
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = fmt::format("label under '{}' is unusable", key),
                                 .expected = "a non-empty string or a number",
                                 .found = DumpJson(label),
                                 .todo = "Mend or remove the row"});
}

Json ToolsOf(const Json& value, const std::string& where, const std::string& key) {
  if (value.is_null()) return nullptr;
  Json tools = value.is_string() ? ParseJson(value.get<std::string>(), where) : value;
  const bool is_list = tools.is_array() && std::all_of(tools.begin(), tools.end(),
                                                       [](const Json& t) { return t.is_object(); });
  if (is_list) return tools;
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = fmt::format("tools under '{}' are unusable", key),
                                 .expected = "an array of objects, or its JSON text",
                                 .found = DumpJson(value).substr(0, 80),
                                 .todo = "Mend the row, or pass --tool-key with another key"});
}

Prompt PromptOf(const Json& row, const std::string& where, const PromptDatasetOptions& options) {
  if (!row.is_object()) {
    throw Error(ErrorCode::kData, {.where = where,
                                   .what = "not a row of named values",
                                   .expected = "a JSON object",
                                   .found = row.type_name()});
  }
  Prompt prompt;
  prompt.messages = ValueOf(row, options.input_key, where, "--input-key");
  if (!IsPrompt(prompt.messages)) {
    throw Error(ErrorCode::kData,
                {.where = where,
                 .what = fmt::format("prompt under '{}' is unusable", options.input_key),
                 .expected = "a non-empty string, or an array of {\"role\", "
                             "\"content\"} objects",
                 .found = DumpJson(prompt.messages).substr(0, 80)});
  }
  if (!options.label_key.empty()) {
    const Json& label = ValueOf(row, options.label_key, where, "--label-key");
    prompt.label = LabelOf(label, where, options.label_key);
  }
  const auto metadata = row.find(options.metadata_key);
  if (metadata != row.end()) prompt.metadata = *metadata;
  const auto tools = row.find(options.tool_key);
  if (tools != row.end()) prompt.tools = ToolsOf(*tools, where, options.tool_key);
  return prompt;
}

}  // namespace

std::vector<Prompt> PromptsOfRows(const std::vector<Json>& rows, const std::string& where,
                                  const PromptDatasetOptions& options) {
  if (rows.empty()) {
    throw Error(ErrorCode::kData, {.where = where,
                                   .what = "the data set is empty",
                                   .expected = "at least one row",
                                   .todo = "Check the path; the file may have been cut"});
  }
  std::vector<Prompt> prompts;
  prompts.reserve(rows.size());
  for (const Json& row : rows) {
    const auto id = static_cast<int64_t>(prompts.size());
    prompts.push_back(PromptOf(row, fmt::format("{}, row {}", where, id + 1), options));
    prompts.back().id = id;
  }
  return prompts;
}

std::vector<Prompt> ReadPrompts(const std::filesystem::path& path,
                                const PromptDatasetOptions& options) {
  MalformedRows malformed;
  const std::vector<Json> rows = ReadJsonRows(path, options.max_malformed_fraction, &malformed);
  if (malformed.count > 0) {
    Log().warn("{}: {} malformed lines were skipped, {} rows are left; the first: {}",
               path.string(), malformed.count, rows.size(), malformed.first);
  }
  return PromptsOfRows(rows, path.string(), options);
}

PromptDataset::PromptDataset(std::vector<Prompt> prompts, const PromptDatasetOptions& options)
    : prompts_(std::move(prompts)), options_(options) {
  QT_CHECK(!prompts_.empty());
  StartEpoch(0);
}

void PromptDataset::StartEpoch(int64_t epoch) {
  epoch_ = epoch;
  position_ = 0;
  if (options_.order == PromptOrder::kShuffled) {
    order_ = Permutation(size(), options_.seed, static_cast<uint64_t>(epoch));
  } else {
    order_.resize(prompts_.size());
    std::iota(order_.begin(), order_.end(), 0);
  }
}

std::vector<Prompt> PromptDataset::Next(int64_t num_prompts) {
  std::vector<Prompt> batch;
  batch.reserve(static_cast<size_t>(num_prompts));
  for (int64_t i = 0; i < num_prompts; ++i) {
    if (position_ == size()) StartEpoch(epoch_ + 1);
    batch.push_back(prompts_[static_cast<size_t>(order_[static_cast<size_t>(position_++)])]);
  }
  return batch;
}

Json PromptDataset::State() const {
  return {{"num_prompts", size()},
          {"seed", options_.seed},
          {"is_shuffled", options_.order == PromptOrder::kShuffled},
          {"epoch", epoch_},
          {"position", position_}};
}

void PromptDataset::Restore(const Json& state) {
  const Json ours = State();
  for (const char* key : {"num_prompts", "seed", "is_shuffled"}) {
    if (state.contains(key) && state[key] == ours[key]) continue;
    throw Error(ErrorCode::kData, {.where = "data cursor of the checkpoint",
                                   .what = fmt::format("'{}' disagrees with this run", key),
                                   .expected = DumpJson(ours[key]),
                                   .found = state.contains(key) ? DumpJson(state[key]) : "nothing",
                                   .todo = "Resume with the --prompt-data, --rollout-shuffle and "
                                           "--rollout-seed that "
                                           "the checkpoint was trained with"});
  }
  const int64_t epoch = state.value("epoch", int64_t{-1});
  const int64_t position = state.value("position", int64_t{-1});
  if (epoch < 0 || position < 0 || position > size()) {
    throw Error(ErrorCode::kData, {.where = "data cursor of the checkpoint",
                                   .what = "epoch or position is out of range",
                                   .found = DumpJson(state)});
  }
  StartEpoch(epoch);
  position_ = position;
}

int64_t NumRollouts(int64_t num_prompts, int64_t rollout_batch_size, int64_t num_epoch) {
  QT_CHECK(rollout_batch_size > 0);
  if (rollout_batch_size > num_prompts) {
    throw Error(ErrorCode::kUsage,
                {.where = "--num-epoch",
                 .what = "an epoch is shorter than one rollout",
                 .expected = fmt::format("--rollout-batch-size of at most {}", num_prompts),
                 .found = fmt::format("{}", rollout_batch_size),
                 .todo = "Lower --rollout-batch-size or give --num-rollout instead"});
  }
  return num_prompts / rollout_batch_size * num_epoch;
}

}  // namespace quatrain
