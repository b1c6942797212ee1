// Exact rational numbers of any length, read from the ways people write them in answers.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quatrain {

// A value numerator / denominator, not reduced; digits without leading zeros, "0" for zero.
struct Rational {
  bool is_negative = false;  // false for zero
  std::string numerator = "0";
  std::string denominator = "1";  // never "0"
};

// Equal values, whatever the form: 1/2 == 2/4.
bool SameValue(const Rational& a, const Rational& b);

// Reads integers ("-12", "1,234,567"), decimals ("0.50", ".5", "5."), fractions ("3/4",
// "\frac{3}{4}", "\frac34", parts may be decimals) and mixed numbers ("1 3/4", "1\frac{3}{4}"),
// with one sign before any of them. Thousands separators are commas or single spaces before groups
// of exactly three digits. Nothing for anything else, a zero denominator, or more than
// kMaxRationalDigits digits.
inline constexpr size_t kMaxRationalDigits = 1000;
std::optional<Rational> ParseRational(std::string_view text);

}  // namespace quatrain
