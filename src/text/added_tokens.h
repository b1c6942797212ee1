// Tokens that are looked for in the text itself, before it is cut and merged: chat markers and the
// like.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/split_pattern.h"

namespace quatrain {

// One entry of "added_tokens" in a tokenizer.json, field names as there.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character stands beside it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space behind it along
  bool normalized = false;   // looked for after normalisation, not before
  bool special = false;      // left out by a decode that skips special tokens
};

// Finds a set of added tokens in a text: leftmost first, the longest of those that begin at one
// place (huggingface/tokenizers:tokenizers/src/tokenizer/added_vocabulary.rs). Thread-safe:
// immutable after construction.
class AddedTokenFinder {
 public:
  struct Segment {
    TextRange range;
    int32_t id = -1;  // -1: ordinary text
  };

  AddedTokenFinder() = default;
  // Tokens without content are ignored.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // Cuts `text`, valid UTF-8, into added tokens and the ordinary text between them, in order, none
  // empty.
  std::vector<Segment> Split(std::string_view text) const;

 private:
  const AddedToken* FindAt(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;                      // longest first
  std::array<std::vector<size_t>, 256> by_first_byte_;  // indices into tokens_, longest first
};

}  // namespace quatrain
