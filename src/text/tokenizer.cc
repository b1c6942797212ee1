#include "text/tokenizer.h"

#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "text/added_tokens.h"
#include "text/byte_level.h"
#include "text/byte_pair.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/utf8.h"
#include "text/vocabulary.h"

namespace quatrain {

struct Tokenizer::Parts {
  Vocabulary vocabulary;
  Normalizer normalizer;
  std::optional<Pretokenizer> pretokenizer;
  std::optional<BytePairEncoder> merges;
  AddedTokenFinder raw_tokens;         // looked for before normalisation
  AddedTokenFinder normalized_tokens;  // looked for after it
  std::vector<std::string> bytes;      // [vocab_size]
  std::vector<bool> is_special;        // [vocab_size]

  void EncodeOrdinary(std::string_view text, BytePairEncoder::Scratch* scratch,
                      std::vector<int32_t>* ids) const;
};

namespace {

[[noreturn]] void ThrowUnsupported(const std::string& where, const std::string& what,
                                   const std::string& expected, const std::string& found) {
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = what,
                                 .expected = expected,
                                 .found = found,
                                 .todo = "Use a model with a byte-level BPE tokenizer."});
}

const Json& Member(const Json& object, const char* key, const std::string& where) {
  const auto member = object.find(key);
  if (member == object.end()) ThrowDamagedTokenizer(where, "a field is missing", key, "none");
  return *member;
}

// A number with a fraction, or true, is no id, though it could be cast to one.
int64_t IdOf(const Json& id, const std::string& token, const std::string& where) {
  if (!id.is_number_integer()) {
    ThrowDamagedTokenizer(where, fmt::format("the id of token '{}' is no integer", token),
                          "an integer", id.dump());
  }
  return id.get<int64_t>();
}

// Fields of a BPE model that change the result and that we do not have.
void CheckModelFields(const Json& model, const std::string& where) {
  const std::string type = model.value("type", "BPE");
  if (type != "BPE") ThrowUnsupported(where, "this model type is not supported", "BPE", type);
  if (model.value("byte_fallback", false)) {
    ThrowUnsupported(where, "byte_fallback is not supported (a SentencePiece tokenizer)", "false",
                     "true");
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto member = model.find(affix);
    if (member != model.end() && !member->is_null() && *member != "") {
      ThrowUnsupported(where, std::string(affix) + " is not supported", "null", member->dump());
    }
  }
  const auto dropout = model.find("dropout");
  if (dropout != model.end() && !dropout->is_null() && *dropout != 0.0) {
    ThrowUnsupported(where, "dropout is not supported", "null", dropout->dump());
  }
}

// Both spellings: "a b" and ["a", "b"].
std::vector<BytePairEncoder::Merge> ReadMerges(const Json& list, const std::string& where) {
  std::vector<BytePairEncoder::Merge> merges;
  merges.reserve(list.size());
  for (const Json& item : list) {
    if (item.is_array() && item.size() == 2) {
      merges.emplace_back(item[0].get<std::string>(), item[1].get<std::string>());
      continue;
    }
    const std::string text = item.is_string() ? item.get<std::string>() : "";
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      ThrowDamagedTokenizer(where, fmt::format("merge {} is damaged", merges.size()),
                            "\"a b\" or [\"a\", \"b\"]", item.dump());
    }
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

std::vector<AddedToken> ReadAddedTokens(const Json& root, const std::string& where) {
  std::vector<AddedToken> tokens;
  const auto list = root.find("added_tokens");
  if (list == root.end() || list->is_null()) return tokens;
  for (const Json& item : *list) {
    AddedToken token;
    token.content = Member(item, "content", where).get<std::string>();
    const int64_t id = IdOf(Member(item, "id", where), token.content, where);
    if (id < 0 || id >= Vocabulary::kMaxTokens) {
      ThrowDamagedTokenizer(
          where, fmt::format("the id of added token '{}' is out of range", token.content),
          fmt::format("0 to {}", Vocabulary::kMaxTokens - 1), std::to_string(id));
    }
    token.id = static_cast<int32_t>(id);
    token.special = item.value("special", false);
    token.normalized = item.value("normalized", !token.special);
    token.single_word = item.value("single_word", false);
    token.lstrip = item.value("lstrip", false);
    token.rstrip = item.value("rstrip", false);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

void CheckDecoder(const Json& root, const std::string& where) {
  const Json& decoder = Member(root, "decoder", where);
  const std::string type = decoder.is_object() ? decoder.value("type", "") : "";
  if (type != "ByteLevel") {
    ThrowUnsupported(where, "this decoder is not supported", "ByteLevel",
                     type.empty() ? decoder.dump() : type);
  }
}

void FillFinders(std::vector<AddedToken> tokens, const Normalizer& normalizer,
                 AddedTokenFinder* raw, AddedTokenFinder* normalized) {
  std::vector<AddedToken> raw_tokens, normalized_tokens;
  for (AddedToken& token : tokens) {
    if (token.normalized) token.content = normalizer.Apply(std::move(token.content));
    (token.normalized ? normalized_tokens : raw_tokens).push_back(std::move(token));
  }
  *raw = AddedTokenFinder(std::move(raw_tokens));
  *normalized = AddedTokenFinder(std::move(normalized_tokens));
}

}  // namespace

Tokenizer Tokenizer::Load(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / "tokenizer.json";
  if (!std::filesystem::exists(path)) {
    for (const char* other : {"tokenizer.model", "tiktoken.model"}) {
      if (std::filesystem::exists(model_dir / other)) {
        ThrowUnsupported((model_dir / other).string(), "this tokenizer format is not supported",
                         "a tokenizer.json beside it", other);
      }
    }
  }
  return FromJson(ReadFile(path), path.string());
}

Tokenizer Tokenizer::FromJson(std::string_view json_text, const std::string& where) {
  const Json root = ParseJson(json_text, where);
  auto parts = std::make_unique<Parts>();
  try {
    const Json& model = Member(root, "model", where);
    CheckModelFields(model, where);
    for (const auto& [text, id] : Member(model, "vocab", where).items()) {
      parts->vocabulary.Add(text, IdOf(id, text, where), where);
    }
    const auto whole_pieces = model.value("ignore_merges", false)
                                  ? BytePairEncoder::WholePieces::kLookUpFirst
                                  : BytePairEncoder::WholePieces::kMerge;
    parts->merges.emplace(parts->vocabulary, ReadMerges(Member(model, "merges", where), where),
                          whole_pieces, where);
    parts->normalizer = Normalizer::FromJson(root.value("normalizer", Json()), where);
    parts->pretokenizer = Pretokenizer::FromJson(root.value("pre_tokenizer", Json()), where);
    if (!parts->pretokenizer->has_byte_level()) {
      ThrowUnsupported(where, "the pre_tokenizer has no ByteLevel", "a byte-level BPE", "none");
    }
    CheckDecoder(root, where);
    std::vector<AddedToken> added = ReadAddedTokens(root, where);
    for (const AddedToken& token : added) {
      parts->vocabulary.AddOver(token.content, token.id, where);
    }
    parts->is_special.resize(static_cast<size_t>(parts->vocabulary.size()));
    for (const AddedToken& token : added) {
      parts->is_special[static_cast<size_t>(token.id)] = token.special;
    }
    FillFinders(std::move(added), parts->normalizer, &parts->raw_tokens, &parts->normalized_tokens);
  } catch (const Json::exception& error) {
    ThrowDamagedTokenizer(where, "a field has the wrong type",
                          "the format of Hugging Face tokenizers", error.what());
  }
  for (int32_t id = 0; id < parts->vocabulary.size(); ++id) {
    const std::string* text = parts->vocabulary.Text(id);
    parts->bytes.push_back(text == nullptr ? "" : BytesOfTokenText(*text));
  }
  if (const int missing = parts->merges->num_missing_bytes()) {
    Log().warn("{}: {} of the 256 bytes have no token; text with them loses them", where, missing);
  }
  return Tokenizer(std::move(parts));
}

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

void Tokenizer::Parts::EncodeOrdinary(std::string_view text, BytePairEncoder::Scratch* scratch,
                                      std::vector<int32_t>* ids) const {
  const Pieces pieces = pretokenizer->Apply(std::string(text));
  const std::string_view whole = pieces.text;
  for (const TextRange& range : pieces.ranges) {
    merges->Encode(whole.substr(range.begin, range.end - range.begin), scratch, ids);
  }
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  const std::string valid = ReplaceInvalidUtf8(std::string(text));
  std::vector<int32_t> ids;
  BytePairEncoder::Scratch scratch;
  for (const auto& [raw_range, raw_id] : parts_->raw_tokens.Split(valid)) {
    if (raw_id >= 0) {
      ids.push_back(raw_id);
      continue;
    }
    const std::string normalized =
        parts_->normalizer.Apply(valid.substr(raw_range.begin, raw_range.end - raw_range.begin));
    const std::string_view whole = normalized;
    for (const auto& [range, id] : parts_->normalized_tokens.Split(whole)) {
      if (id >= 0) {
        ids.push_back(id);
      } else {
        parts_->EncodeOrdinary(whole.substr(range.begin, range.end - range.begin), &scratch, &ids);
      }
    }
  }
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, SpecialTokens special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (special_tokens == SpecialTokens::kSkip && IsSpecial(id)) continue;
    bytes.append(TokenBytes(id));
  }
  return ReplaceInvalidUtf8(std::move(bytes));
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return parts_->bytes[static_cast<size_t>(id)];
}

int64_t Tokenizer::vocab_size() const { return parts_->vocabulary.size(); }

std::optional<int32_t> Tokenizer::TokenId(std::string_view token_text) const {
  return parts_->vocabulary.Find(token_text);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->is_special[static_cast<size_t>(id)];
}

}  // namespace quatrain
