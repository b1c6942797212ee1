// Byte-pair encoding: joins the bytes of one piece of text to tokens, the earliest learned merge
// first.
//
// A piece starts as one token per byte. Of all neighbours that a merge knows, the pair of lowest
// rank is joined, the leftmost of equal ones; until none is left. A queue holds the candidate
// pairs, so a piece of n bytes takes O(n log n), however long. Source: Sennrich et al.,
// arXiv:1508.07909; huggingface/tokenizers: tokenizers/src/models/bpe/word.rs for the order of
// ties.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/vocabulary.h"

namespace quatrain {

// Thread-safe: immutable after construction. Borrows the vocabulary.
class BytePairEncoder {
 public:
  using Merge = std::pair<std::string, std::string>;  // token texts, left and right
  enum class WholePieces {
    kMerge,
    kLookUpFirst
  };  // kLookUpFirst: a piece that is a token stays whole

  // `merges` in the order they were learned. Error kData naming `where` and the merge if the
  // vocabulary lacks its left side, right side or result.
  BytePairEncoder(const Vocabulary& vocabulary, const std::vector<Merge>& merges,
                  WholePieces whole_pieces, const std::string& where);

  // Working memory that a caller keeps between pieces.
  class Scratch;

  // Appends the ids of `piece`, any bytes, at most 2^31 - 1. A byte without a token gives nothing.
  void Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  // Bytes that no token stands for; text with them is not kept.
  int num_missing_bytes() const;

 private:
  struct MergeEntry {
    uint64_t pair = kNoPair;  // left id << 32 | right id
    int32_t rank = 0;
    int32_t result = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  const MergeEntry* FindMerge(int32_t left, int32_t right) const;
  void InsertMerge(const MergeEntry& entry);
  void PushCandidate(int32_t left_index, Scratch* scratch) const;
  void MergeAll(Scratch* scratch) const;

  const Vocabulary* vocabulary_;
  WholePieces whole_pieces_;
  std::array<int32_t, 256> byte_ids_;  // -1 where no token stands for the byte
  std::vector<MergeEntry> table_;      // open addressing, a power of two, at most half full
};

class BytePairEncoder::Scratch {
 private:
  friend class BytePairEncoder;
  struct Symbol {
    int32_t id;        // -1 once joined to its left neighbour
    int32_t previous;  // index, -1 at the front
    int32_t next;      // index, -1 at the end
  };
  struct Candidate {
    int32_t rank, left_index, result;
  };
  std::vector<Symbol> symbols_;
  std::vector<Candidate> queue_;  // a heap, lowest (rank, left_index) on top
};

}  // namespace quatrain
