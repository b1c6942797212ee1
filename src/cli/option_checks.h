// Checks of option values whose messages a user can read, and which not-a-number does not pass.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <string>

namespace quatrain {

namespace internal {

// Accepts finite numbers that `fits`; `expected` says which those are.
template <class Fits>
CLI::Validator NumberCheck(const std::string& type_name, const std::string& expected,
                           const Fits& fits) {
  return CLI::Validator(
      [expected, fits](std::string& text) -> std::string {
        double value = 0.0;
        if (CLI::detail::lexical_cast(text, value) && std::isfinite(value) && fits(value)) {
          return {};
        }
        return fmt::format("expected {}, found '{}'", expected, text);
      },
      type_name);
}

}  // namespace internal

inline CLI::Validator Positive() {
  return internal::NumberCheck("POSITIVE", "a number above 0", [](double v) { return v > 0.0; });
}
inline CLI::Validator NonNegative() {
  return internal::NumberCheck("NONNEGATIVE", "a number from 0 up",
                               [](double v) { return v >= 0.0; });
}
inline CLI::Validator Between(double low, double high) {
  return internal::NumberCheck(fmt::format("{:g}..{:g}", low, high),
                               fmt::format("a number from {:g} to {:g}", low, high),
                               [low, high](double v) { return low <= v && v <= high; });
}

}  // namespace quatrain
