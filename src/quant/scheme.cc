#include "quant/scheme.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace quatrain {
namespace {

// What vLLM and SGLang have kernels for, largest first.
constexpr std::array<int64_t, 3> kGroupSizes = {128, 64, 32};

constexpr std::array<ScaleRule, 4> kRules = {ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5,
                                             ScaleRule::kSearched, ScaleRule::kFrozen};

}  // namespace

CodeGrid QuantScheme::grid() const {
  return frozen_grid.has_value() ? *frozen_grid : GridOf(scale_rule, num_bits);
}

std::string QuantScheme::Name() const {
  const std::string group = is_per_channel() ? "per channel" : fmt::format("g{}", group_size);
  const CodeGrid bounds = grid();
  const bool is_narrow = bounds.hi < (1 << (num_bits - 1)) - 1;
  return fmt::format("W{}A16 {}{}{}", num_bits, group, symmetric ? "" : " asymmetric",
                     is_narrow ? fmt::format(" codes {}..{}", bounds.lo, bounds.hi) : "");
}

std::string ScaleRuleName(ScaleRule rule) {
  switch (rule) {
    case ScaleRule::kAbsmax7:
      return "absmax/7";
    case ScaleRule::kAbsmax7_5:
      return "absmax/7.5";
    case ScaleRule::kSearched:
      return "searched";
    case ScaleRule::kFrozen:
      return "frozen";
  }
  QT_CHECK(false, "scale rule {}", static_cast<int>(rule));
  return {};
}

ScaleRule ParseScaleRule(const std::string& name, const std::string& where) {
  for (ScaleRule rule : kRules) {
    if (ScaleRuleName(rule) == name) return rule;
  }
  throw Error(ErrorCode::kUsage, {.where = where,
                                  .what = "unknown scale rule",
                                  .expected = "absmax/7, absmax/7.5, searched or frozen",
                                  .found = "'" + name + "'"});
}

void CheckScheme(const QuantScheme& scheme, const std::string& where) {
  if (scheme.num_bits != 4 && scheme.num_bits != 8) {
    throw Error(ErrorCode::kUsage, {.where = where,
                                    .what = "unsupported number of bits",
                                    .expected = "4 or 8",
                                    .found = fmt::format("{}", scheme.num_bits)});
  }
  if (!scheme.is_per_channel() &&
      std::find(kGroupSizes.begin(), kGroupSizes.end(), scheme.group_size) == kGroupSizes.end()) {
    throw Error(ErrorCode::kUsage, {.where = where,
                                    .what = "unsupported group size",
                                    .expected = "32, 64, 128, or 0 for one scale per channel",
                                    .found = fmt::format("{}", scheme.group_size)});
  }
}

CodeGrid NarrowGrid(int num_bits, int64_t code_max, const std::string& where) {
  const int64_t largest = (int64_t{1} << (num_bits - 1)) - 1;
  if (code_max < 1 || code_max > largest) {
    throw Error(ErrorCode::kUsage, {.where = where,
                                    .what = fmt::format("{} bits do not hold such codes", num_bits),
                                    .expected = fmt::format("1 to {}", largest),
                                    .found = fmt::format("{}", code_max)});
  }
  return {num_bits, static_cast<int>(-code_max), static_cast<int>(code_max)};
}

std::vector<int64_t> GroupSizesThatFit(int64_t in_features) {
  std::vector<int64_t> sizes;
  for (int64_t size : kGroupSizes) {
    if (in_features % size == 0) sizes.push_back(size);
  }
  sizes.push_back(0);
  return sizes;
}

void CheckDivides(const std::string& tensor, int64_t in_features, int64_t group_size) {
  if (group_size == 0 || in_features % group_size == 0) return;
  std::string fits;
  for (int64_t size : GroupSizesThatFit(in_features)) {
    if (size != 0) fits += fmt::format("{}, ", size);
  }
  throw Error(ErrorCode::kShape,
              {.where = tensor,
               .what = fmt::format("K = {} input features cannot be cut into groups of {}",
                                   in_features, group_size),
               .expected = fmt::format("a group size that divides K: {}{}0 (per channel)", fits,
                                       fits.empty() ? "only " : "or "),
               .found = fmt::format("{} left over", in_features % group_size),
               .todo = "Choose one of those, or leave this weight in BF16"});
}

}  // namespace quatrain
