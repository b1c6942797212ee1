#include "text/chat_template.h"

#include <jinja/lexer.h>
#include <jinja/parser.h>
#include <jinja/runtime.h>
#include <jinja/value.h>

#include <algorithm>
#include <utility>

#include "base/file.h"

namespace quatrain {
namespace {

// Deeper values than any tool's schema; the engine walks over values by recursion.
constexpr int kMaxValueDepth = 200;

jinja::value ToJinja(const Json& json, int depth) {
  if (depth > kMaxValueDepth) {
    throw Error(ErrorCode::kData, {.where = "messages, tools or kwargs",
                                   .what = "a value is nested too deeply",
                                   .expected = fmt::format("at most {} levels", kMaxValueDepth),
                                   .todo = "Flatten it."});
  }
  switch (json.type()) {
    case Json::value_t::boolean:
      return jinja::mk_val<jinja::value_bool>(json.get<bool>());
    case Json::value_t::number_integer:
      return jinja::mk_val<jinja::value_int>(json.get<int64_t>());
    case Json::value_t::number_unsigned:
      return jinja::int_from_digits(std::to_string(json.get<uint64_t>()));
    case Json::value_t::number_float:
      return jinja::mk_val<jinja::value_float>(json.get<double>());
    case Json::value_t::string:
      return jinja::mk_val<jinja::value_string>(json.get<std::string>());
    case Json::value_t::array: {
      auto array = jinja::mk_val<jinja::value_array>();
      for (const Json& item : json) array->push_back(ToJinja(item, depth + 1));
      return array;
    }
    case Json::value_t::object: {
      auto object = jinja::mk_val<jinja::value_object>();
      for (const auto& [key, item] : json.items()) object->insert(key, ToJinja(item, depth + 1));
      return object;
    }
    default:
      return jinja::mk_val<jinja::value_none>();
  }
}

Json ReadJsonFile(const std::filesystem::path& path) {
  return ParseJson(ReadFile(path), path.string());
}

// bos_token, eos_token and the like, each a string or an object with its content.
Json SpecialTokensOf(const Json& tokenizer_config) {
  Json tokens = Json::object();
  for (const auto& [key, value] : tokenizer_config.items()) {
    if (!key.ends_with("_token") || key.starts_with("add_")) continue;
    if (value.is_string()) tokens[key] = value;
    if (value.is_object() && value.contains("content")) tokens[key] = value["content"];
  }
  return tokens;
}

Json ReadTokenizerConfig(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return Json::object();
  Json config = ReadJsonFile(path);
  if (config.is_object()) return config;
  throw Error(ErrorCode::kData, {.where = path.string(),
                                 .what = "not a JSON object",
                                 .found = config.type_name(),
                                 .todo = "Fetch the file again."});
}

// A chat_template field: a string, or a list of {"name", "template"} of which "default" is taken.
// Empty if none.
std::string TemplateField(const Json& config) {
  if (!config.is_object() || !config.contains("chat_template")) return "";
  const Json& field = config["chat_template"];
  if (field.is_string()) return field.get<std::string>();
  if (!field.is_array()) return "";
  for (const Json& item : field) {
    if (item.is_object() && item.value("name", "") == "default") return item.value("template", "");
  }
  return "";
}

// The engine draws the place in several lines; a message is one paragraph.
std::string OneLine(const std::string& text) {
  std::string line;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const size_t first = text.find_first_not_of(" \t", begin);
    const std::string part = first < end ? text.substr(first, end - first) : "";
    begin = end + 1;
    if (part.find_first_not_of("-^") == std::string::npos) continue;  // a rule or a pointer
    line += (line.empty() ? "" : " ") + part;
  }
  return line;
}

[[noreturn]] void ThrowTemplateError(const std::string& name, const std::string& what,
                                     const std::string& found) {
  throw Error(ErrorCode::kData, {.where = name,
                                 .what = what,
                                 .found = OneLine(found),
                                 .todo = "Correct the template, or pass another one."});
}

}  // namespace

TemplateRefusal::TemplateRefusal(const std::string& template_name, const std::string& message)
    : Error(ErrorCode::kData,
            {.where = template_name, .what = "the template refuses these messages: " + message}),
      message_(message) {}

struct ChatTemplate::Program {
  std::string name;
  std::string source;
  jinja::program statements;
  Json special_tokens;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Program> program) : program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

ChatTemplate ChatTemplate::Load(const std::filesystem::path& model_dir) {
  const std::filesystem::path jinja_path = model_dir / "chat_template.jinja";
  if (std::filesystem::exists(jinja_path)) return LoadWithTemplate(model_dir, jinja_path);
  const Json config = ReadTokenizerConfig(model_dir);
  const std::filesystem::path json_path = model_dir / "chat_template.json";
  if (std::filesystem::exists(json_path)) {
    const std::string source = TemplateField(ReadJsonFile(json_path));
    if (!source.empty()) return FromSource(source, json_path.string(), SpecialTokensOf(config));
  }
  const std::string source = TemplateField(config);
  if (source.empty()) {
    throw Error(ErrorCode::kData,
                {.where = model_dir.string(),
                 .what = "the model has no chat template",
                 .expected = "chat_template.jinja, or chat_template in tokenizer_config.json",
                 .found = "neither",
                 .todo = "Pass a template with --chat-template, or give raw text."});
  }
  return FromSource(source, (model_dir / "tokenizer_config.json").string(),
                    SpecialTokensOf(config));
}

ChatTemplate ChatTemplate::LoadWithTemplate(const std::filesystem::path& model_dir,
                                            const std::filesystem::path& template_path) {
  return FromSource(ReadFile(template_path), template_path.string(),
                    SpecialTokensOf(ReadTokenizerConfig(model_dir)));
}

ChatTemplate ChatTemplate::FromSource(const std::string& source, const std::string& name,
                                      const Json& special_tokens) {
  auto program = std::make_unique<Program>();
  program->name = name;
  program->special_tokens = special_tokens;
  try {
    jinja::lexer lexer;
    const jinja::lexer_result tokens = lexer.tokenize(source);
    program->statements = jinja::parse_from_tokens(tokens);
    program->source = tokens.source;
  } catch (const std::exception& error) {
    ThrowTemplateError(name, "the chat template does not parse", error.what());
  }
  return ChatTemplate(std::move(program));
}

std::string ChatTemplate::Render(const Json& messages, const ChatRenderOptions& options) const {
  jinja::context context(program_->source);
  const auto set = [&context](const std::string& name, const Json& value) {
    context.set_val(name, ToJinja(value, 0));
  };
  set("messages", messages);
  set("tools", options.tools);
  set("documents", nullptr);
  set("add_generation_prompt", options.add_generation_prompt);
  for (const auto& [name, value] : program_->special_tokens.items()) set(name, value);
  for (const auto& [name, value] : options.kwargs.items()) {
    if (name == "messages" || name == "tools" || name == "add_generation_prompt") {
      throw Error(ErrorCode::kUsage, {.where = "kwargs",
                                      .what = "'" + name + "' is not a further variable",
                                      .todo = "Pass it beside kwargs."});
    }
    set(name, value);
  }
  try {
    jinja::runtime runtime(context);
    return jinja::render_string_parts(
        jinja::runtime::gather_string_parts(runtime.execute(program_->statements)));
  } catch (const jinja::template_refusal& refusal) {
    throw TemplateRefusal(program_->name, refusal.message);
  } catch (const std::exception& error) {
    ThrowTemplateError(program_->name, "the chat template fails on these messages", error.what());
  }
}

}  // namespace quatrain
