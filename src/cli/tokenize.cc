#include "cli/tokenize.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "cli/json_lines.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace quatrain {
namespace {

struct TokenizeArgs {
  std::string model;
  std::string chat_template;  // empty: the model's own
  JsonLinesFiles files;
};

// The member of a row, or null.
const Json& Field(const Json& row, const char* key) {
  static const Json null;
  const auto member = row.find(key);
  return member == row.end() ? null : *member;
}

void CheckType(const char* key, const Json& value, bool fits, const char* expected) {
  if (fits) return;
  throw Error(
      ErrorCode::kData,
      {.where = key, .what = "cannot be read", .expected = expected, .found = value.type_name()});
}

class RowTokenizer {
 public:
  explicit RowTokenizer(const TokenizeArgs& args)
      : args_(args), tokenizer_(Tokenizer::Load(args.model)) {
    if (!args.chat_template.empty()) {
      chat_template_ = ChatTemplate::LoadWithTemplate(args.model, args.chat_template);
    }
  }

  // A template that refuses the messages has answered: its words are the record.
  Json operator()(const Json& row) {
    if (!row.is_object() || (!row.contains("messages") && !row.contains("text"))) {
      throw Error(ErrorCode::kData, {.where = "messages, text",
                                     .what = "neither is given",
                                     .expected = "{\"text\": \"...\"} or {\"messages\": [...]}"});
    }
    try {
      const std::string text = row.contains("messages") ? Render(row) : TextOf(row);
      return {{"text", text}, {"ids", tokenizer_.Encode(text)}};
    } catch (const TemplateRefusal& refusal) {
      return {{"error", refusal.message()}};
    }
  }

 private:
  static std::string TextOf(const Json& row) {
    const Json& text = Field(row, "text");
    CheckType("text", text, text.is_string(), "a string");
    return text.get<std::string>();
  }

  std::string Render(const Json& row) {
    const Json& messages = Field(row, "messages");
    const Json& tools = Field(row, "tools");
    const Json& kwargs = Field(row, "kwargs");
    const Json& prompt = Field(row, "add_generation_prompt");
    CheckType("messages", messages, messages.is_array(), "a list");
    CheckType("tools", tools, tools.is_array() || tools.is_null(), "a list or null");
    CheckType("kwargs", kwargs, kwargs.is_object() || kwargs.is_null(), "an object or null");
    CheckType("add_generation_prompt", prompt, prompt.is_boolean() || prompt.is_null(),
              "true or false");
    if (!chat_template_) chat_template_ = ChatTemplate::Load(args_.model);
    return chat_template_->Render(
        messages, {.tools = tools, .kwargs = kwargs, .add_generation_prompt = prompt == true});
  }

  const TokenizeArgs& args_;
  Tokenizer tokenizer_;
  std::optional<ChatTemplate> chat_template_;  // the model's own is loaded when first needed
};

}  // namespace

void AddTokenizeCommand(CLI::App& app) {
  auto args = std::make_shared<TokenizeArgs>();
  CLI::App* command = app.add_subcommand("tokenize", "Token ids of texts and of chat messages");
  command->footer(
      "Reads JSON lines {\"text\": \"...\"} or {\"messages\": [...]}, the latter with \"tools\", "
      "\"kwargs\" (further\n"
      "template variables) and \"add_generation_prompt\" if wanted. Answers each with {\"text\", "
      "\"ids\"}, or with\n"
      "{\"error\"}: what the template says to messages that it refuses, or what is wrong with line "
      "N.\n"
      "Example: echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], "
      "\"add_generation_prompt\": true}' |\n"
      "         quatrain tokenize --model examples/models/tiny-llama");
  command->add_option("--model", args->model, "model directory")->required();
  command->add_option("--input", args->files.input, "JSON lines; - is standard input")
      ->capture_default_str();
  command->add_option("--output", args->files.output, "file; - is standard output")
      ->capture_default_str();
  command->add_option("--chat-template", args->chat_template,
                      "Jinja file that replaces the model's own template");
  command->callback([args] {
    CheckOutput(args->files.output);
    RowTokenizer tokenize(*args);
    AnswerJsonLines(args->files, [&](const Json& row) { return tokenize(row); });
  });
}

}  // namespace quatrain
