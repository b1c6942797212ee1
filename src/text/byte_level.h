// The printable spelling of bytes in byte-level vocabularies: every byte has one character of its
// own, e.g. the space is U+0120 (openai/gpt-2:src/encoder.py, bytes_to_unicode).
#pragma once

#include <string>
#include <string_view>

namespace quatrain {

// The bytes that a token's text stands for. A text with a character that spells no byte (an added
// token such as
// "<a b>") stands for its own UTF-8 bytes.
std::string BytesOfTokenText(std::string_view token_text);

// The text of a token that stands for `bytes`.
std::string TokenTextOfBytes(std::string_view bytes);

}  // namespace quatrain
