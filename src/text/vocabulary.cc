#include "text/vocabulary.h"

#include "base/error.h"

namespace quatrain {

void ThrowDamagedTokenizer(const std::string& where, const std::string& what,
                           const std::string& expected, const std::string& found) {
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = what,
                                 .expected = expected,
                                 .found = found,
                                 .todo = "Fetch the file again or export the tokenizer anew."});
}

void Vocabulary::Insert(const std::string& text, int64_t id, const std::string& where) {
  if (id < 0 || id >= kMaxTokens) {
    ThrowDamagedTokenizer(where, fmt::format("the id of token '{}' is out of range", text),
                          fmt::format("0 to {}", kMaxTokens - 1), std::to_string(id));
  }
  const auto [entry, is_new] = ids_.try_emplace(text, static_cast<int32_t>(id));
  if (!is_new && entry->second != id) {
    ThrowDamagedTokenizer(where, fmt::format("token '{}' has two ids", text), "one",
                          fmt::format("{} and {}", entry->second, id));
  }
  if (id >= size()) texts_.resize(static_cast<size_t>(id) + 1);
}

void Vocabulary::Add(const std::string& text, int64_t id, const std::string& where) {
  Insert(text, id, where);
  std::optional<std::string>& slot = texts_[static_cast<size_t>(id)];
  if (slot && *slot != text) {
    ThrowDamagedTokenizer(where, fmt::format("id {} has two tokens", id), "one",
                          fmt::format("'{}' and '{}'", *slot, text));
  }
  slot = text;
}

void Vocabulary::AddOver(const std::string& text, int64_t id, const std::string& where) {
  Insert(text, id, where);
  texts_[static_cast<size_t>(id)] = text;
}

std::optional<int32_t> Vocabulary::Find(std::string_view text) const {
  const auto entry = ids_.find(text);
  if (entry == ids_.end()) return std::nullopt;
  return entry->second;
}

const std::string* Vocabulary::Text(int32_t id) const {
  if (id < 0 || id >= size() || !texts_[static_cast<size_t>(id)]) return nullptr;
  return &*texts_[static_cast<size_t>(id)];
}

}  // namespace quatrain
