// A regular expression of a tokenizer.json, run by PCRE2.
//
// The patterns are written for Oniguruma with Ruby's syntax. Where PCRE2 reads the same characters
// differently the pattern is rewritten first: \s takes in U+180E in PCRE2 and not there, \w leaves
// out marks, \h means something else, and \p{Script} looks at script extensions. Set operations
// inside a class ([a&&[^b]]) have no counterpart and are refused.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

// Bytes [begin, end) of a text.
struct TextRange {
  size_t begin = 0;
  size_t end = 0;
  bool operator==(const TextRange&) const = default;
};

// Thread-safe: immutable after construction.
class SplitPattern {
 public:
  // Error kData naming `where`, with the compiler's message and the place in the pattern.
  static SplitPattern FromRegex(std::string_view regex, const std::string& where);
  // Matches the characters themselves.
  static SplitPattern FromLiteral(std::string_view literal, const std::string& where);
  ~SplitPattern();
  SplitPattern(SplitPattern&&) noexcept;
  SplitPattern& operator=(SplitPattern&&) noexcept;

  // All matches in order, none overlapping another; one may be empty, but not directly behind
  // another match. `text` must be valid UTF-8. Error kResource if the pattern backtracks without
  // end on this text.
  std::vector<TextRange> FindAll(std::string_view text) const;

 private:
  struct Compiled;
  explicit SplitPattern(std::unique_ptr<const Compiled> compiled);
  std::unique_ptr<const Compiled> compiled_;
};

// The pattern as PCRE2 is given it; exposed for tests. Error kData as FromRegex.
std::string TranslateOniguruma(std::string_view regex, const std::string& where);

}  // namespace quatrain
