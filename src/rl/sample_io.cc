#include "rl/sample_io.h"

#include <cstring>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

constexpr int kFormatVersion = 1;

template <class T>
Json Binary(const std::vector<T>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return Json::binary(std::move(bytes));
}

template <class T>
std::vector<T> FromBinary(const Json& json) {
  const std::vector<uint8_t>& bytes = json.get_binary();
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

Json PromptToJson(const Prompt& prompt) {
  return {{"id", prompt.id},
          {"messages", prompt.messages},
          {"label", prompt.label},
          {"metadata", prompt.metadata},
          {"tools", prompt.tools}};
}

Prompt PromptFromJson(const Json& json) {
  return {.id = json.at("id").get<int64_t>(),
          .messages = json.at("messages"),
          .label = json.at("label").get<std::string>(),
          .metadata = json.at("metadata"),
          .tools = json.at("tools")};
}

[[noreturn]] void NotADump(const std::filesystem::path& path, const std::string& found) {
  throw Error(ErrorCode::kData, {.where = path.string(),
                                 .what = "not a dump of a rollout",
                                 .expected = "what --save-debug-rollout-data writes",
                                 .found = found});
}

}  // namespace

Json SampleToJson(const Sample& sample) {
  const Completion& completion = sample.completion;
  const RoutingRecord& routing = completion.routed_experts;
  return {{"draw_key", sample.draw_key},
          {"token_ids", Binary(completion.token_ids)},
          {"logprobs", Binary(completion.rollout_logprobs)},
          {"routing", Binary(routing.ids_TLK)},
          {"routing_shape",
           {routing.num_tokens, routing.num_moe_layers, routing.num_experts_per_tok,
            routing.bytes_per_id}},
          {"finish_reason", static_cast<int>(completion.finish_reason)},
          {"policy_versions", {completion.policy_version_min, completion.policy_version_max}},
          {"reward", sample.reward.reward},
          {"verdict", static_cast<int>(sample.reward.verdict)},
          {"answer",
           Binary(std::vector<char>(sample.reward.answer.begin(), sample.reward.answer.end()))}};
}

void SampleFromJson(const Json& state, const RolloutText& text, Sample& sample) {
  sample.draw_key = state.at("draw_key").get<uint64_t>();
  Completion& completion = sample.completion;
  completion.token_ids = FromBinary<int32_t>(state.at("token_ids"));
  completion.rollout_logprobs = FromBinary<float>(state.at("logprobs"));
  RoutingRecord& routing = completion.routed_experts;
  routing.ids_TLK = FromBinary<uint8_t>(state.at("routing"));
  routing.num_tokens = state.at("routing_shape").at(0).get<int64_t>();
  routing.num_moe_layers = state.at("routing_shape").at(1).get<int64_t>();
  routing.num_experts_per_tok = state.at("routing_shape").at(2).get<int64_t>();
  routing.bytes_per_id = state.at("routing_shape").at(3).get<int64_t>();
  completion.finish_reason = static_cast<FinishReason>(state.at("finish_reason").get<int>());
  completion.policy_version_min = state.at("policy_versions").at(0).get<int64_t>();
  completion.policy_version_max = state.at("policy_versions").at(1).get<int64_t>();
  sample.reward.reward = state.at("reward").get<double>();
  sample.reward.verdict = static_cast<RewardVerdict>(state.at("verdict").get<int>());
  const std::vector<char> answer = FromBinary<char>(state.at("answer"));
  sample.reward.answer.assign(answer.begin(), answer.end());
  sample.response_text = ResponseText(text, completion);
}

void SaveRolloutData(const std::filesystem::path& path, int64_t rollout,
                     std::span<const Sample> samples) {
  Json list = Json::array();
  for (const Sample& sample : samples) {
    Json json = SampleToJson(sample);
    json["group_id"] = sample.group_id;
    json["prompt"] = PromptToJson(sample.prompt);
    json["prompt_ids"] = Binary(sample.prompt_ids);
    json["num_offpolicy_tokens"] = sample.completion.num_offpolicy_tokens;
    list.push_back(std::move(json));
  }
  const std::vector<uint8_t> bytes = Json::to_cbor(
      {{"format_version", kFormatVersion}, {"rollout", rollout}, {"samples", std::move(list)}});
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path());
  WriteFileAtomic(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

std::vector<Sample> LoadRolloutData(const std::filesystem::path& path, const RolloutText& text) {
  const Json json = Json::from_cbor(ReadFile(path), true, false);
  if (json.is_discarded()) NotADump(path, "no CBOR");
  std::vector<Sample> samples;
  try {
    const int version = json.at("format_version").get<int>();
    if (version != kFormatVersion) NotADump(path, fmt::format("format version {}", version));
    for (const Json& saved : json.at("samples")) {
      Sample sample;
      sample.id = static_cast<int64_t>(samples.size());
      sample.group_id = saved.at("group_id").get<int64_t>();
      sample.prompt = PromptFromJson(saved.at("prompt"));
      sample.prompt_ids = FromBinary<int32_t>(saved.at("prompt_ids"));
      SampleFromJson(saved, text, sample);
      sample.completion.num_offpolicy_tokens = saved.at("num_offpolicy_tokens").get<int64_t>();
      samples.push_back(std::move(sample));
    }
  } catch (const nlohmann::json::exception& error) {
    NotADump(path, error.what());
  }
  if (samples.empty()) NotADump(path, "no samples");
  return samples;
}

std::string WithRolloutId(std::string path, int64_t rollout) {
  constexpr std::string_view kMark = "{rollout_id}";
  const size_t at = path.find(kMark);
  return at == std::string::npos ? path
                                 : path.replace(at, kMark.size(), fmt::format("{}", rollout));
}

}  // namespace quatrain
