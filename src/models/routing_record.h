// RoutingRecord: the experts of a sequence's tokens as they wait between rollout and training (R3).
//
// A RoutedExperts (models/routing_replay.h) lives for one forward pass, in int32; a record lives
// for a rollout, so an id takes one byte, or two where the model has more than 256 experts.
#pragma once

#include <cstdint>
#include <vector>

#include "models/routing_replay.h"

namespace quatrain {

struct RoutingRecord {
  int64_t num_tokens = 0;
  int64_t num_moe_layers = 0;
  int64_t num_experts_per_tok = 0;
  int64_t bytes_per_id = 1;      // uint8, or 2: uint16, the low byte first
  std::vector<uint8_t> ids_TLK;  // [num_tokens, num_moe_layers, num_experts_per_tok] ids

  bool empty() const { return num_tokens == 0; }
  int64_t size_bytes() const { return static_cast<int64_t>(ids_TLK.size()); }
  int64_t bytes_per_token() const { return num_moe_layers * num_experts_per_tok * bytes_per_id; }

  // Adds rows [first, first + count) of a forward pass of a model with `num_experts` experts.
  void Append(const RoutedExperts& forward, int64_t first, int64_t count, int64_t num_experts);
  // Adds all rows of a record of the same model.
  void Append(const RoutingRecord& other);
  void Clear() { *this = {}; }
  // For a forward pass to replay.
  RoutedExperts Expand() const;
};

// How far the experts that a router would choose agree with those that are replayed.
struct RoutingOverlap {
  int64_t num_choices = 0;   // (token, layer) pairs
  int64_t num_ids = 0;       // experts_per_tok times that
  int64_t num_shared = 0;    // ids that stand in both
  int64_t num_disjoint = 0;  // pairs without a common expert

  void Add(const RoutingOverlap& other);
  double shared() const;    // of the ids; 1 where nothing was compared
  double disjoint() const;  // of the pairs
};
// The order of the slots does not matter. Shapes must agree.
RoutingOverlap CompareRouting(const RoutedExperts& own, const RoutedExperts& replayed);

}  // namespace quatrain
