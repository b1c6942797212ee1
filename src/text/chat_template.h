// A list of messages to the text that a model was trained on, by the model's own Jinja template.
//
// The environment is that of Hugging Face transformers: trim_blocks and lstrip_blocks, break and
// continue, the generation tag (transparent), no escaping, undefined names print as nothing, tojson
// is json.dumps with ensure_ascii off, keys keep their order, and raise_exception and strftime_now
// are functions.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/json.h"

namespace quatrain {

// The template called raise_exception: it refuses these messages.
class TemplateRefusal : public Error {
 public:
  TemplateRefusal(const std::string& template_name, const std::string& message);
  // The words that the template passed to raise_exception, nothing added.
  const std::string& message() const { return message_; }

 private:
  std::string message_;
};

struct ChatRenderOptions {
  Json tools;   // a list of function descriptions, or null: none
  Json kwargs;  // an object of further variables, which may replace special tokens; or null
  bool add_generation_prompt = false;
};

// Thread-safe: immutable after construction.
class ChatTemplate {
 public:
  // The template of a model: chat_template.jinja, else chat_template.json, else chat_template of
  // tokenizer_config.json (a string, or a list of named ones of which "default" is taken). Special
  // tokens come from tokenizer_config.json. Error kData if there is no template or it does not
  // parse.
  static ChatTemplate Load(const std::filesystem::path& model_dir);

  // As Load, but with the template in the file `template_path`.
  static ChatTemplate LoadWithTemplate(const std::filesystem::path& model_dir,
                                       const std::filesystem::path& template_path);

  // `special_tokens` is an object: {"eos_token": "<|im_end|>", ...}; `name` stands in messages.
  // Error kData with the place if `source` does not parse.
  static ChatTemplate FromSource(const std::string& source, const std::string& name,
                                 const Json& special_tokens);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // Variables: messages, tools (none if null), documents (none), add_generation_prompt, the special
  // tokens, and kwargs over them. Errors: TemplateRefusal; kData if the template fails on these
  // messages or a value is nested too deeply; kUsage if kwargs has messages, tools or
  // add_generation_prompt.
  std::string Render(const Json& messages, const ChatRenderOptions& options = {}) const;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<const Program> program);
  std::unique_ptr<const Program> program_;
};

}  // namespace quatrain
