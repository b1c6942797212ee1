#include "engine/engine.h"

#include <algorithm>
#include <optional>

#include "kernels/sample.h"

namespace quatrain {
namespace {

int64_t NumBlocks(const Decoder& decoder, const EngineConfig& config) {
  int64_t tokens = config.kv_cache_tokens;
  if (tokens == 0) {
    const int64_t per_token = KvCache::BytesPerToken(decoder.config(), decoder.activation_type());
    tokens = std::min(config.scheduler.max_num_seqs * decoder.config().max_position_embeddings,
                      config.kv_cache_bytes / per_token);
  }
  return std::max<int64_t>(1, tokens / config.block_size);
}

std::optional<FinishReason> ReasonToStop(const Sequence& sequence) {
  const SamplingParams& sampling = sequence.request.sampling;
  const std::vector<int32_t>& stops = sampling.stop_token_ids;
  if (sequence.num_generated() > 0 &&
      std::find(stops.begin(), stops.end(), sequence.token_ids.back()) != stops.end()) {
    return FinishReason::kStop;
  }
  if (sequence.num_generated() >= sampling.max_new_tokens) return FinishReason::kLength;
  return std::nullopt;
}

}  // namespace

Engine::Engine(const OpContext& ctx, const Decoder& decoder, const EngineConfig& config)
    : ctx_(ctx),
      decoder_(decoder),
      config_(config),
      cache_(decoder.config(), decoder.activation_type(), NumBlocks(decoder, config),
             config.block_size),
      scheduler_(config.scheduler, cache_) {}

void Engine::Add(Request request) {
  const std::string where = "request " + std::to_string(request.id);
  const int64_t length = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t context = decoder_.config().max_position_embeddings;
  if (length == 0 || length >= context) {
    throw Error(
        ErrorCode::kData,
        {.where = where,
         .what = length == 0 ? "the prompt is empty" : "the prompt is longer than the context",
         .expected = fmt::format("1 to {} tokens (max_position_embeddings {} less one)",
                                 context - 1, context),
         .found = fmt::format("{}", length)});
  }
  for (const int32_t id : request.prompt_ids) {
    if (id < 0 || id >= decoder_.config().vocab_size) {
      throw Error(ErrorCode::kData,
                  {.where = where,
                   .what = "a token id is outside the vocabulary",
                   .expected = fmt::format("0 to {}", decoder_.config().vocab_size - 1),
                   .found = fmt::format("{}", id)});
    }
  }
  SamplingParams& sampling = request.sampling;
  sampling.max_new_tokens = std::clamp<int64_t>(sampling.max_new_tokens, 1, context - length);
  const int64_t capacity = cache_.num_blocks() * cache_.block_size();
  if (length + sampling.max_new_tokens - 1 > capacity) {
    throw Error(ErrorCode::kResource,
                {.where = where,
                 .what = "the request is longer than the KV cache",
                 .expected = fmt::format("at most {} tokens", capacity),
                 .found = fmt::format("{}", length + sampling.max_new_tokens),
                 .todo = "Raise the KV cache's size or lower the response length"});
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->token_ids = request.prompt_ids;
  sequence->token_ids.insert(sequence->token_ids.end(), request.resumed_ids.begin(),
                             request.resumed_ids.end());
  sequence->logprobs = request.resumed_logprobs;
  QT_CHECK(request.resumed_ids.size() == request.resumed_logprobs.size());
  QT_CHECK(static_cast<int64_t>(request.resumed_ids.size()) < sampling.max_new_tokens);
  const bool is_resumed = !request.resumed_ids.empty();
  sequence->policy_version_min = is_resumed ? request.resumed_policy_version : policy_version_;
  sequence->request = std::move(request);
  sequence->policy_version_max = policy_version_;
  scheduler_.Add(std::move(sequence));
}

std::vector<RequestOutput> Engine::Step() {
  std::vector<RequestOutput> outputs;
  const std::vector<Sequence*> scheduled = scheduler_.Schedule();
  if (scheduled.empty()) return outputs;
  RunModel(scheduled);
  ++stats_.num_steps;
  for (Sequence* sequence : scheduled) {
    if (const auto reason = ReasonToStop(*sequence)) {
      outputs.push_back(OutputOf(scheduler_.Finish(sequence), *reason));
    }
  }
  return outputs;
}

void Engine::RunModel(const std::vector<Sequence*>& scheduled) {
  ForwardBatch batch;
  std::vector<int64_t> cache_rows, last_rows;
  std::vector<Sequence*> to_sample;
  for (Sequence* sequence : scheduled) {
    AttentionSequence attention;
    attention.q_begin = batch.num_tokens();
    attention.num_queries = sequence->num_scheduled_tokens;
    attention.num_keys = sequence->num_cached_tokens + sequence->num_scheduled_tokens;
    attention.block_table = sequence->block_table.data();
    batch.sequences.push_back(attention);
    for (int64_t position = sequence->num_cached_tokens; position < attention.num_keys;
         ++position) {
      batch.token_ids.push_back(sequence->token_ids[static_cast<size_t>(position)]);
      batch.positions.push_back(static_cast<int32_t>(position));
      cache_rows.push_back(cache_.RowOf(sequence->block_table, position));
    }
    if (attention.num_keys == sequence->num_tokens()) {
      last_rows.push_back(batch.num_tokens() - 1);
      to_sample.push_back(sequence);
    }
    if (sequence->num_scheduled_tokens > 1 || sequence->num_generated() == 0) {
      stats_.num_prompt_tokens += sequence->num_scheduled_tokens;
    }
  }
  PagedAttention attention(cache_, batch.sequences, std::move(cache_rows));
  batch.attention = &attention;
  RoutedExperts record;
  const bool wants_routing = decoder_.config().num_experts > 0 &&
                             std::any_of(scheduled.begin(), scheduled.end(), [](const Sequence* s) {
                               return s->request.return_routed_experts;
                             });
  if (wants_routing) batch.record = &record;
  const at::Tensor hidden_TD = decoder_.Forward(ctx_, batch);
  if (wants_routing) KeepRouting(scheduled, record);
  for (Sequence* sequence : scheduled) {
    sequence->num_cached_tokens += sequence->num_scheduled_tokens;
  }
  if (to_sample.empty()) return;
  const at::Tensor rows = at::tensor(last_rows, at::kLong);
  SampleNext(to_sample, hidden_TD.index_select(0, rows));
}

void Engine::KeepRouting(const std::vector<Sequence*>& scheduled, const RoutedExperts& record) {
  int64_t row = 0;
  for (Sequence* sequence : scheduled) {
    const int64_t count = sequence->num_scheduled_tokens;
    if (sequence->request.return_routed_experts) {
      sequence->routed_experts.Append(record, row, count, decoder_.config().num_experts);
    }
    row += count;
  }
}

void Engine::SampleNext(const std::vector<Sequence*>& sequences, const at::Tensor& hidden_SD) {
  const at::Tensor logits_SV = LinearLogits(ctx_, hidden_SD, decoder_.LmHead());
  std::vector<SamplingRow> rows;
  for (const Sequence* sequence : sequences) {
    const SamplingParams& sampling = sequence->request.sampling;
    rows.push_back({.temperature = sampling.temperature,
                    .top_p = sampling.top_p,
                    .top_k = sampling.top_k,
                    .seed = sampling.seed,
                    .position = sequence->num_tokens()});
  }
  std::vector<int32_t> tokens(rows.size());
  std::vector<float> logprobs(rows.size());
  SampleRows(ctx_.pool, DataOf<float>(logits_SV), rows, decoder_.config().vocab_size, tokens.data(),
             logprobs.data());
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& sequence = *sequences[i];
    if (sequence.num_generated() == 0) sequence.policy_version_min = policy_version_;
    sequence.policy_version_max = policy_version_;
    sequence.token_ids.push_back(tokens[i]);
    sequence.logprobs.push_back(logprobs[i]);
  }
  stats_.num_generated_tokens += static_cast<int64_t>(sequences.size());
}

std::vector<RequestOutput> Engine::TakeUnfinished() {
  std::vector<RequestOutput> outputs;
  for (std::unique_ptr<Sequence>& sequence : scheduler_.TakeAll()) {
    sequence->request.return_routed_experts = false;
    outputs.push_back(OutputOf(std::move(sequence), FinishReason::kAbort));
  }
  return outputs;
}

void Engine::UpdateWeights(int64_t policy_version) {
  policy_version_ = policy_version;
  scheduler_.PreemptAll();
}

EngineStats Engine::stats() const {
  EngineStats stats = stats_;
  stats.num_preemptions = scheduler_.num_preemptions();
  return stats;
}

RequestOutput Engine::OutputOf(std::unique_ptr<Sequence> sequence, FinishReason reason) const {
  RequestOutput output;
  output.id = sequence->request.id;
  output.token_ids.assign(
      sequence->token_ids.begin() + static_cast<int64_t>(sequence->request.prompt_ids.size()),
      sequence->token_ids.end());
  output.logprobs = std::move(sequence->logprobs);
  output.finish_reason = reason;
  output.policy_version_min = sequence->policy_version_min;
  output.policy_version_max = sequence->policy_version_max;
  if (sequence->request.return_routed_experts && decoder_.config().num_experts > 0) {
    output.routed_experts = std::move(sequence->routed_experts);
    QT_CHECK(output.routed_experts.num_tokens == sequence->num_tokens() - 1,
             "routing of {} tokens for the {} of request {}", output.routed_experts.num_tokens,
             sequence->num_tokens(), output.id);
  }
  return output;
}

}  // namespace quatrain
