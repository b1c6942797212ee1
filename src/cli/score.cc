#include "cli/score.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>

#include "cli/json_lines.h"
#include "cli/loaded_model.h"
#include "ops/logprob_ops.h"

namespace quatrain {
namespace {

struct ScoreArgs {
  std::string model;
  std::string dtype = "bfloat16";
  JsonLinesFiles files;
  bool routed_experts = false;
  int threads = 0;
};

std::vector<int32_t> IdsOf(const Json& row, const LoadedModel& model) {
  std::vector<int32_t> ids;
  if (row.is_object() && row.contains("ids")) {
    ids = TokenIdsOf(row["ids"], model.checkpoint.config().vocab_size, "ids");
  } else if (row.is_object() && row.contains("text") && row["text"].is_string()) {
    ids = EncodeFor(model, row["text"].get<std::string>());
  } else {
    throw Error(ErrorCode::kData, {.where = "ids, text",
                                   .what = "nothing to score",
                                   .expected = "{\"ids\": [...]} or {\"text\": \"...\"}"});
  }
  const int64_t context = model.checkpoint.config().max_position_embeddings;
  if (ids.size() < 2 || static_cast<int64_t>(ids.size()) > context) {
    throw Error(ErrorCode::kData, {.where = "ids",
                                   .what = "the length cannot be scored",
                                   .expected = fmt::format("2 to {} tokens", context),
                                   .found = fmt::format("{}", ids.size())});
  }
  return ids;
}

// [T, MoE layers, k] as nested lists.
Json NestedIds(const RoutedExperts& record) {
  Json tokens = Json::array();
  for (int64_t token = 0; token < record.num_tokens; ++token) {
    Json layers = Json::array();
    for (int64_t layer = 0; layer < record.num_moe_layers; ++layer) {
      const int32_t* ids = record.At(token, layer);
      layers.push_back(std::vector<int32_t>(ids, ids + record.num_experts_per_tok));
    }
    tokens.push_back(std::move(layers));
  }
  return tokens;
}

Json Score(const OpContext& ctx, const LoadedModel& model, const Json& row, bool routed_experts) {
  const std::vector<int32_t> ids = IdsOf(row, model);
  const auto num_predicted = static_cast<int64_t>(ids.size()) - 1;
  ForwardBatch batch = MakeVarlenBatch({ids});
  RoutedExperts record;
  if (routed_experts) batch.record = &record;
  const at::Tensor hidden_TD = model.decoder.Forward(ctx, batch);
  const std::span<const int32_t> targets = std::span<const int32_t>(ids).subspan(1);
  const TokenLogprobs scored =
      LmHeadLogprobs(ctx, hidden_TD.narrow(0, 0, num_predicted), model.decoder.LmHead(), targets,
                     1.0f, Entropy::kSkip);
  double sum = 0.0;
  for (const float logprob : scored.logprobs) sum += logprob;
  Json answer = {{"logprobs", scored.logprobs},
                 {"perplexity", std::exp(-sum / static_cast<double>(num_predicted))}};
  if (routed_experts) answer["routed_experts"] = NestedIds(record);
  return answer;
}

}  // namespace

void AddScoreCommand(CLI::App& app) {
  auto args = std::make_shared<ScoreArgs>();
  CLI::App* command =
      app.add_subcommand("score", "Log-probabilities and perplexity of given texts");
  command->footer(
      "Reads JSON lines {\"ids\": [...]} or {\"text\": \"...\"}; answers {\"logprobs\": [T - 1], "
      "\"perplexity\": p}.\n"
      "Example: echo '{\"text\": \"What is 2 + 2?\"}' | quatrain score --model "
      "examples/models/tiny-qwen3-moe");
  command->add_option("--model", args->model, "model directory, BF16 or INT4")->required();
  command->add_option("--input", args->files.input, "JSON lines; - is standard input")
      ->capture_default_str();
  command->add_option("--output", args->files.output, "file; - is standard output")
      ->capture_default_str();
  command->add_flag("--routed-experts", args->routed_experts,
                    "add the experts of every token, [T, MoE layers, k]");
  AddDtypeOption(*command, &args->dtype);
  AddThreadsOption(*command, &args->threads);
  command->callback([args] {
    CheckOutput(args->files.output);
    const LoadedModel model(args->model, args->dtype);
    if (args->routed_experts && model.checkpoint.config().num_experts == 0) {
      throw Error(ErrorCode::kUsage,
                  {.where = "--routed-experts", .what = args->model + " has no experts"});
    }
    ThreadPool pool(args->threads);
    const OpContext ctx{pool};
    AnswerJsonLines(args->files,
                    [&](const Json& row) { return Score(ctx, model, row, args->routed_experts); });
  });
}

}  // namespace quatrain
