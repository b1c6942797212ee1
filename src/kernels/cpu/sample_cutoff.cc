#include "kernels/cpu/sample_cutoff.h"

#include <algorithm>

#include "base/error.h"

namespace quatrain {
namespace {

// Order of likelihood: logit descending, index ascending.
struct MoreLikely {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

void CollectMembers(const CutoffRow& row, int32_t bucket, std::vector<int32_t>& members) {
  members.clear();
  for (int32_t v = 0; v < row.vocab_size; ++v) {
    if (row.buckets[v] == bucket) members.push_back(v);
  }
}

// The set that the limits so far leave: whole buckets below `last`, and `members` of that one.
struct KeptSet {
  int32_t last = kNumBuckets;
  std::vector<int32_t>& members;
};

// Leaves the most likely top_k tokens and returns the least likely of them.
SampleCutoff CutTopK(const CutoffRow& row, int64_t top_k, std::vector<int64_t>& counts,
                     KeptSet& kept) {
  counts.assign(kNumBuckets, 0);
  for (int64_t v = 0; v < row.vocab_size; ++v) ++counts[static_cast<size_t>(row.buckets[v])];
  int64_t missing = top_k;
  kept.last = 0;
  while (counts[static_cast<size_t>(kept.last)] < missing) {
    missing -= counts[static_cast<size_t>(kept.last++)];
  }
  CollectMembers(row, kept.last, kept.members);
  const auto nth = kept.members.begin() + (missing - 1);
  std::nth_element(kept.members.begin(), nth, kept.members.end(), MoreLikely{row.logits});
  const SampleCutoff cutoff{row.logits[*nth], *nth};
  kept.members.resize(static_cast<size_t>(missing));
  return cutoff;
}

double MassOf(const CutoffRow& row, std::vector<int32_t>& members) {
  std::sort(members.begin(), members.end());  // one order of addition
  double mass = 0.0;
  for (const int32_t v : members) mass += row.exps[v];
  return mass;
}

// The smallest set of most likely tokens that reaches top_p of the kept set's mass.
SampleCutoff CutTopP(const CutoffRow& row, double top_p, std::vector<double>& masses,
                     KeptSet& kept) {
  masses.assign(kNumBuckets, 0.0);
  for (int64_t v = 0; v < row.vocab_size; ++v) {
    masses[static_cast<size_t>(row.buckets[v])] += row.exps[v];
  }
  if (kept.last < kNumBuckets) {
    masses[static_cast<size_t>(kept.last)] = MassOf(row, kept.members);
    masses.resize(static_cast<size_t>(kept.last) + 1);
  }
  double total = 0.0;
  for (const double mass : masses) total += mass;
  const double target = top_p * total;
  double reached = 0.0;
  size_t bucket = 0;
  while (bucket + 1 < masses.size() && reached + masses[bucket] < target) {
    reached += masses[bucket++];
  }
  const auto cut_bucket = static_cast<int32_t>(bucket);
  if (cut_bucket != kept.last) CollectMembers(row, cut_bucket, kept.members);
  std::sort(kept.members.begin(), kept.members.end(), MoreLikely{row.logits});
  QT_CHECK(!kept.members.empty());
  size_t last = 0;
  reached += row.exps[kept.members[0]];
  while (reached < target && last + 1 < kept.members.size()) {
    reached += row.exps[kept.members[++last]];
  }
  return {row.logits[kept.members[last]], kept.members[last]};
}

}  // namespace

SampleCutoff FindCutoff(const CutoffRow& row, int64_t top_k, float top_p, CutoffScratch& scratch) {
  QT_CHECK(top_k > 0 || top_p < 1.0f);
  KeptSet kept{.members = scratch.members};
  SampleCutoff cutoff{};
  if (top_k > 0) cutoff = CutTopK(row, top_k, scratch.counts, kept);
  if (top_p < 1.0f) cutoff = CutTopP(row, top_p, scratch.masses, kept);
  return cutoff;
}

}  // namespace quatrain
