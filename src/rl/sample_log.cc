#include "rl/sample_log.h"

#include <algorithm>
#include <cmath>

#include "text/utf8.h"

namespace quatrain {
namespace {

// Of the first character of `bytes`, as its first byte says; 1 for a byte that begins none.
size_t CharacterLength(std::string_view bytes) {
  const auto first = static_cast<unsigned char>(bytes[0]);
  return first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC0 ? 2 : 1;
}

// Bytes at the end of `bytes` that begin a character which they do not finish.
size_t UnfinishedTail(std::string_view bytes) {
  for (size_t length = 1; length <= 3 && length <= bytes.size(); ++length) {
    const std::string_view tail = bytes.substr(bytes.size() - length);
    const bool is_continuation = (static_cast<unsigned char>(tail[0]) & 0xC0) == 0x80;
    if (!is_continuation) return CharacterLength(tail) > length ? length : 0;
  }
  return 0;
}

// [T] of a batch -> the tokens of its sequence s behind the prompt.
std::vector<float> ResponsePart(const std::vector<float>& values_T, const TrainBatch& batch,
                                size_t s, int64_t num_prompt_tokens) {
  if (values_T.empty()) return {};
  return {values_T.begin() + batch.cu_seqlens[s] + num_prompt_tokens,
          values_T.begin() + batch.cu_seqlens[s + 1]};
}

double SixDecimals(float value) { return std::round(static_cast<double>(value) * 1e6) / 1e6; }

}  // namespace

TrainedTokens TrainedTokensOf(const std::vector<std::vector<TrainBatch>>& steps, int64_t sample_id,
                              int64_t num_prompt_tokens) {
  for (const std::vector<TrainBatch>& step : steps) {
    for (const TrainBatch& batch : step) {
      const auto found = std::find(batch.sample_ids_S.begin(), batch.sample_ids_S.end(), sample_id);
      if (found == batch.sample_ids_S.end()) continue;
      const auto s = static_cast<size_t>(found - batch.sample_ids_S.begin());
      return {ResponsePart(batch.old_logprobs_T, batch, s, num_prompt_tokens),
              ResponsePart(batch.advantages_T, batch, s, num_prompt_tokens)};
    }
  }
  return {};
}

std::vector<std::string> TokenTexts(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::vector<std::string> texts;
  std::string bytes;
  for (size_t i = 0; i < ids.size(); ++i) {
    bytes += tokenizer.TokenBytes(ids[i]);
    const size_t kept = i + 1 < ids.size() ? UnfinishedTail(bytes) : 0;
    texts.push_back(ReplaceInvalidUtf8(bytes.substr(0, bytes.size() - kept)));
    bytes.erase(0, bytes.size() - kept);
  }
  return texts;
}

Json SampleRow(int64_t rollout, const Sample& sample, const Tokenizer& tokenizer,
               const TrainedTokens& trained) {
  const Completion& completion = sample.completion;
  Json row = {{"rollout", rollout},
              {"prompt", tokenizer.Decode(sample.prompt_ids)},
              {"response", sample.response_text},
              {"label", sample.prompt.label},
              {"reward", sample.reward.reward},
              {"verdict", std::string(RewardVerdictName(sample.reward.verdict))},
              {"advantage", sample.advantage},
              {"response_length", sample.response_length()},
              {"truncated", completion.finish_reason == FinishReason::kLength}};
  if (sample.num_masked_tokens > 0) row["num_masked_tokens"] = sample.num_masked_tokens;
  row["tokens"] = TokenTexts(tokenizer, completion.token_ids);
  Json logprobs = Json::array(), differences = Json::array();
  for (const float logprob : completion.rollout_logprobs) logprobs.push_back(SixDecimals(logprob));
  row["rollout_logprobs"] = std::move(logprobs);
  const auto first = static_cast<size_t>(sample.num_masked_tokens);
  if (trained.old_logprobs.size() == completion.rollout_logprobs.size()) {
    for (size_t i = 0; i < trained.old_logprobs.size(); ++i) {
      // Masked tokens are not scored.
      differences.push_back(i < first ? 0.0f
                                      : trained.old_logprobs[i] - completion.rollout_logprobs[i]);
    }
    row["logprob_differences"] = std::move(differences);
  }
  const std::vector<float>& advantages = trained.advantages;
  const bool is_by_token =
      advantages.size() > first &&
      std::any_of(advantages.begin() + static_cast<std::ptrdiff_t>(first), advantages.end(),
                  [&](float advantage) { return advantage != advantages[first]; });
  if (is_by_token) row["advantages"] = advantages;
  return row;
}

}  // namespace quatrain
