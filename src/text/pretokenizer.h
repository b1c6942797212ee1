// Cuts normalised text into the pieces that the merges of a BPE work on, each alone: the
// "pre_tokenizer" of a tokenizer.json.
//
// Supported: Split (a regular expression or a literal; every behavior, invert), ByteLevel
// (add_prefix_space, use_regex), and a Sequence of them. The mapping of bytes to printable
// characters that ByteLevel stands for is left out here: ours cut UTF-8, and byte_pair.h reads
// bytes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/split_pattern.h"

namespace quatrain {

// A text and its cuts. Ranges are in order, never empty and never overlap; what lies between two of
// them was removed.
struct Pieces {
  std::string text;
  std::vector<TextRange> ranges;
};

// Thread-safe: immutable after construction.
class Pretokenizer {
 public:
  // `config` is the "pre_tokenizer" object (null: the whole text is one piece). Error kData naming
  // `where`: a component that is not supported, a pattern that does not compile, a field that is
  // missing.
  static Pretokenizer FromJson(const Json& config, const std::string& where);
  ~Pretokenizer();
  Pretokenizer(Pretokenizer&&) noexcept;
  Pretokenizer& operator=(Pretokenizer&&) noexcept;

  // `text` must be valid UTF-8. Error kResource as SplitPattern::FindAll.
  Pieces Apply(std::string text) const;

  // Whether the pieces go through ByteLevel, as a byte-level BPE needs.
  bool has_byte_level() const { return has_byte_level_; }

 private:
  struct Step;
  Pretokenizer();
  void Append(const Json& config, const std::string& where);

  std::vector<std::unique_ptr<const Step>> steps_;
  bool has_byte_level_ = false;
};

}  // namespace quatrain
