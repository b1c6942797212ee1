#include "text/python_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "text/utf8.h"

namespace quatrain {
namespace {

constexpr size_t kNone = std::string_view::npos;

bool IsCategory(int32_t code_point, std::initializer_list<utf8proc_category_t> categories) {
  return std::find(categories.begin(), categories.end(), utf8proc_category(code_point)) !=
         categories.end();
}

bool IsAlpha(int32_t code_point) {
  return IsCategory(code_point, {UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LL, UTF8PROC_CATEGORY_LT,
                                 UTF8PROC_CATEGORY_LM, UTF8PROC_CATEGORY_LO});
}

bool IsCased(int32_t code_point) {
  return IsCategory(code_point, {UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LL, UTF8PROC_CATEGORY_LT});
}

// str.isprintable of one character.
bool IsPrintable(int32_t code_point) {
  return code_point == ' ' ||
         !IsCategory(code_point, {UTF8PROC_CATEGORY_CC, UTF8PROC_CATEGORY_CF, UTF8PROC_CATEGORY_CS,
                                  UTF8PROC_CATEGORY_CO, UTF8PROC_CATEGORY_CN, UTF8PROC_CATEGORY_ZL,
                                  UTF8PROC_CATEGORY_ZP, UTF8PROC_CATEGORY_ZS});
}

bool IsLineEnd(char32_t code_point) {
  return (code_point >= 0x0A && code_point <= 0x0D) || (code_point >= 0x1C && code_point <= 0x1E) ||
         code_point == 0x85 || code_point == 0x2028 || code_point == 0x2029;
}

void AppendUpper(int32_t code_point, std::string* out) {
  if (code_point == 0xDF) {
    out->append("SS");
  } else {
    AppendUtf8(utf8proc_toupper(code_point), out);
  }
}

// Maps each character by `map(code_point, out)`.
template <typename Map>
std::string MapCharacters(std::string_view text, const Map& map) {
  std::string out;
  out.reserve(text.size());
  for (const char32_t code_point : CodePointsOf(text)) map(static_cast<int32_t>(code_point), &out);
  return out;
}

std::vector<std::string> SplitAtSpaces(std::string_view text, int64_t max_splits) {
  const std::u32string all = CodePointsOf(text);
  const auto is_space = [&](size_t at) { return IsPythonSpace(static_cast<int32_t>(all[at])); };
  std::vector<std::string> parts;
  for (size_t at = 0; at < all.size();) {
    if (is_space(at)) {
      ++at;
      continue;
    }
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(TextOfCodePoints(all.substr(at)));
      break;
    }
    const size_t begin = at;
    while (at < all.size() && !is_space(at)) ++at;
    parts.push_back(TextOfCodePoints(all.substr(begin, at - begin)));
  }
  return parts;
}

std::vector<std::string> SplitAtSpacesFromRight(std::string_view text, int64_t max_splits) {
  const std::u32string all = CodePointsOf(text);
  const auto is_space = [&](size_t at) { return IsPythonSpace(static_cast<int32_t>(all[at])); };
  std::vector<std::string> parts;
  for (size_t end = all.size(); end > 0;) {
    if (is_space(end - 1)) {
      --end;
      continue;
    }
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(TextOfCodePoints(all.substr(0, end)));
      break;
    }
    size_t begin = end;
    while (begin > 0 && !is_space(begin - 1)) --begin;
    parts.push_back(TextOfCodePoints(all.substr(begin, end - begin)));
    end = begin;
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

// Digits and single underscores between them, as in Python's literals; empty if it is anything
// else.
std::string DigitsOf(std::string_view text) {
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_digit = text[i] >= '0' && text[i] <= '9';
    const bool joins = text[i] == '_' && i > 0 && i + 1 < text.size() && text[i - 1] != '_';
    if (!is_digit && !joins) return "";
    if (is_digit) digits.push_back(text[i]);
  }
  return digits;
}

}  // namespace

std::string PythonFloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  *end.ptr = '\0';  // to_chars writes none, and atoi reads up to one
  const std::string_view shortest(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t exponent_at = shortest.find('e');
  const int exponent = std::atoi(buffer + exponent_at + 1);
  constexpr int kMinFixedExponent = -4, kMaxFixedExponent = 15;
  if (exponent < kMinFixedExponent || exponent > kMaxFixedExponent) return std::string(shortest);
  const auto fixed_end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
  std::string fixed(buffer, fixed_end.ptr);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

std::string PythonStringRepr(std::string_view text) {
  const bool has_single = text.find('\'') != kNone;
  const char quote = has_single && text.find('"') == kNone ? '"' : '\'';
  std::string out(1, quote);
  for (const char32_t point : CodePointsOf(text)) {
    const int32_t code_point = static_cast<int32_t>(point);
    if (code_point == quote || code_point == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(code_point));
    } else if (code_point == '\n') {
      out += "\\n";
    } else if (code_point == '\r') {
      out += "\\r";
    } else if (code_point == '\t') {
      out += "\\t";
    } else if (IsPrintable(code_point)) {
      AppendUtf8(code_point, &out);
    } else if (code_point <= 0xFF) {
      out += fmt::format("\\x{:02x}", code_point);
    } else if (code_point <= 0xFFFF) {
      out += fmt::format("\\u{:04x}", code_point);
    } else {
      out += fmt::format("\\U{:08x}", code_point);
    }
  }
  out.push_back(quote);
  return out;
}

std::u32string CodePointsOf(std::string_view text) {
  std::u32string code_points;
  code_points.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const Utf8Char character = DecodeUtf8At(text, offset);
    code_points.push_back(static_cast<char32_t>(character.code_point));
    offset += character.num_bytes;
  }
  return code_points;
}

std::string TextOfCodePoints(std::u32string_view code_points) {
  std::string text;
  for (const char32_t code_point : code_points) AppendUtf8(static_cast<int32_t>(code_point), &text);
  return text;
}

int64_t NumCodePoints(std::string_view text) {
  int64_t count = 0;
  for (size_t offset = 0; offset < text.size(); ++count) {
    offset += DecodeUtf8At(text, offset).num_bytes;
  }
  return count;
}

bool IsPythonSpace(int32_t code_point) {
  return (code_point >= 0x09 && code_point <= 0x0D) || (code_point >= 0x1C && code_point <= 0x1F) ||
         code_point == 0x85 ||
         IsCategory(code_point, {UTF8PROC_CATEGORY_ZS, UTF8PROC_CATEGORY_ZL, UTF8PROC_CATEGORY_ZP});
}

std::string PythonStrip(std::string_view text, StripSide side,
                        std::optional<std::string_view> characters) {
  const std::u32string all = CodePointsOf(text);
  const std::u32string set = characters ? CodePointsOf(*characters) : std::u32string();
  const auto is_stripped = [&](char32_t code_point) {
    return characters ? set.find(code_point) != std::u32string::npos
                      : IsPythonSpace(static_cast<int32_t>(code_point));
  };
  size_t begin = 0, end = all.size();
  while (side != StripSide::kRight && begin < end && is_stripped(all[begin])) ++begin;
  while (side != StripSide::kLeft && end > begin && is_stripped(all[end - 1])) --end;
  return TextOfCodePoints(std::u32string_view(all).substr(begin, end - begin));
}

std::vector<std::string> PythonSplit(std::string_view text,
                                     std::optional<std::string_view> separator,
                                     int64_t max_splits) {
  if (!separator) return SplitAtSpaces(text, max_splits);
  QT_CHECK(!separator->empty());
  std::vector<std::string> parts;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t at = text.find(*separator);
    if (at == kNone) break;
    parts.emplace_back(text.substr(0, at));
    text.remove_prefix(at + separator->size());
  }
  parts.emplace_back(text);
  return parts;
}

std::vector<std::string> PythonSplitFromRight(std::string_view text,
                                              std::optional<std::string_view> separator,
                                              int64_t max_splits) {
  if (!separator) return SplitAtSpacesFromRight(text, max_splits);
  QT_CHECK(!separator->empty());
  std::vector<std::string> parts;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t at = text.rfind(*separator);
    if (at == kNone) break;
    parts.emplace_back(text.substr(at + separator->size()));
    text = text.substr(0, at);
  }
  parts.emplace_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> PythonSplitLines(std::string_view text, LineEnds line_ends) {
  const std::u32string all = CodePointsOf(text);
  std::vector<std::string> lines;
  for (size_t at = 0; at < all.size();) {
    const size_t begin = at;
    while (at < all.size() && !IsLineEnd(all[at])) ++at;
    const size_t end = at;
    if (at < all.size()) at += all.compare(at, 2, U"\r\n") == 0 ? 2 : 1;
    const size_t kept_end = line_ends == LineEnds::kKeep ? at : end;
    lines.push_back(TextOfCodePoints(std::u32string_view(all).substr(begin, kept_end - begin)));
  }
  return lines;
}

std::string PythonReplace(std::string_view text, std::string_view from, std::string_view to,
                          int64_t max_count) {
  std::string out;
  int64_t count = 0;
  size_t copied = 0;
  for (size_t search = 0; max_count < 0 || count < max_count; ++count) {
    const size_t at = text.find(from, search);
    if (at == kNone) break;
    out.append(text.substr(copied, at - copied)).append(to);
    copied = at + from.size();
    search = copied;
    if (from.empty()) {
      if (at == text.size()) break;
      search = at + DecodeUtf8At(text, at).num_bytes;
    }
  }
  return out.append(text.substr(copied));
}

std::string PythonUpper(std::string_view text) { return MapCharacters(text, AppendUpper); }

std::string PythonLower(std::string_view text) {
  return MapCharacters(text, [](int32_t code_point, std::string* out) {
    AppendUtf8(utf8proc_tolower(code_point), out);
  });
}

std::string PythonCapitalize(std::string_view text) {
  bool is_first = true;
  return MapCharacters(text, [&](int32_t code_point, std::string* out) {
    AppendUtf8(is_first ? utf8proc_totitle(code_point) : utf8proc_tolower(code_point), out);
    is_first = false;
  });
}

std::string PythonTitle(std::string_view text) {
  bool is_word = false;
  return MapCharacters(text, [&](int32_t code_point, std::string* out) {
    AppendUtf8(is_word ? utf8proc_tolower(code_point) : utf8proc_totitle(code_point), out);
    is_word = IsCased(code_point);
  });
}

bool IsPythonClass(std::string_view text, TextClass text_class) {
  bool has_cased = false;
  for (const char32_t point : CodePointsOf(text)) {
    const int32_t code_point = static_cast<int32_t>(point);
    const bool is_digit = IsCategory(code_point, {UTF8PROC_CATEGORY_ND});
    has_cased |= IsCased(code_point);
    bool fits = true;
    switch (text_class) {
      case TextClass::kAlpha:
        fits = IsAlpha(code_point);
        break;
      case TextClass::kDigit:
        fits = is_digit;
        break;
      case TextClass::kAlnum:
        fits = is_digit || IsAlpha(code_point);
        break;
      case TextClass::kSpace:
        fits = IsPythonSpace(code_point);
        break;
      case TextClass::kLower:
        fits = !IsCategory(code_point, {UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LT});
        break;
      case TextClass::kUpper:
        fits = !IsCategory(code_point, {UTF8PROC_CATEGORY_LL, UTF8PROC_CATEGORY_LT});
        break;
    }
    if (!fits) return false;
  }
  const bool needs_cased = text_class == TextClass::kLower || text_class == TextClass::kUpper;
  return needs_cased ? has_cased : !text.empty();
}

std::optional<std::string> PythonParseInt(std::string_view text) {
  const std::string stripped = PythonStrip(text, StripSide::kBoth);
  const bool has_sign = !stripped.empty() && (stripped[0] == '-' || stripped[0] == '+');
  std::string digits = DigitsOf(std::string_view(stripped).substr(has_sign ? 1 : 0));
  if (digits.empty()) return std::nullopt;
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
  if (stripped[0] == '-' && digits != "0") digits.insert(digits.begin(), '-');
  return digits;
}

std::optional<double> PythonParseFloat(std::string_view text) {
  const std::string stripped = PythonStrip(text, StripSide::kBoth);
  // strtod also reads hexadecimal and nan(...), Python does not.
  if (stripped.empty() || stripped.find_first_of("xX(") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(stripped.c_str(), &end);
  if (end != stripped.c_str() + stripped.size()) return std::nullopt;
  return value;
}

}  // namespace quatrain
