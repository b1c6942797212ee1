#include "quant/module_match.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "quant/scheme.h"

namespace quatrain {
namespace {

constexpr std::string_view kRegexPrefix = "re:";
constexpr std::string_view kLinearClass = "Linear";

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

std::string MessageOf(int error) {
  std::array<unsigned char, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

const unsigned char* Bytes(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

struct ModuleMatcher::Pattern {
  std::string text;
  std::unique_ptr<pcre2_code, FreeCode> code;

  Pattern(std::string_view regex, const std::string& where) : text(regex) {
    int error = 0;
    size_t offset = 0;
    code.reset(pcre2_compile(Bytes(regex), regex.size(), PCRE2_ANCHORED | PCRE2_UTF, &error,
                             &offset, nullptr));
    if (code != nullptr) return;
    throw Error(ErrorCode::kData,
                {.where = where,
                 .what = fmt::format("the regular expression '{}' cannot be compiled", text),
                 .found = fmt::format("'{}' at character {}", MessageOf(error), offset),
                 .todo = "Correct the entry"});
  }

  bool Matches(std::string_view name) const {
    const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
        pcre2_match_data_create_from_pattern(code.get(), nullptr));
    const int rc = pcre2_match(code.get(), Bytes(name), name.size(), 0, 0, data.get(), nullptr);
    if (rc >= 0) return true;
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    throw Error(ErrorCode::kResource,
                {.where = "re:" + text,
                 .what = fmt::format("matching '{}' failed: {}", name, MessageOf(rc)),
                 .todo = "Write the expression without nested repetition"});
  }
};

ModuleMatcher::ModuleMatcher(const std::vector<std::string>& entries, const std::string& where) {
  for (const std::string& entry : entries) {
    if (entry.starts_with(kRegexPrefix)) {
      patterns_.push_back(std::make_unique<const Pattern>(
          std::string_view(entry).substr(kRegexPrefix.size()), where));
    } else if (entry == kLinearClass) {
      matches_every_linear_ = true;
    } else {
      names_.push_back(entry);
    }
  }
  std::sort(names_.begin(), names_.end());
}

ModuleMatcher::~ModuleMatcher() = default;
ModuleMatcher::ModuleMatcher(ModuleMatcher&&) noexcept = default;
ModuleMatcher& ModuleMatcher::operator=(ModuleMatcher&&) noexcept = default;

bool ModuleMatcher::Matches(std::string_view module) const {
  if (matches_every_linear_) return true;
  if (std::binary_search(names_.begin(), names_.end(), module)) return true;
  return std::any_of(patterns_.begin(), patterns_.end(),
                     [&](const auto& pattern) { return pattern->Matches(module); });
}

QuantizedModules::QuantizedModules(const QuantScheme& scheme, const std::string& where)
    : targets_(scheme.targets, where + ": targets"), ignore_(scheme.ignore, where + ": ignore") {}

}  // namespace quatrain
