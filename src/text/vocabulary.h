// Token texts and their ids, both ways.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace quatrain {

// Throws Error kData: `where` is no sound tokenizer file, and what to do about it.
[[noreturn]] void ThrowDamagedTokenizer(const std::string& where, const std::string& what,
                                        const std::string& expected, const std::string& found);

// Thread-safe once filled.
class Vocabulary {
 public:
  // Error kData naming `where` and the token: an id that is negative or not below kMaxTokens, a
  // text that has another id already, an id that has another text already.
  void Add(const std::string& text, int64_t id, const std::string& where);
  // As Add, but the id's older text, if any, is replaced in Text(): what added tokens may do.
  void AddOver(const std::string& text, int64_t id, const std::string& where);

  std::optional<int32_t> Find(std::string_view text) const;

  // Null for an id without a token.
  const std::string* Text(int32_t id) const;

  // One more than the highest id.
  int64_t size() const { return static_cast<int64_t>(texts_.size()); }

  // Far above any model's vocabulary; keeps a hostile id from claiming all memory.
  static constexpr int64_t kMaxTokens = int64_t{1} << 24;

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  void Insert(const std::string& text, int64_t id, const std::string& where);

  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  std::vector<std::optional<std::string>> texts_;  // [size()]
};

}  // namespace quatrain
