#include "text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "text/utf8.h"

namespace quatrain {
namespace {

// Unicode White_Space.
bool IsWhiteSpace(int32_t code_point) {
  const utf8proc_category_t category = utf8proc_category(code_point);
  return (code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x85 ||
         category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

// Letters, marks, numbers, connectors and the two joiners: \w of Unicode technical standard 18,
// save for a few symbols that count as alphabetic.
bool IsWordCharacter(int32_t code_point) {
  switch (utf8proc_category(code_point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return code_point == 0x200C || code_point == 0x200D;
  }
}

// The start of the character that ends at `end` > 0.
size_t PreviousStart(std::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
  return start;
}

bool StandsAlone(std::string_view text, const TextRange& range) {
  const bool word_before =
      range.begin > 0 &&
      IsWordCharacter(DecodeUtf8At(text, PreviousStart(text, range.begin)).code_point);
  const bool word_behind =
      range.end < text.size() && IsWordCharacter(DecodeUtf8At(text, range.end).code_point);
  return !word_before && !word_behind;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) {
    return a.content.size() > b.content.size();
  });
  for (size_t i = 0; i < tokens_.size(); ++i) {
    by_first_byte_[static_cast<uint8_t>(tokens_[i].content.front())].push_back(i);
  }
}

const AddedToken* AddedTokenFinder::FindAt(std::string_view text, size_t at) const {
  for (const size_t index : by_first_byte_[static_cast<uint8_t>(text[at])]) {
    if (text.substr(at).starts_with(tokens_[index].content)) return &tokens_[index];
  }
  return nullptr;
}

std::vector<AddedTokenFinder::Segment> AddedTokenFinder::Split(std::string_view text) const {
  std::vector<Segment> segments;
  size_t covered = 0;  // everything before this is in `segments`
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = FindAt(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    TextRange range{at, at + token->content.size()};
    at = range.end;
    if (token->single_word && !StandsAlone(text, range)) continue;
    while (token->lstrip && range.begin > covered) {
      const size_t start = PreviousStart(text, range.begin);
      if (!IsWhiteSpace(DecodeUtf8At(text, start).code_point)) break;
      range.begin = start;
    }
    while (token->rstrip && range.end < text.size()) {
      const Utf8Char next = DecodeUtf8At(text, range.end);
      if (!IsWhiteSpace(next.code_point)) break;
      range.end += next.num_bytes;
    }
    if (covered < range.begin) segments.push_back({{covered, range.begin}, -1});
    segments.push_back({range, token->id});
    covered = range.end;
    at = range.end;
  }
  if (covered < text.size()) segments.push_back({{covered, text.size()}, -1});
  return segments;
}

}  // namespace quatrain
