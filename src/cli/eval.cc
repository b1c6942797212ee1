#include "cli/eval.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/file.h"
#include "base/metrics.h"
#include "base/progress.h"
#include "cli/loaded_model.h"
#include "cli/option_checks.h"
#include "cli/reward_options.h"
#include "rl/evaluate.h"

namespace quatrain {
namespace {

struct EvalCommandArgs {
  std::vector<std::string> models;  // [NAME=]DIR
  std::vector<std::string> prompt_data;
  std::string input_key = "prompt";
  std::string label_key = "label";
  RewardOptions reward;
  bool apply_chat_template = true;
  double temperature = 0.8;
  double top_p = 1.0;
  int64_t n_samples = 4;
  int64_t max_response_len = 256;
  uint64_t seed = 42;
  std::string output;
  int threads = 0;
};

struct NamedModel {
  std::string name, directory;
};

NamedModel ParseModel(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals != std::string::npos && !std::filesystem::exists(text)) {
    return {text.substr(0, equals), text.substr(equals + 1)};
  }
  return {text, text};
}

// One row: greedy on every prompt, then n samples at the temperature.
Json EvaluateModel(const EvalCommandArgs& args, const NamedModel& named,
                   const std::vector<EvalSet>& sets, ThreadPool& pool) {
  const LoadedModel model(named.directory, "bfloat16");
  Engine engine({pool}, model.decoder, {});
  std::optional<ChatTemplate> chat_template;
  if (args.apply_chat_template) chat_template.emplace(ChatTemplate::Load(named.directory));
  const RolloutText text{model.tokenizer, chat_template ? &*chat_template : nullptr};
  const std::unique_ptr<Reward> reward = MakeReward(args.reward);
  RolloutOptions options;
  options.sampling.max_new_tokens = args.max_response_len;
  options.sampling.stop_token_ids = model.stop_token_ids;
  options.sampling.top_p = static_cast<float>(args.top_p);
  options.seed = args.seed;
  options.apply_chat_template = args.apply_chat_template;
  Json row = {{"model", named.name},
              {"format", model.checkpoint.scheme() ? model.checkpoint.scheme()->Name() : "BF16"}};
  for (const EvalSet& set : sets) {
    const auto num_prompts = static_cast<int64_t>(set.prompts.size());
    Progress progress(fmt::format("eval {}", named.name), num_prompts * (1 + args.n_samples),
                      "samples");
    options.sampling.temperature = 0.0f;
    options.n_samples_per_prompt = 1;
    const EvalResult greedy =
        Evaluate(engine, text, *reward, set, options, [&](int64_t done) { progress.Update(done); });
    row["greedy_accuracy"] = greedy.accuracy;
    row["greedy_standard_error"] = greedy.standard_error;
    if (args.n_samples > 0) {
      options.sampling.temperature = static_cast<float>(args.temperature);
      options.n_samples_per_prompt = args.n_samples;
      const EvalResult sampled = Evaluate(engine, text, *reward, set, options, [&](int64_t done) {
        progress.Update(num_prompts + done);
      });
      row["sampled_accuracy"] = sampled.accuracy;
      row["sampled_standard_error"] = sampled.standard_error;
      row["temperature"] = args.temperature;
      row["n_samples"] = args.n_samples;
    }
    row["data"] = set.name;
    row["num_prompts"] = num_prompts;
    row["response_len_mean"] = greedy.response_len_mean;
    row["truncated_ratio"] = greedy.truncated_ratio;
  }
  return row;
}

void PrintTable(const EvalCommandArgs& args, const std::vector<Json>& rows) {
  fmt::print("{:<24} {:<12} {:>16} {:>16} {:>8}\n", "model", "weights", "greedy",
             fmt::format("T={:g} x{}", args.temperature, args.n_samples), "length");
  for (const Json& row : rows) {
    const auto percent = [&](const char* key) {
      const std::string accuracy = std::string(key) + "_accuracy";
      if (!row.contains(accuracy)) return std::string("-");
      return fmt::format("{:.1f} % +- {:.1f}", 100.0 * row[accuracy].get<double>(),
                         100.0 * row[std::string(key) + "_standard_error"].get<double>());
    };
    fmt::print("{:<24} {:<12} {:>16} {:>16} {:>8.1f}\n", row["model"].get<std::string>(),
               row["format"].get<std::string>(), percent("greedy"), percent("sampled"),
               row["response_len_mean"].get<double>());
  }
  std::fflush(stdout);
}

void RunEval(const EvalCommandArgs& args) {
  if (!args.output.empty()) CheckCanWrite(args.output);
  if (args.label_key.empty()) {
    throw Error(ErrorCode::kUsage, {.where = "--label-key",
                                    .what = "accuracy needs the right answers",
                                    .expected = "the key of the label in --prompt-data",
                                    .found = "none"});
  }
  PromptDatasetOptions data;
  data.input_key = args.input_key;
  data.label_key = args.label_key;
  const std::vector<EvalSet> sets = ReadEvalSets(args.prompt_data, data);
  if (sets.size() != 1) {
    throw Error(ErrorCode::kUsage, {.where = "--prompt-data",
                                    .what = "one data set at a time",
                                    .expected = "[NAME] PATH",
                                    .found = fmt::format("{} sets", sets.size())});
  }
  // A model that cannot be opened is found before the first minute is spent.
  for (const std::string& model : args.models) Checkpoint(ParseModel(model).directory);
  ThreadPool pool(args.threads);
  std::vector<Json> rows;
  for (const std::string& model : args.models)
    rows.push_back(EvaluateModel(args, ParseModel(model), sets, pool));
  PrintTable(args, rows);
  if (!args.output.empty()) WriteFileAtomic(args.output, Json(rows).dump(2) + "\n");
}

}  // namespace

void AddEvalCommand(CLI::App& app) {
  auto args = std::make_shared<EvalCommandArgs>();
  CLI::App* command = app.add_subcommand(
      "eval", "Greedy and sampled accuracy of models on labelled prompts, in one table");
  command->footer(
      "Example: quatrain eval --model bf16=examples/models/tiny-qwen3-moe --prompt-data "
      "examples/data/arithmetic/eval.jsonl");
  command->add_option("--model", args->models, "[NAME=]DIR, several times")->required();
  command->add_option("--prompt-data", args->prompt_data, "[NAME] PATH")->required();
  command->add_option("--input-key", args->input_key, "key of the prompt")->capture_default_str();
  command->add_option("--label-key", args->label_key, "key of the right answer")
      ->capture_default_str();
  AddRewardOptions(*command, &args->reward);
  command
      ->add_option("--apply-chat-template", args->apply_chat_template,
                   "render prompts by the model's template")
      ->capture_default_str();
  command->add_option("--temperature", args->temperature, "of the sampled column")
      ->check(Positive())
      ->capture_default_str();
  command->add_option("--top-p", args->top_p, "of the sampled column")
      ->check(Between(1e-6, 1.0))
      ->capture_default_str();
  command->add_option("--n-samples", args->n_samples, "samples a prompt; 0: greedy only")
      ->check(Between(0, 4096))
      ->capture_default_str();
  command->add_option("--max-response-len", args->max_response_len, "tokens")
      ->check(Positive())
      ->capture_default_str();
  command->add_option("--seed", args->seed, "of the draws")->capture_default_str();
  command->add_option("--output", args->output, "also write the rows as JSON");
  AddThreadsOption(*command, &args->threads);
  command->callback([args] { RunEval(*args); });
}

}  // namespace quatrain
