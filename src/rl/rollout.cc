#include "rl/rollout.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <future>

#include "base/interrupt.h"
#include "base/random.h"

namespace quatrain {
namespace {

// A string prompt becomes one user message.
Json MessagesOf(const Prompt& prompt) {
  if (prompt.messages.is_array()) return prompt.messages;
  return Json::array({{{"role", "user"}, {"content", prompt.messages}}});
}

Json ToolsOf(const Prompt& prompt) {
  if (!prompt.tools.is_null()) return prompt.tools;
  if (prompt.metadata.is_object() && prompt.metadata.contains("tools"))
    return prompt.metadata["tools"];
  return nullptr;
}

RewardResult ScoreOne(const Reward& reward, const Sample& sample) {
  return reward.Score({sample.response_text, sample.prompt.label, sample.prompt.messages,
                       sample.prompt.metadata, sample.draw_key});
}

}  // namespace

std::string ResponseText(const RolloutText& text, const Completion& completion) {
  // Rewards look for </think>, which may be a special token; the stop token is no text.
  std::span<const int32_t> ids = completion.token_ids;
  if (completion.finish_reason == FinishReason::kStop && !ids.empty())
    ids = ids.first(ids.size() - 1);
  return text.tokenizer.Decode(ids, SpecialTokens::kShow);
}

void TakeOutput(const RolloutText& text, RequestOutput output, Sample& sample) {
  Completion& completion = sample.completion;
  completion.token_ids = std::move(output.token_ids);
  completion.rollout_logprobs = std::move(output.logprobs);
  completion.routed_experts = std::move(output.routed_experts);
  completion.finish_reason = output.finish_reason;
  completion.policy_version_min = output.policy_version_min;
  completion.policy_version_max = output.policy_version_max;
  sample.response_text = ResponseText(text, completion);
}

void ScoreSamples(const Reward& reward, std::span<Sample* const> samples) {
  const size_t num_threads =
      std::min(samples.size(), static_cast<size_t>(std::max(reward.concurrency(), 1)));
  if (num_threads <= 1) {
    for (Sample* sample : samples) sample->reward = ScoreOne(reward, *sample);
    return;
  }
  // Threads of their own: these wait for a server, the pool's compute.
  std::atomic<size_t> next = 0;
  std::vector<std::future<void>> workers;
  for (size_t i = 0; i < num_threads; ++i) {
    workers.push_back(std::async(std::launch::async, [&] {
      for (size_t at = next++; at < samples.size(); at = next++)
        samples[at]->reward = ScoreOne(reward, *samples[at]);
    }));
  }
  std::exception_ptr failure;
  for (std::future<void>& worker : workers) {
    try {
      worker.get();
    } catch (...) {  // all must have ended before the first failure is passed on
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

std::vector<int32_t> PromptIds(const RolloutText& text, const Prompt& prompt,
                               const RolloutOptions& options) {
  if (!options.apply_chat_template) {
    if (prompt.messages.is_string())
      return text.tokenizer.Encode(prompt.messages.get<std::string>());
    throw Error(ErrorCode::kData, {.where = fmt::format("prompt {}", prompt.id),
                                   .what = "the prompt is a list of messages",
                                   .expected = "text, without --apply-chat-template",
                                   .todo = "Pass --apply-chat-template"});
  }
  QT_CHECK(text.chat_template != nullptr, "no chat template");
  const ChatRenderOptions render{ToolsOf(prompt), nullptr, true};
  return text.tokenizer.Encode(text.chat_template->Render(MessagesOf(prompt), render));
}

Request RequestOf(const Sample& sample, int64_t id, const RolloutOptions& options) {
  Request request;
  request.id = id;
  request.prompt_ids = sample.prompt_ids;
  request.resumed_ids = sample.completion.token_ids;
  request.resumed_logprobs = sample.completion.rollout_logprobs;
  request.resumed_policy_version = sample.completion.policy_version_min;
  request.sampling = options.sampling;
  request.sampling.seed = sample.draw_key;
  request.return_routed_experts = options.record_routing;
  return request;
}

std::string NameCulprit(Engine& engine, std::span<const Sample> samples,
                        const RolloutOptions& options) {
  for (const Sample& sample : samples) {
    if (sample.completion.finish_reason != FinishReason::kAbort) continue;
    Request request = RequestOf(sample, 0, options);
    request.sampling.max_new_tokens = sample.response_length() + 1;
    engine.Add(std::move(request));
    try {
      while (engine.HasUnfinished()) engine.Step();
    } catch (const Error&) {  // the same failure, of this sample alone
      engine.TakeUnfinished();
      return fmt::format(
          "row {} of the prompts, sample {}, token {} of the response:", sample.prompt.id + 1,
          sample.id % options.n_samples_per_prompt, sample.response_length());
    }
  }
  return "no sample alone, but their batch:";
}

namespace {

// The engine's message names tensor and row of its batch.
std::vector<RequestOutput> StepOrName(Engine& engine, const RolloutText& text,
                                      const RolloutOptions& options, std::vector<Sample>& samples) {
  try {
    return engine.Step();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kData) throw;
    for (RequestOutput& output : engine.TakeUnfinished())
      TakeOutput(text, std::move(output), samples[static_cast<size_t>(output.id)]);
    const std::string culprit = NameCulprit(engine, samples, options);
    throw FailedGeneration(fmt::format("{} {}", culprit, error.what()), std::move(samples));
  }
}

}  // namespace

std::vector<Sample> GenerateSamples(Engine& engine, const RolloutText& text, const Reward& reward,
                                    std::vector<Prompt> prompts, const RolloutOptions& options,
                                    int64_t stream, const RolloutProgress& progress) {
  std::vector<Sample> samples;
  for (size_t group = 0; group < prompts.size(); ++group) {
    const std::vector<int32_t> prompt_ids = PromptIds(text, prompts[group], options);
    for (int64_t i = 0; i < options.n_samples_per_prompt; ++i) {
      Sample sample;
      sample.id = static_cast<int64_t>(samples.size());
      sample.group_id = static_cast<int64_t>(group);
      sample.prompt = prompts[group];
      sample.prompt_ids = prompt_ids;
      sample.draw_key =
          HashBits(options.seed, static_cast<uint64_t>(stream), static_cast<uint64_t>(sample.id));
      sample.completion.finish_reason = FinishReason::kAbort;
      samples.push_back(std::move(sample));
    }
  }
  for (const Sample& sample : samples) engine.Add(RequestOf(sample, sample.id, options));
  int64_t num_finished = 0;
  while (engine.HasUnfinished()) {
    std::vector<Sample*> finished;
    for (RequestOutput& output : StepOrName(engine, text, options, samples)) {
      Sample& sample = samples[static_cast<size_t>(output.id)];
      TakeOutput(text, std::move(output), sample);
      finished.push_back(&sample);
    }
    ScoreSamples(reward, finished);
    num_finished += static_cast<int64_t>(finished.size());
    if (progress) progress(num_finished);
    if (InterruptRequested()) {
      throw Error(ErrorCode::kInterrupted, "interrupted while generating; this rollout is dropped");
    }
  }
  return samples;
}

}  // namespace quatrain
