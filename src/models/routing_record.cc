#include "models/routing_record.h"

#include <algorithm>

#include "base/error.h"

namespace quatrain {

void RoutingRecord::Append(const RoutedExperts& forward, int64_t first, int64_t count,
                           int64_t num_experts) {
  const int64_t bytes = num_experts <= 256 ? 1 : 2;
  QT_CHECK(num_experts <= 65536, "{} experts", num_experts);
  QT_CHECK(empty() || (num_moe_layers == forward.num_moe_layers &&
                       num_experts_per_tok == forward.num_experts_per_tok && bytes_per_id == bytes),
           "records of different models");
  num_tokens += count;
  num_moe_layers = forward.num_moe_layers;
  num_experts_per_tok = forward.num_experts_per_tok;
  bytes_per_id = bytes;
  const int32_t* ids = forward.At(first, 0);
  for (int64_t i = 0; i < count * forward.ids_per_token(); ++i) {
    QT_CHECK(ids[i] >= 0 && ids[i] < num_experts, "expert {} of {}", ids[i], num_experts);
    ids_TLK.push_back(static_cast<uint8_t>(ids[i] & 0xFF));
    if (bytes == 2) ids_TLK.push_back(static_cast<uint8_t>(ids[i] >> 8));
  }
}

void RoutingRecord::Append(const RoutingRecord& other) {
  if (other.empty()) return;
  QT_CHECK(empty() || (num_moe_layers == other.num_moe_layers &&
                       num_experts_per_tok == other.num_experts_per_tok &&
                       bytes_per_id == other.bytes_per_id),
           "records of different models");
  num_tokens += other.num_tokens;
  num_moe_layers = other.num_moe_layers;
  num_experts_per_tok = other.num_experts_per_tok;
  bytes_per_id = other.bytes_per_id;
  ids_TLK.insert(ids_TLK.end(), other.ids_TLK.begin(), other.ids_TLK.end());
}

RoutedExperts RoutingRecord::Expand() const {
  QT_CHECK(size_bytes() == num_tokens * bytes_per_token(), "{} bytes for {} tokens", size_bytes(),
           num_tokens);
  RoutedExperts expanded{num_tokens, num_moe_layers, num_experts_per_tok, {}};
  expanded.ids_TLK.reserve(ids_TLK.size() / static_cast<size_t>(bytes_per_id));
  for (size_t i = 0; i < ids_TLK.size(); i += static_cast<size_t>(bytes_per_id)) {
    const int32_t high = bytes_per_id == 2 ? ids_TLK[i + 1] : 0;
    expanded.ids_TLK.push_back(ids_TLK[i] | (high << 8));
  }
  return expanded;
}

void RoutingOverlap::Add(const RoutingOverlap& other) {
  num_choices += other.num_choices;
  num_ids += other.num_ids;
  num_shared += other.num_shared;
  num_disjoint += other.num_disjoint;
}

double RoutingOverlap::shared() const {
  return num_ids == 0 ? 1.0 : static_cast<double>(num_shared) / static_cast<double>(num_ids);
}

double RoutingOverlap::disjoint() const {
  return num_choices == 0 ? 0.0
                          : static_cast<double>(num_disjoint) / static_cast<double>(num_choices);
}

RoutingOverlap CompareRouting(const RoutedExperts& own, const RoutedExperts& replayed) {
  QT_CHECK(own.num_tokens == replayed.num_tokens && own.num_moe_layers == replayed.num_moe_layers &&
               own.num_experts_per_tok == replayed.num_experts_per_tok,
           "routing of {} tokens against {}", own.num_tokens, replayed.num_tokens);
  RoutingOverlap overlap;
  const int64_t k = own.num_experts_per_tok;
  for (int64_t token = 0; token < own.num_tokens; ++token) {
    for (int64_t layer = 0; layer < own.num_moe_layers; ++layer) {
      const int32_t* a = own.At(token, layer);
      const int32_t* b = replayed.At(token, layer);
      const int64_t shared =
          std::count_if(a, a + k, [&](int32_t id) { return std::find(b, b + k, id) != b + k; });
      ++overlap.num_choices;
      overlap.num_ids += k;
      overlap.num_shared += shared;
      overlap.num_disjoint += shared == 0 ? 1 : 0;
    }
  }
  return overlap;
}

}  // namespace quatrain
