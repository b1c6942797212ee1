// From prompts to samples: render, tokenise, generate, decode, score.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "rl/reward.h"
#include "rl/sample.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace quatrain {

struct RolloutOptions {
  SamplingParams sampling;  // seed is replaced by one per sample
  int64_t n_samples_per_prompt = 1;
  uint64_t seed = 42;
  bool apply_chat_template = false;  // string prompts are then one user message
  bool record_routing = false;
};

// Called after every engine step with the number of finished samples.
using RolloutProgress = std::function<void(int64_t num_finished)>;

// What a rollout needs from the model's directory; borrowed.
struct RolloutText {
  const Tokenizer& tokenizer;
  const ChatTemplate* chat_template =
      nullptr;  // null: only string prompts without apply_chat_template
};

// The ids a prompt starts from. Error kData naming the prompt if it holds messages and there is no
// template.
std::vector<int32_t> PromptIds(const RolloutText& text, const Prompt& prompt,
                               const RolloutOptions& options);

// What the completion says, special tokens shown, without the token that stopped it.
std::string ResponseText(const RolloutText& text, const Completion& completion);

// Fills the sample's completion and response_text.
void TakeOutput(const RolloutText& text, RequestOutput output, Sample& sample);

// Sets the reward of each, side by side where the reward waits for others. Errors of Score.
void ScoreSamples(const Reward& reward, std::span<Sample* const> samples);

// What the engine needs to go on with a sample from what it has, under an id of the caller's.
Request RequestOf(const Sample& sample, int64_t id, const RolloutOptions& options);

// The first of the unfinished samples (FinishReason::kAbort) for which the model fails when it goes
// on alone: "row 3 of the prompts, sample 0, token 5 of the response:". Takes what is left in the
// engine.
std::string NameCulprit(Engine& engine, std::span<const Sample> samples,
                        const RolloutOptions& options);

// Error kData of GenerateSamples where a number that the model computes is not finite: names the
// sample, and has all of them with what they had until then.
class FailedGeneration : public Error {
 public:
  FailedGeneration(const std::string& message, std::vector<Sample> samples)
      : Error(ErrorCode::kData, message), samples_(std::move(samples)) {}
  const std::vector<Sample>& samples() const { return samples_; }

 private:
  std::vector<Sample> samples_;
};

// Samples in the order of prompts, n_samples_per_prompt each, rewards set. A sample's tokens depend
// on the weights, its prompt and (seed, stream, its index) only; `stream` is the rollout's number.
// Error kInterrupted on Ctrl-C: nothing of the rollout counts then; FailedGeneration.
std::vector<Sample> GenerateSamples(Engine& engine, const RolloutText& text, const Reward& reward,
                                    std::vector<Prompt> prompts, const RolloutOptions& options,
                                    int64_t stream, const RolloutProgress& progress);

}  // namespace quatrain
