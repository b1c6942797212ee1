// Which modules an `ignore` or `targets` list of compressed-tensors means.
//
// An entry is the exact name of a module, the class name "Linear", or "re:" and a regular
// expression that must match at the start of the name but need not reach its end (Python's
// re.match; here PCRE2).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

struct QuantScheme;

// Thread-safe: immutable after construction.
class ModuleMatcher {
 public:
  // Error kData naming `where`, the entry and the compiler's message if an expression is malformed.
  ModuleMatcher(const std::vector<std::string>& entries, const std::string& where);
  ~ModuleMatcher();
  ModuleMatcher(ModuleMatcher&&) noexcept;
  ModuleMatcher& operator=(ModuleMatcher&&) noexcept;

  // True if an entry means the linear module of this name. Error kResource if an expression
  // backtracks without end.
  bool Matches(std::string_view module) const;

 private:
  struct Pattern;
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<const Pattern>> patterns_;
  bool matches_every_linear_ = false;
};

// The linear modules that a scheme quantises: those that `targets` mean and `ignore` does not.
class QuantizedModules {
 public:
  // Errors of ModuleMatcher.
  QuantizedModules(const QuantScheme& scheme, const std::string& where);
  bool Contains(std::string_view module) const {
    return targets_.Matches(module) && !ignore_.Matches(module);
  }

 private:
  ModuleMatcher targets_, ignore_;
};

}  // namespace quatrain
