// UTF-8 bytes and code points. What is not UTF-8 becomes U+FFFD by one rule everywhere: one
// replacement for each maximal ill-formed subpart (Unicode 15, section 3.9, table 3-8), as Python
// and Rust do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quatrain {

struct Utf8Char {
  int32_t code_point = 0xFFFD;  // U+FFFD when the bytes are ill-formed
  size_t num_bytes = 0;         // bytes to step over, 1 to 4
  bool is_valid = false;
};

// The character at `offset` < text.size().
Utf8Char DecodeUtf8At(std::string_view text, size_t offset);

void AppendUtf8(int32_t code_point, std::string* out);

bool IsValidUtf8(std::string_view text);

// `text` with every ill-formed subpart replaced by U+FFFD; valid text comes back unchanged.
std::string ReplaceInvalidUtf8(std::string text);

}  // namespace quatrain
