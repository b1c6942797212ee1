#include "cli/generate.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <optional>

#include "base/interrupt.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/random.h"
#include "cli/json_lines.h"
#include "cli/loaded_model.h"
#include "cli/option_checks.h"

namespace quatrain {
namespace {

// All completions of a call are kept until they are written.
constexpr int64_t kMaxCompletions = 1 << 20;

struct GenerateArgs {
  std::string model;
  std::string dtype = "bfloat16";
  JsonLinesFiles files;
  bool apply_chat_template = false;
  SamplingParams sampling{.temperature = 1.0f, .max_new_tokens = 256, .stop_token_ids = {}};
  int64_t n = 1;
  int threads = 0;
};

struct PromptReader {
  const LoadedModel& model;
  std::optional<ChatTemplate> chat_template;  // loaded when first needed
  bool apply_chat_template;

  std::vector<int32_t> operator()(const Json& row) {
    if (!row.is_object() || !row.contains("prompt")) {
      throw Error(ErrorCode::kData, {.where = "prompt",
                                     .what = "missing",
                                     .expected = "{\"prompt\": text, messages or ids}"});
    }
    const Json& prompt = row["prompt"];
    const bool is_ids = prompt.is_array() && !prompt.empty() && prompt[0].is_number();
    if (is_ids) return TokenIdsOf(prompt, model.checkpoint.config().vocab_size, "prompt");
    if (prompt.is_string() && !apply_chat_template)
      return EncodeFor(model, prompt.get<std::string>());
    if (!prompt.is_string() && (!prompt.is_array() || prompt.empty())) {
      throw Error(ErrorCode::kData,
                  {.where = "prompt",
                   .what = "cannot be read",
                   .expected = "a string, a list of messages or of ids",
                   .found = prompt.is_array() ? "an empty list" : prompt.type_name()});
    }
    if (!chat_template) chat_template.emplace(ChatTemplate::Load(model.checkpoint.name()));
    const Json messages =
        prompt.is_array() ? prompt : Json::array({{{"role", "user"}, {"content", prompt}}});
    const Json tools = row.contains("tools") ? row["tools"] : Json();
    if (!tools.is_null() && !tools.is_array()) {
      throw Error(ErrorCode::kData, {.where = "tools",
                                     .what = "cannot be read",
                                     .expected = "a list or null",
                                     .found = tools.type_name()});
    }
    return EncodeFor(model, chat_template->Render(messages, {tools, nullptr, true}));
  }
};

Json RecordOf(const LoadedModel& model, const RequestOutput& output) {
  return {{"text", model.tokenizer.Decode(output.token_ids, SpecialTokens::kSkip)},
          {"ids", output.token_ids},
          {"logprobs", output.logprobs},
          {"finish_reason", FinishReasonName(output.finish_reason)}};
}

// Queues every good line n times (ids line * n + i) and returns the records of the bad ones.
std::vector<Json> QueueLines(const GenerateArgs& args, const LoadedModel& model,
                             const std::vector<JsonLine>& lines, Engine* engine) {
  PromptReader read_prompt{model, std::nullopt, args.apply_chat_template};
  std::vector<Json> records(lines.size() * static_cast<size_t>(args.n));
  for (size_t line = 0; line < lines.size(); ++line) {
    const size_t first = line * static_cast<size_t>(args.n);
    std::string problem = lines[line].error;
    try {
      for (size_t i = first; problem.empty() && i < first + static_cast<size_t>(args.n); ++i) {
        Request request;
        request.id = static_cast<int64_t>(i);
        request.prompt_ids = read_prompt(lines[line].value);
        request.sampling = args.sampling;
        request.sampling.seed = HashBits(args.sampling.seed, line, i - first);
        engine->Add(std::move(request));
      }
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kInternal) throw;
      problem = fmt::format("line {}: {}", lines[line].number, error.what());
    }
    if (problem.empty()) continue;
    Log().warn("{}", problem);
    for (size_t i = first; i < first + static_cast<size_t>(args.n); ++i)
      records[i] = {{"error", problem}};
  }
  return records;
}

void CheckNumberOfCompletions(const GenerateArgs& args, size_t num_lines) {
  const int64_t most = kMaxCompletions / std::max<int64_t>(1, static_cast<int64_t>(num_lines));
  if (args.n <= most) return;
  throw Error(ErrorCode::kUsage,
              {.where = "--n",
               .what = fmt::format("too many completions for {} lines", num_lines),
               .expected = fmt::format("at most {} a line", most),
               .found = fmt::format("{}", args.n),
               .todo = "Split the input, or call several times with another --seed"});
}

void Generate(const GenerateArgs& args) {
  CheckOutput(args.files.output);
  const LoadedModel model(args.model, args.dtype);
  ThreadPool pool(args.threads);
  Engine engine({pool}, model.decoder, {});
  const std::vector<JsonLine> lines = ReadJsonLines(args.files.input);
  CheckNumberOfCompletions(args, lines.size());
  GenerateArgs with_stops = args;
  with_stops.sampling.stop_token_ids = model.stop_token_ids;
  std::vector<Json> records = QueueLines(with_stops, model, lines, &engine);
  Progress progress("generate", static_cast<int64_t>(records.size()), "completions");
  int64_t num_done = 0;
  while (engine.HasUnfinished()) {
    for (const RequestOutput& output : engine.Step()) {
      records[static_cast<size_t>(output.id)] = RecordOf(model, output);
      ++num_done;
    }
    progress.Update(num_done);
    if (InterruptRequested())
      throw Error(ErrorCode::kInterrupted, "interrupted; nothing was written");
  }
  WriteJsonLines(args.files.output, records);
  const int64_t num_bad = static_cast<int64_t>(records.size()) - num_done;
  if (num_bad > 0) {
    throw Error(ErrorCode::kData, {.where = InputName(args.files.input),
                                   .what = fmt::format("{} completions could not be made", num_bad),
                                   .todo = "Their records say why"});
  }
}

}  // namespace

void AddGenerateCommand(CLI::App& app) {
  auto args = std::make_shared<GenerateArgs>();
  CLI::App* command = app.add_subcommand("generate", "Completions of prompts");
  command->footer(
      "Reads JSON lines {\"prompt\": text, messages or ids}; answers, n per line, {\"text\", "
      "\"ids\" (with the stop token), "
      "\"logprobs\", \"finish_reason\"}.\n"
      "Example: echo '{\"prompt\": \"What is 41 * 52?\"}' | quatrain generate --model "
      "examples/models/tiny-qwen3-moe "
      "--apply-chat-template --temperature 0");
  command->add_option("--model", args->model, "model directory, BF16 or INT4")->required();
  command->add_option("--input", args->files.input, "JSON lines; - is standard input")
      ->capture_default_str();
  command->add_option("--output", args->files.output, "file; - is standard output")
      ->capture_default_str();
  command->add_flag("--apply-chat-template", args->apply_chat_template,
                    "a string prompt is one user message");
  command->add_option("--temperature", args->sampling.temperature, "0 is greedy")
      ->check(NonNegative())
      ->capture_default_str();
  command->add_option("--top-p", args->sampling.top_p, "nucleus")
      ->check(Between(1e-6, 1.0))
      ->capture_default_str();
  command->add_option("--top-k", args->sampling.top_k, "0: off")
      ->check(NonNegative())
      ->capture_default_str();
  command->add_option("--n", args->n, "completions a prompt")
      ->check(Positive())
      ->capture_default_str();
  command->add_option("--seed", args->sampling.seed, "of the draws")->capture_default_str();
  command->add_option("--max-new-tokens", args->sampling.max_new_tokens, "length limit")
      ->check(Positive())
      ->capture_default_str();
  AddDtypeOption(*command, &args->dtype);
  AddThreadsOption(*command, &args->threads);
  command->callback([args] { Generate(*args); });
}

}  // namespace quatrain
