// Which tensor-parallel sizes of the serving engines a quantised model can be cut for.
//
// Rules of vLLM (Marlin, Machete and the MoE kernels) and SGLang: a cut of K must keep whole
// groups; Marlin wants N per rank in multiples of 64 and K in multiples of 128; MoE kernels want
// the intermediate size per rank in multiples of max(64, g). What misses a group breaks, what
// misses a tile takes a slower kernel.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace quatrain {

// How engines cut a linear: its outputs (column), its inputs (row), or not at all.
enum class ParallelCut { kColumn, kRow, kReplicated };

struct ParallelLinear {
  std::string name;  // layer and expert numbers as '*'
  int64_t out_features = 0;
  int64_t in_features = 0;
  ParallelCut cut = ParallelCut::kColumn;
  bool is_expert = false;  // of routed experts: the cut dimension is the intermediate size
};

enum class ParallelVerdict { kOk, kSlow, kBreaks };

struct ParallelCell {
  int tp = 1;
  ParallelVerdict verdict = ParallelVerdict::kOk;
  std::string reason = {};  // empty when kOk
};

struct ParallelRow {
  ParallelLinear linear;
  std::vector<ParallelCell> cells;  // tp 1, 2, 4, 8
};

// "ok", "slow", "breaks".
const char* ParallelVerdictName(ParallelVerdict verdict);

// Cut and expert flag of a module, by the last part of its name; numbers in the name become '*'.
ParallelLinear ClassifyLinear(const std::string& module, int64_t out_features, int64_t in_features);

// One row a linear; rows of equal name and shape are merged. group_size 0 is per channel.
std::vector<ParallelRow> TensorParallelTable(std::span<const ParallelLinear> linears,
                                             int64_t group_size);

}  // namespace quatrain
