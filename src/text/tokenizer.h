// Text to token ids and back, as a model's tokenizer.json says: byte-level BPE.
//
// Encode: text that is not UTF-8 gets U+FFFD for each ill-formed subpart; added tokens are found;
// the rest is normalised (normalizer.h), cut (pretokenizer.h) and merged (byte_pair.h). Nothing is
// put before or behind the text: post_processor, truncation and padding are not read. Decode: the
// bytes of all tokens are joined, and only then read as UTF-8, so a character may span tokens.
//
//   const Tokenizer tokenizer = Tokenizer::Load("examples/models/tiny-llama");
//   std::vector<int32_t> ids = tokenizer.Encode("Hello<|im_end|>");
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

enum class SpecialTokens { kShow, kSkip };

// Thread-safe: immutable after construction.
class Tokenizer {
 public:
  // Reads <model_dir>/tokenizer.json. Error kIo if it cannot be read; kData, naming the file and
  // the component, if it is damaged or asks for something other than byte-level BPE.
  static Tokenizer Load(const std::filesystem::path& model_dir);
  // `json_text` is the content of a tokenizer.json; `where` names it in messages.
  static Tokenizer FromJson(std::string_view json_text, const std::string& where);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // Added and special tokens that stand in the text are recognised. Error kResource if the file's
  // regular expression cannot cut this text.
  std::vector<int32_t> Encode(std::string_view text) const;

  // Valid UTF-8. Ids without a token (an embedding may be padded) give nothing. kSkip leaves
  // special tokens out before bytes are joined.
  std::string Decode(std::span<const int32_t> ids,
                     SpecialTokens special_tokens = SpecialTokens::kShow) const;

  // The bytes that one token stands for; they need not be UTF-8 by themselves. Empty for an id
  // without a token.
  std::string_view TokenBytes(int32_t id) const;

  // One more than the highest id; a model's vocab_size is at least this.
  int64_t vocab_size() const;

  // The id of a token by its text in tokenizer.json: "<|im_end|>", or byte-level spelling for
  // ordinary tokens.
  std::optional<int32_t> TokenId(std::string_view token_text) const;

  bool IsSpecial(int32_t id) const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

}  // namespace quatrain
