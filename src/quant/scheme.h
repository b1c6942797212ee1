// QuantScheme: how a model's linear weights become codes. It travels with the checkpoint
// (config.json for what the public format has a field for, quatrain.json for the rest).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/int4.h"
#include "kernels/int4_quantize.h"

namespace quatrain {

struct QuantScheme {
  int num_bits = 4;  // 4 or 8
  int64_t group_size =
      32;  // inputs that share a scale: 32, 64, 128; 0 is one scale for an output row
  bool symmetric = true;  // false only in files of others, which can be read but not trained
  ScaleRule scale_rule = ScaleRule::kAbsmax7;
  // Bounds other than the rule's: those that a file brings with it (kFrozen), or a narrower grid in
  // the same container (NarrowGrid). Empty takes those of the rule.
  std::optional<CodeGrid> frozen_grid = {};
  // Modules left in BF16 and what is quantised at all, as compressed_tensors.h matches them.
  std::vector<std::string> ignore = {"lm_head"};
  std::vector<std::string> targets = {"Linear"};

  bool is_per_channel() const { return group_size == 0; }
  CodeGrid grid() const;
  // Inputs per scale of a weight with `in_features` inputs.
  int64_t GroupSizeFor(int64_t in_features) const {
    return is_per_channel() ? in_features : group_size;
  }
  QuantizeSpec SpecFor(int64_t in_features) const {
    return {scale_rule, grid(), GroupSizeFor(in_features)};
  }
  // "W4A16 g32", "W8A16 per channel", "W4A16 g128 codes -3..3".
  std::string Name() const;
};

// "absmax/7", "absmax/7.5", "searched", "frozen": the names in flags and in quatrain.json.
std::string ScaleRuleName(ScaleRule rule);
// Error kUsage naming `where` and listing the four.
ScaleRule ParseScaleRule(const std::string& name, const std::string& where);

// Error kUsage naming `where` unless num_bits and group_size are ones that the format and its
// engines have.
void CheckScheme(const QuantScheme& scheme, const std::string& where);

// Codes -code_max..code_max in the container of num_bits: 3 is a 3-bit grid that every reader of
// INT4 takes. Error kUsage naming `where` unless the container holds them.
CodeGrid NarrowGrid(int num_bits, int64_t code_max, const std::string& where);

// Group sizes that divide `in_features`, largest first, and 0 (per channel) last.
std::vector<int64_t> GroupSizesThatFit(int64_t in_features);

// Error kShape naming tensor, K and g and listing the group sizes that would fit; groups never
// straddle rows. group_size 0 always passes.
void CheckDivides(const std::string& tensor, int64_t in_features, int64_t group_size);

}  // namespace quatrain
