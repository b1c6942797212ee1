#include "quant/tensor_parallel.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>
#include <tuple>

#include "base/error.h"

namespace quatrain {
namespace {

constexpr std::array<int, 4> kSizes = {1, 2, 4, 8};
constexpr int64_t kTileN = 64;   // of Marlin, and of the MoE kernels for the intermediate size
constexpr int64_t kTileK = 128;  // of Marlin

ParallelCell Judge(const ParallelLinear& linear, int64_t group_size, int tp) {
  const bool cuts_inputs = linear.cut == ParallelCut::kRow;
  const int64_t parts = linear.cut == ParallelCut::kReplicated ? 1 : tp;
  const int64_t whole = cuts_inputs ? linear.in_features : linear.out_features;
  const char* what = linear.is_expert ? "intermediate size" : cuts_inputs ? "K" : "N";
  ParallelCell cell{.tp = tp};
  const auto settle = [&](ParallelVerdict verdict, std::string reason) {
    cell.verdict = verdict;
    cell.reason = std::move(reason);
    return cell;
  };
  if (whole % parts != 0) {
    return settle(ParallelVerdict::kBreaks, fmt::format("{} {} % {} != 0", what, whole, parts));
  }
  const int64_t part = whole / parts;
  // The experts' gate and up are cut along N, but their down_proj has groups along the same
  // dimension.
  if ((cuts_inputs || linear.is_expert) && group_size > 0 && part % group_size != 0) {
    return settle(ParallelVerdict::kBreaks, fmt::format("{} {} / {} = {} is not whole groups of {}",
                                                        what, whole, parts, part, group_size));
  }
  const int64_t n = cuts_inputs ? linear.out_features : part;
  const int64_t k = cuts_inputs ? part : linear.in_features;
  if (linear.is_expert && part % kTileN != 0) {
    return settle(ParallelVerdict::kSlow, fmt::format("{} {} % {} != 0", what, part, kTileN));
  }
  if (linear.is_expert) return cell;
  if (n % kTileN != 0) {
    return settle(ParallelVerdict::kSlow, fmt::format("N {} % {} != 0", n, kTileN));
  }
  if (k % kTileK != 0) {
    return settle(ParallelVerdict::kSlow, fmt::format("K {} % {} != 0", k, kTileK));
  }
  return cell;
}

std::vector<std::string> SplitAtDots(const std::string& name) {
  std::vector<std::string> parts(1);
  for (char c : name) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

bool IsNumber(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(),
                                      [](unsigned char c) { return std::isdigit(c) != 0; });
}

}  // namespace

const char* ParallelVerdictName(ParallelVerdict verdict) {
  switch (verdict) {
    case ParallelVerdict::kOk:
      return "ok";
    case ParallelVerdict::kSlow:
      return "slow";
    case ParallelVerdict::kBreaks:
      return "breaks";
  }
  QT_CHECK(false, "verdict {}", static_cast<int>(verdict));
  return "";
}

ParallelLinear ClassifyLinear(const std::string& module, int64_t out_features,
                              int64_t in_features) {
  ParallelLinear linear = {.name = {}, .out_features = out_features, .in_features = in_features};
  const std::vector<std::string> parts = SplitAtDots(module);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) linear.name += '.';
    linear.name += IsNumber(parts[i]) ? "*" : parts[i];
    linear.is_expert =
        linear.is_expert || (i > 0 && IsNumber(parts[i]) && parts[i - 1] == "experts");
  }
  const std::string& last = parts.back();
  const auto is_one_of = [&](std::initializer_list<const char*> names) {
    return std::find(names.begin(), names.end(), last) != names.end();
  };
  if (is_one_of({"o_proj", "down_proj", "w2"})) linear.cut = ParallelCut::kRow;
  if (is_one_of({"q_a_proj", "kv_a_proj_with_mqa"})) linear.cut = ParallelCut::kReplicated;
  return linear;
}

std::vector<ParallelRow> TensorParallelTable(std::span<const ParallelLinear> linears,
                                             int64_t group_size) {
  std::vector<ParallelRow> rows;
  std::set<std::tuple<std::string, int64_t, int64_t>> seen;
  for (const ParallelLinear& linear : linears) {
    if (!seen.emplace(linear.name, linear.out_features, linear.in_features).second) continue;
    ParallelRow row{linear, {}};
    for (int tp : kSizes) row.cells.push_back(Judge(linear, group_size, tp));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace quatrain
