#include "text/utf8.h"

#include <utility>

#include "base/error.h"

namespace quatrain {
namespace {

// The range that the second byte must lie in, which rules out overlong forms, surrogates and code
// points above U+10FFFF (Unicode 15, table 3-7); num_bytes is 0 for a byte that cannot lead.
struct LeadByte {
  int num_bytes;
  uint8_t second_min, second_max;
};

LeadByte ClassifyLead(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Char DecodeUtf8At(std::string_view text, size_t offset) {
  const uint8_t lead = static_cast<uint8_t>(text[offset]);
  const LeadByte kind = ClassifyLead(lead);
  if (kind.num_bytes == 1) return {lead, 1, true};
  if (kind.num_bytes == 0) return {0xFFFD, 1, false};
  int32_t code_point = lead & (0x7F >> kind.num_bytes);
  for (int i = 1; i < kind.num_bytes; ++i) {
    const size_t at = offset + static_cast<size_t>(i);
    const uint8_t byte = at < text.size() ? static_cast<uint8_t>(text[at]) : 0;
    const uint8_t low = i == 1 ? kind.second_min : 0x80;
    const uint8_t high = i == 1 ? kind.second_max : 0xBF;
    if (byte < low || byte > high) return {0xFFFD, static_cast<size_t>(i), false};
    code_point = (code_point << 6) | (byte & 0x3F);
  }
  return {code_point, static_cast<size_t>(kind.num_bytes), true};
}

void AppendUtf8(int32_t code_point, std::string* out) {
  QT_CHECK(code_point >= 0 && code_point <= 0x10FFFF, "code point {}", code_point);
  const auto continuation = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | ((code_point >> shift) & 0x3F)));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    continuation(0);
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    continuation(6);
    continuation(0);
  } else {
    out->push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

bool IsValidUtf8(std::string_view text) {
  for (size_t offset = 0; offset < text.size();) {
    const Utf8Char character = DecodeUtf8At(text, offset);
    if (!character.is_valid) return false;
    offset += character.num_bytes;
  }
  return true;
}

std::string ReplaceInvalidUtf8(std::string text) {
  if (IsValidUtf8(text)) return text;
  std::string out;
  out.reserve(text.size() + 16);
  for (size_t offset = 0; offset < text.size();) {
    const Utf8Char character = DecodeUtf8At(text, offset);
    if (character.is_valid) {
      out.append(text, offset, character.num_bytes);
    } else {
      out.append("\xEF\xBF\xBD");
    }
    offset += character.num_bytes;
  }
  return out;
}

}  // namespace quatrain
