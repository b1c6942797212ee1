#include "text/byte_pair.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "base/error.h"
#include "text/byte_level.h"

namespace quatrain {
namespace {

// Fibonacci hashing: 24 high bits of the product, which every bit of both ids reaches.
size_t HashPair(uint64_t pair) { return (pair * 0x9E3779B97F4A7C15ull) >> 40; }

uint64_t PackPair(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

int32_t FindForMerge(const Vocabulary& vocabulary, const std::string& text,
                     const BytePairEncoder::Merge& merge, const std::string& where) {
  if (const auto id = vocabulary.Find(text)) return *id;
  ThrowDamagedTokenizer(where,
                        fmt::format("the merge '{} {}' names a token that is not in the vocabulary",
                                    merge.first, merge.second),
                        "both sides and their join in model.vocab", fmt::format("no '{}'", text));
}

// Orders a heap so that the lowest rank, then the leftmost pair, is on top.
constexpr auto kComesLater = [](const auto& a, const auto& b) {
  return std::tie(a.rank, a.left_index) > std::tie(b.rank, b.left_index);
};

}  // namespace

BytePairEncoder::BytePairEncoder(const Vocabulary& vocabulary, const std::vector<Merge>& merges,
                                 WholePieces whole_pieces, const std::string& where)
    : vocabulary_(&vocabulary), whole_pieces_(whole_pieces) {
  for (int byte = 0; byte < 256; ++byte) {
    const char character = static_cast<char>(byte);
    byte_ids_[static_cast<size_t>(byte)] =
        vocabulary.Find(TokenTextOfBytes({&character, 1})).value_or(-1);
  }
  size_t table_size = 16;
  while (table_size < 2 * merges.size()) table_size *= 2;
  table_.resize(table_size);
  int32_t rank = 0;
  for (const Merge& merge : merges) {
    const int32_t left = FindForMerge(vocabulary, merge.first, merge, where);
    const int32_t right = FindForMerge(vocabulary, merge.second, merge, where);
    const int32_t result = FindForMerge(vocabulary, merge.first + merge.second, merge, where);
    InsertMerge({PackPair(left, right), rank++, result});
  }
}

int BytePairEncoder::num_missing_bytes() const {
  return static_cast<int>(std::count(byte_ids_.begin(), byte_ids_.end(), -1));
}

// A merge listed twice counts with its later rank, as in Hugging Face.
void BytePairEncoder::InsertMerge(const MergeEntry& entry) {
  const size_t mask = table_.size() - 1;
  size_t slot = HashPair(entry.pair) & mask;
  while (table_[slot].pair != kNoPair && table_[slot].pair != entry.pair) slot = (slot + 1) & mask;
  table_[slot] = entry;
}

const BytePairEncoder::MergeEntry* BytePairEncoder::FindMerge(int32_t left, int32_t right) const {
  const uint64_t pair = PackPair(left, right);
  const size_t mask = table_.size() - 1;
  size_t slot = HashPair(pair) & mask;
  while (table_[slot].pair != kNoPair) {
    if (table_[slot].pair == pair) return &table_[slot];
    slot = (slot + 1) & mask;
  }
  return nullptr;
}

void BytePairEncoder::Encode(std::string_view piece, Scratch* scratch,
                             std::vector<int32_t>* ids) const {
  QT_CHECK(piece.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  if (whole_pieces_ == WholePieces::kLookUpFirst) {
    if (const auto id = vocabulary_->Find(TokenTextOfBytes(piece))) {
      ids->push_back(*id);
      return;
    }
  }
  std::vector<Scratch::Symbol>& symbols = scratch->symbols_;
  symbols.clear();
  for (const char byte : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id < 0) continue;
    const int32_t index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  MergeAll(scratch);
  for (const Scratch::Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids->push_back(symbol.id);
  }
}

void BytePairEncoder::PushCandidate(int32_t left_index, Scratch* scratch) const {
  const Scratch::Symbol& left = scratch->symbols_[static_cast<size_t>(left_index)];
  if (left.next < 0) return;
  const Scratch::Symbol& right = scratch->symbols_[static_cast<size_t>(left.next)];
  if (const MergeEntry* merge = FindMerge(left.id, right.id)) {
    scratch->queue_.push_back({merge->rank, left_index, merge->result});
    std::push_heap(scratch->queue_.begin(), scratch->queue_.end(), kComesLater);
  }
}

void BytePairEncoder::MergeAll(Scratch* scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch->symbols_;
  std::vector<Scratch::Candidate>& queue = scratch->queue_;
  queue.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) PushCandidate(static_cast<int32_t>(i), scratch);
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), kComesLater);
    const Scratch::Candidate candidate = queue.back();
    queue.pop_back();
    Scratch::Symbol& left = symbols[static_cast<size_t>(candidate.left_index)];
    if (left.id < 0 || left.next < 0) continue;
    Scratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    // A candidate is stale once either side was joined to something else.
    const MergeEntry* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->rank != candidate.rank) continue;
    left.id = candidate.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = candidate.left_index;
    if (left.previous >= 0) PushCandidate(left.previous, scratch);
    PushCandidate(candidate.left_index, scratch);
  }
}

}  // namespace quatrain
