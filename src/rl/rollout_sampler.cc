#include "rl/rollout_sampler.h"

#include <algorithm>

#include "base/interrupt.h"
#include "base/random.h"
#include "rl/sample_io.h"

namespace quatrain {
namespace {

constexpr int64_t kFewestFilteredInARow = 64;

bool IsFinished(const Sample& sample) {
  return sample.completion.finish_reason != FinishReason::kAbort;
}

}  // namespace

// One call of Next under way.
struct RolloutSampler::Rollout {
  int64_t number = 0;
  int64_t num_begun = 0;  // samples whose draws are of this rollout
  std::vector<Group> running, accepted, spare;
  int64_t num_finished_samples = 0;
  int64_t num_filtered_in_a_row = 0;
};

void SamplerStats::AppendTo(Json& row) const {
  row["rollout/groups_resumed"] = num_groups_resumed;
  row["rollout/groups_filtered"] = num_groups_filtered;
  row["rollout/groups_kept"] = num_groups_kept;
  row["rollout/samples_stopped"] = num_samples_stopped;
  row["rollout/offpolicy_tokens"] = num_offpolicy_tokens;
}

RolloutSampler::RolloutSampler(Engine& engine, const RolloutText& text, const Reward& reward,
                               const SamplerOptions& options)
    : engine_(engine), text_(text), reward_(reward), options_(options) {
  QT_CHECK(options.rollout_batch_size > 0 &&
           options.over_sampling_batch_size >= options.rollout_batch_size);
}

RolloutSampler::Group RolloutSampler::Begin(Prompt prompt, Rollout& rollout) {
  Group group;
  group.serial = next_serial_++;
  const std::vector<int32_t> prompt_ids = PromptIds(text_, prompt, options_.rollout);
  for (int64_t i = 0; i < options_.rollout.n_samples_per_prompt; ++i) {
    Sample sample;
    sample.prompt = prompt;
    sample.prompt_ids = prompt_ids;
    sample.draw_key = HashBits(options_.rollout.seed, static_cast<uint64_t>(rollout.number),
                               static_cast<uint64_t>(rollout.num_begun++));
    sample.completion.finish_reason = FinishReason::kAbort;
    group.samples.push_back(std::move(sample));
  }
  return group;
}

// A request's id says where its sample is: serial of the group times the size of groups, plus
// place.
void RolloutSampler::Submit(PromptDataset& dataset, Rollout& rollout) {
  for (int64_t i = 0; i < options_.over_sampling_batch_size; ++i) {
    if (kept_.empty()) {
      rollout.running.push_back(Begin(std::move(dataset.Next(1)[0]), rollout));
    } else {
      ++stats_.num_groups_resumed;
      rollout.running.push_back(std::move(kept_.front()));
      kept_.pop_front();
    }
    const Group& group = rollout.running.back();
    for (size_t place = 0; place < group.samples.size(); ++place) {
      if (IsFinished(group.samples[place])) continue;
      const int64_t id =
          group.serial * static_cast<int64_t>(group.samples.size()) + static_cast<int64_t>(place);
      engine_.Add(RequestOf(group.samples[place], id, options_.rollout));
    }
  }
}

void RolloutSampler::KeepFailed(Rollout& rollout) {
  const int64_t size = options_.rollout.n_samples_per_prompt;
  for (RequestOutput& output : engine_.TakeUnfinished()) {
    for (Group& group : rollout.running) {
      if (group.serial != output.id / size) continue;
      TakeOutput(text_, std::move(output), group.samples[static_cast<size_t>(output.id % size)]);
      break;
    }
  }
  failed_.clear();
  for (std::vector<Group>* groups : {&rollout.accepted, &rollout.spare, &rollout.running}) {
    for (Group& group : *groups) {
      for (Sample& sample : group.samples) {
        sample.id = static_cast<int64_t>(failed_.size());
        sample.group_id = sample.id / size;
        failed_.push_back(std::move(sample));
      }
    }
  }
}

// The engine's message names tensor and row of its batch; a second look, sample by sample, names
// the sample.
std::vector<RequestOutput> RolloutSampler::RunEngine(Rollout& rollout) {
  try {
    return engine_.Step();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kData) throw;
    KeepFailed(rollout);
    const std::string culprit = NameCulprit(engine_, failed_, options_.rollout);
    throw Error(error.code(), fmt::format("{} {}", culprit, error.what()));
  }
}

void RolloutSampler::Step(Rollout& rollout) {
  std::vector<Sample*> finished;
  const int64_t size = options_.rollout.n_samples_per_prompt;
  for (RequestOutput& output : RunEngine(rollout)) {
    const auto group =
        std::find_if(rollout.running.begin(), rollout.running.end(),
                     [&](const Group& other) { return other.serial == output.id / size; });
    QT_CHECK(group != rollout.running.end(), "request {} of no group", output.id);
    Sample& sample = group->samples[static_cast<size_t>(output.id % size)];
    TakeOutput(text_, std::move(output), sample);
    ++group->num_finished;
    finished.push_back(&sample);
  }
  ScoreSamples(reward_, finished);
  rollout.num_finished_samples += static_cast<int64_t>(finished.size());
}

bool RolloutSampler::IsWorthTraining(const Group& group) const {
  if (options_.filter == GroupFilter::kNone) return true;
  std::vector<double> rewards;
  for (const Sample& sample : group.samples) rewards.push_back(sample.reward.reward);
  return HasNonzeroRewardStd(rewards);
}

// Takes the complete groups out of those that run.
void RolloutSampler::Judge(Rollout& rollout, const PromptDataset& dataset) {
  std::vector<Group> running;
  for (Group& group : rollout.running) {
    if (!group.IsComplete()) {
      running.push_back(std::move(group));
    } else if (static_cast<int64_t>(rollout.accepted.size()) == options_.rollout_batch_size) {
      rollout.spare.push_back(std::move(group));
    } else if (IsWorthTraining(group)) {
      rollout.accepted.push_back(std::move(group));
      rollout.num_filtered_in_a_row = 0;
    } else {
      ++stats_.num_groups_filtered;
      ++rollout.num_filtered_in_a_row;
    }
  }
  rollout.running = std::move(running);
  if (rollout.num_filtered_in_a_row > std::max(dataset.size(), kFewestFilteredInARow)) {
    throw Error(ErrorCode::kData,
                {.where = "--dynamic-sampling-filter-path",
                 .what = fmt::format("{} groups in a row had one reward for all of their samples",
                                     rollout.num_filtered_in_a_row),
                 .expected = "prompts that are sometimes solved",
                 .todo = "Check --rm-type and --label-key, take other prompts, raise "
                         "--n-samples-per-prompt or drop the filter"});
  }
}

// Ends the requests that are under way and keeps what is to be kept.
void RolloutSampler::Stop(Rollout& rollout) {
  const int64_t size = options_.rollout.n_samples_per_prompt;
  for (RequestOutput& output : engine_.TakeUnfinished()) {
    ++stats_.num_samples_stopped;
    for (Group& group : rollout.running) {
      if (group.serial != output.id / size) continue;
      TakeOutput(text_, std::move(output), group.samples[static_cast<size_t>(output.id % size)]);
      break;
    }
  }
  if (options_.stopped == StoppedGroups::kDrop) return;
  std::vector<Group> kept = std::move(rollout.running);
  std::move(rollout.spare.begin(), rollout.spare.end(), std::back_inserter(kept));
  std::move(kept_.begin(), kept_.end(), std::back_inserter(kept));
  std::sort(kept.begin(), kept.end(),
            [](const Group& a, const Group& b) { return a.serial < b.serial; });
  for (Group& group : kept) {
    for (Sample& sample : group.samples)
      sample.completion.num_offpolicy_tokens = sample.response_length();
  }
  kept_.assign(std::make_move_iterator(kept.begin()), std::make_move_iterator(kept.end()));
  stats_.num_groups_kept = num_kept();
}

std::vector<Sample> RolloutSampler::Next(PromptDataset& dataset, int64_t number,
                                         const RolloutProgress& progress) {
  const Json cursor = dataset.State();
  const std::deque<Group> kept = kept_;
  const int64_t serial = next_serial_;
  stats_ = {};
  Rollout rollout;
  rollout.number = number;
  const auto wanted = static_cast<size_t>(options_.rollout_batch_size);
  while (rollout.accepted.size() < wanted) {
    while (rollout.accepted.size() + rollout.running.size() < wanted) Submit(dataset, rollout);
    if (engine_.HasUnfinished()) Step(rollout);
    Judge(rollout, dataset);
    if (progress) progress(rollout.num_finished_samples);
    if (!InterruptRequested()) continue;
    engine_.TakeUnfinished();
    dataset.Restore(cursor);
    kept_ = kept;
    next_serial_ = serial;
    throw Error(ErrorCode::kInterrupted, "interrupted while generating; this rollout is dropped");
  }
  Stop(rollout);
  std::sort(rollout.accepted.begin(), rollout.accepted.end(),
            [](const Group& a, const Group& b) { return a.serial < b.serial; });
  std::vector<Sample> samples;
  for (size_t i = 0; i < rollout.accepted.size(); ++i) {
    for (Sample& sample : rollout.accepted[i].samples) {
      sample.id = static_cast<int64_t>(samples.size());
      sample.group_id = static_cast<int64_t>(i);
      stats_.num_offpolicy_tokens += sample.completion.num_offpolicy_tokens;
      samples.push_back(std::move(sample));
    }
  }
  return samples;
}

Json RolloutSampler::State() const {
  Json groups = Json::array();
  for (const Group& group : kept_) {
    Json samples = Json::array();
    for (const Sample& sample : group.samples) samples.push_back(SampleToJson(sample));
    groups.push_back({{"serial", group.serial},
                      {"prompt", group.samples[0].prompt.id},
                      {"samples", std::move(samples)}});
  }
  return {{"next_serial", next_serial_}, {"groups", std::move(groups)}};
}

void RolloutSampler::Restore(const Json& state, const PromptDataset& dataset) {
  const auto fail = [](const std::string& what) {
    throw Error(ErrorCode::kData, {.where = "partial rollouts of the checkpoint",
                                   .what = what,
                                   .todo = "Resume with the data and --n-samples-per-prompt that "
                                           "the checkpoint was trained with"});
  };
  try {
    next_serial_ = state.at("next_serial").get<int64_t>();
    kept_.clear();
    for (const Json& saved : state.at("groups")) {
      const auto prompt = saved.at("prompt").get<int64_t>();
      if (prompt < 0 || prompt >= dataset.size()) fail("a prompt is not in the data set");
      Group group;
      group.serial = saved.at("serial").get<int64_t>();
      for (const Json& saved_sample : saved.at("samples")) {
        Sample sample;
        sample.prompt = dataset.prompts()[static_cast<size_t>(prompt)];
        sample.prompt_ids = PromptIds(text_, sample.prompt, options_.rollout);
        SampleFromJson(saved_sample, text_, sample);
        sample.completion.num_offpolicy_tokens = sample.response_length();
        group.num_finished += IsFinished(sample) ? 1 : 0;
        group.samples.push_back(std::move(sample));
      }
      if (static_cast<int64_t>(group.samples.size()) != options_.rollout.n_samples_per_prompt)
        fail("a group has another number of samples");
      kept_.push_back(std::move(group));
    }
  } catch (const nlohmann::json::exception& error) {
    fail(error.what());
  }
}

}  // namespace quatrain
